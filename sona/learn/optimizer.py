"""AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101) on an adapter's vector; its state goes on from cycle to cycle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sona.config import TrainConfig
from sona.errors import ModelError
from sona.learn.flat import FlatWeights

BETAS = (0.9, 0.99)
"""A second moment over 100 steps rather than Adam's usual 1000: a cycle has few steps, and the next one has other
data."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with a linear warm-up, counted over all cycles: where the state goes on, the warm-up is over."""

    def __init__(
        self, flat: FlatWeights, settings: TrainConfig, learning_rate: float, state: Mapping[str, Tensor] | None
    ) -> None:
        self._layout = flat.layout
        self._rate, self._warmup = learning_rate, settings.warmup_steps
        self._vector = torch.nn.Parameter(flat.values)  # the same memory
        self._adam = torch.optim.AdamW(
            [self._vector], lr=learning_rate, betas=BETAS, weight_decay=settings.weight_decay, fused=True
        )
        self._steps = 0
        if state is not None:
            self._load(state)

    @property
    def rate(self) -> float:
        """The learning rate of the last step, or where none was taken the peak rate."""
        rate: float = self._adam.param_groups[0]["lr"]
        return rate

    def step(self, gradient: Tensor) -> None:
        """Move the weights against ``gradient`` (P,)."""
        self._steps += 1
        self._adam.param_groups[0]["lr"] = self._rate * min(1.0, self._steps / max(self._warmup, 1))
        self._vector.grad = gradient
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """``exp_avg/<name>``, ``exp_avg_sq/<name>`` and ``step``, on the CPU, for a safetensors file."""
        tensors = {"step": torch.tensor(self._steps, dtype=torch.int64)}
        for moment in _MOMENTS:
            vector = self._adam.state[self._vector].get(moment, torch.zeros_like(self._vector))
            for name, tensor in self._layout.split(vector).items():
                tensors[f"{moment}/{name}"] = tensor.detach().cpu().clone()
        return tensors

    def _load(self, state: Mapping[str, Tensor]) -> None:
        if "step" not in state:
            raise ModelError("optimizer state: no 'step'; this is no optimizer state")
        self._steps = int(state["step"])
        restored = {"step": torch.tensor(float(self._steps), device=self._vector.device)}
        for moment in _MOMENTS:
            named = {key.removeprefix(f"{moment}/"): t for key, t in state.items() if key.startswith(f"{moment}/")}
            restored[moment] = self._layout.join(named).to(self._vector.device)
            if not bool(torch.isfinite(restored[moment]).all()):
                raise ModelError(f"optimizer state: {moment} holds a number that is not finite; it was not loaded")
        self._adam.state[self._vector] = restored
