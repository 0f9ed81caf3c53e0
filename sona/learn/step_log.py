"""What the steps measured, read from the device seldom: on a GPU each reading waits until all its work is done."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sona.errors import CycleError

READ_EVERY = 8
"""Steps between two readings on a GPU; on a CPU, where reading costs nothing, each step is read at once."""


class StepLog:
    """Losses and norms of the steps of one training run."""

    def __init__(self, on_step: Callable[[int, float], None], device: torch.device) -> None:
        self.tokens = 0
        """Response tokens learned from."""
        self._on_step = on_step
        self._every = 1 if device.type == "cpu" else READ_EVERY
        self._waiting: list[Tensor] = []
        self._losses: list[float] = []
        self._shares: list[float] = []

    @property
    def steps(self) -> int:
        """Steps read so far."""
        return len(self._losses)

    def step(self, loss: Tensor, task_norm: Tensor, pull_share: Tensor | None) -> None:
        """Take in one step's scalars: its loss, the norm of its task gradient, and the penalty's norm against that."""
        share = loss.new_tensor(-1.0) if pull_share is None else pull_share
        self._waiting.append(torch.stack((loss, task_norm, share)))
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Read what waits.

        Raises:
            CycleError: a loss or gradient that is not finite, with the number of its step.
        """
        if not self._waiting:
            return
        rows: list[list[float]] = torch.stack(self._waiting).tolist()  # the one wait for the device
        self._waiting.clear()
        for loss, norm, share in rows:
            step = len(self._losses)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise CycleError(
                    f"training step {step}: loss {loss}, gradient norm {norm}; nothing was changed. "
                    "Lower train.learning_rate, or look for damaged weights"
                )
            self._losses.append(loss)
            if share >= 0:
                self._shares.append(share)
            self._on_step(step, loss)

    def metrics(self) -> dict[str, float]:
        """``steps``, ``tokens``, and what at least one step measured: see :class:`sona.learn.trainer.TrainResult`."""
        measured = {"steps": float(self.steps), "tokens": float(self.tokens)}
        if self._losses:
            tenth = max(1, self.steps // 10)
            measured["loss_first"] = sum(self._losses[:tenth]) / tenth
            measured["loss_last"] = sum(self._losses[-tenth:]) / tenth
        if self._shares:
            measured["ewc_gradient_share"] = sum(self._shares) / len(self._shares)
        return measured
