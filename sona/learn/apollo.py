"""APOLLO and APOLLO-Mini (Zhu et al. 2024, arXiv:2412.05270): AdamW's steps on full weights without AdamW's memory.

AdamW scales each number of a gradient by itself, for which it keeps two numbers a weight. APOLLO keeps both moments of
a random projection of the gradient only, reads from them how much AdamW would scale a whole channel, or in APOLLO-Mini
the whole matrix, and scales the raw gradient by that.

For a matrix W whose smaller side is m, with the gradient G (m, n) (transposed where the first side is the larger)::

    R  = P G                   P (r, m) ~ N(0, 1/r), drawn anew every 200 steps
    R̃  = AdamW's update of R   from moments of shape (r, n)
    s_j = ‖R̃[:, j]‖ / ‖R[:, j]‖   of each channel j; APOLLO-Mini: s = ‖R̃‖ / ‖R‖
    G̃  = α G diag(s)           at most 1.01 times as long as the last step's
    W ← (1 − η λ) W − η G̃

A projection costs no memory between steps: it follows from a seed, the weight's name and the step at which it was
drawn, and is drawn again in each step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sona.errors import ConfigError, InvalidInputError, ModelError
from sona.learn.rounding import Rounding, stochastically_rounded

_COUNTS = ("step", "drawn_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApolloSettings:
    """What the optimizer depends on, beside its learning rate and its seed. The defaults are APOLLO's."""

    rank: int = 256
    """r, rows of the projection; the paper takes a quarter of the model's width. A matrix whose smaller side is not
    larger than this stays on AdamW, which then needs no more memory."""
    per_tensor: bool = False
    """One scale for a whole matrix (APOLLO-Mini) rather than one for each channel."""
    scale: float = 1.0
    """α²: 128 for APOLLO-Mini's α of √128. A projection to rank r shows about √(r / m) of AdamW's scale, which α is to
    make good; with m / r the update is as long as AdamW's would be."""
    refresh_steps: int = 200
    """Steps with one projection."""
    growth_limit: float = 1.01
    """γ: the scaled gradient is at most so many times as long as that of the step before (from Fira, Chen et al. 2024,
    arXiv:2410.01623)."""
    plain: tuple[str, ...] = ()
    """Matrices with one of these in their names stay on AdamW; the paper's experiments leave the embedding and the
    output head there. What is no matrix always does."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """λ, decoupled."""
    rounding: Rounding = "masters"
    """How weights of bfloat16 or float16 are written; float16 can't be rounded by chance."""

    def __post_init__(self) -> None:
        problems = {
            f"rank {self.rank}: 1 or more": self.rank >= 1,
            f"scale {self.scale}: above 0": 0 < self.scale < math.inf,
            f"refresh_steps {self.refresh_steps}: 1 or more": self.refresh_steps >= 1,
            f"growth_limit {self.growth_limit}: above 1": self.growth_limit > 1,
            f"betas {self.betas}: each from 0 to below 1": all(0 <= beta < 1 for beta in self.betas),
            f"eps {self.eps}: above 0": 0 < self.eps < math.inf,
            f"weight_decay {self.weight_decay}: 0 or more": 0 <= self.weight_decay < math.inf,
            f"rounding {self.rounding!r}: masters, stochastic or nearest": self.rounding in get_args(Rounding),
        }
        if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
            raise ConfigError(f"APOLLO: {'; '.join(wrong)} is allowed")


MINI = ApolloSettings(rank=1, per_tensor=True, scale=128.0)
"""APOLLO-Mini, as the paper has it."""


class Apollo(torch.optim.Optimizer):
    """APOLLO on a model's matrices, AdamW on what else there is; its arithmetic and its state are float32.

    On the CPU a run that goes on from a stored state equals the unbroken one bit for bit. On another kind of device the
    same seed gives other projections, which a state that moves there meets as it meets a refresh.

    One thing is not as in the paper. Where B = 0 the first gradient of a LoRA's A is zero, and the growth limit as
    written (γ times nothing) holds A where it is for good; so it does with each matrix that once got no gradient. Here
    an update of length 0 limits nothing after it. Still, adapters are small enough for AdamW itself
    (:class:`sona.learn.optimizer.Optimizer`), which they are trained with.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        settings: ApolloSettings,
        learning_rate: float,
        *,
        seed: int = 0,
    ) -> None:
        """``named_parameters`` as a module gives them; the names are part of the state and of every draw. Those that
        need no gradient are left alone. ``param_groups[0]["lr"]`` may be set before each step.

        Raises:
            InvalidInputError: a parameter of a precision that is not float32, bfloat16 or float16, one of float16 that
                is to be rounded by chance, or none at all.
            ConfigError: a learning rate below 0 or not finite.
        """
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        _check(named, settings, learning_rate)
        self.settings = settings
        super().__init__(named, {"lr": learning_rate, "seed": seed})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move each weight that has a gradient, which must be finite; the gradients stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for name, weight in zip(group["param_names"], group["params"], strict=True):
                if weight.grad is not None:
                    self._move(name, weight, group["lr"], group["seed"])
        return loss

    def _move(self, name: str, weight: Tensor, rate: float, seed: int) -> None:
        if not self.state[weight]:
            self.state[weight] = self._begun(name, weight)
        state = self.state[weight]
        state["step"] += 1
        gradient = weight.grad.float()  # type: ignore[union-attr]
        update = self._scaled(name, gradient, state, seed) if "norm" in state else self._adam(gradient, state)
        exact = state.get("master", weight)
        exact = exact if exact.dtype == torch.float32 else exact.float()
        if self.settings.weight_decay:
            exact.mul_(1.0 - rate * self.settings.weight_decay)
        exact.add_(update, alpha=-rate)
        if weight.dtype == torch.float32:
            return
        if self.settings.rounding == "stochastic":
            exact = stochastically_rounded(exact, _generator(weight.device, seed, "round", name, state["step"]))
        weight.copy_(exact)

    def _begun(self, name: str, weight: Tensor) -> dict[str, Any]:
        is_projected = self._is_projected(name, weight)
        shape = moment_shape(weight.shape, self.settings.rank) if is_projected else weight.shape
        state: dict[str, Any] = {"step": 0}
        state |= {moment: torch.zeros(shape, device=weight.device) for moment in ("exp_avg", "exp_avg_sq")}
        if is_projected:
            state |= {"drawn_at": 1, "norm": torch.zeros((), device=weight.device)}
        if weight.dtype != torch.float32 and self.settings.rounding == "masters":
            state["master"] = weight.detach().float()
        return state

    def _is_projected(self, name: str, weight: Tensor) -> bool:
        kept = any(part in name for part in self.settings.plain)
        return weight.ndim == 2 and min(weight.shape) > self.settings.rank and not kept

    def _adam(self, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        return adam_update(
            gradient, state["exp_avg"], state["exp_avg_sq"], state["step"], self.settings.betas, self.settings.eps
        )

    def _scaled(self, name: str, gradient: Tensor, state: dict[str, Any], seed: int) -> Tensor:
        """G̃, in the shape of the weight."""
        rows, columns = gradient.shape
        G = gradient if rows <= columns else gradient.T  # (m, n)
        if state["step"] - state["drawn_at"] >= self.settings.refresh_steps:
            state["drawn_at"] = state["step"]
        P = projection(self.settings.rank, len(G), _generator(G.device, seed, "project", name, state["drawn_at"]))
        R = P @ G  # (r, n)
        s = gradient_scale(self._adam(R, state), R, per_tensor=self.settings.per_tensor)  # (n,) or ()
        update, state["norm"] = limited(
            G * (s * math.sqrt(self.settings.scale)), state["norm"], self.settings.growth_limit
        )
        return update if rows <= columns else update.T

    def to_tensors(self) -> dict[str, Tensor]:
        """The state for a safetensors file, on the CPU.

        ``seed``; for each weight that was moved ``step/<name>`` (int64), the moments ``exp_avg/<name>`` and
        ``exp_avg_sq/<name>``, (r, n) or in the weight's shape; where it is projected ``norm/<name>``, the length of its
        last update, and ``drawn_at/<name>`` (int64); where there are masters ``master/<name>``. Else float32.
        """
        tensors = {"seed": torch.tensor(self.param_groups[0]["seed"], dtype=torch.int64)}
        for name, weight in self._named():
            for key, value in self.state.get(weight, {}).items():
                held = torch.tensor(value, dtype=torch.int64) if key in _COUNTS else value.detach().cpu().clone()
                tensors[f"{key}/{name}"] = held.contiguous()
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`to_tensors` gave, with its seed; ``tensors`` are copied. Masters take effect with the
        next step: load weights of the same moment.

        Raises:
            ModelError: the state is of other weights or settings, or holds a number that is not finite; nothing was
                loaded.
        """
        named = dict(self._named())
        loaded: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            kind, slash, name = key.partition("/")
            if slash and name not in named:
                raise ModelError(f"optimizer state: {key!r} is of no weight of this model; it was not loaded")
            if slash:
                loaded.setdefault(name, {})[kind] = tensor
        if "seed" not in tensors:
            raise ModelError("optimizer state: no 'seed'; this is no state of APOLLO")
        fresh = {name: self._checked(name, named[name], state) for name, state in loaded.items()}
        self.state.clear()
        for name, state in fresh.items():
            self.state[named[name]] = state
        for group in self.param_groups:
            group["seed"] = int(tensors["seed"])

    def _checked(self, name: str, weight: Tensor, stored: Mapping[str, Tensor]) -> dict[str, Any]:
        expected = self._begun(name, weight)
        if stored.keys() != expected.keys():
            odd = sorted(stored.keys() ^ expected.keys())
            raise ModelError(f"optimizer state of {name}: {odd} is there or missing; these settings need others")
        found: dict[str, Any] = {}
        for key, like in expected.items():
            if key in _COUNTS:
                found[key] = int(stored[key])
                continue
            if stored[key].shape != like.shape or not bool(torch.isfinite(stored[key]).all()):
                raise ModelError(
                    f"optimizer state of {name}: {key} is {tuple(stored[key].shape)}, finite numbers of "
                    f"{tuple(like.shape)} are needed; it was not loaded"
                )
            found[key] = stored[key].to(like, copy=True)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments and masters stay float32, which torch would make the precision of the weights."""
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        for place, (_, weight) in zip(places, self._named(), strict=True):
            for key, value in state_dict["state"].get(place, {}).items():
                if isinstance(value, Tensor):
                    self.state[weight][key] = value.detach().to(weight.device, copy=True)

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)


def adam_update(
    gradient: Tensor, mean: Tensor, square: Tensor, step: int, betas: tuple[float, float], eps: float
) -> Tensor:
    """m̂ / (√v̂ + ε), with the bias corrected (Kingma, Ba 2015, arXiv:1412.6980, algorithm 1).

    Args:
        gradient: any shape, float32.
        mean: m, of the same shape; it is moved on in place.
        square: v, likewise.
        step: t, which this gradient makes it, from 1.
        betas: the decays of m and v.
        eps: ε.
    """
    mean.lerp_(gradient, 1.0 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1.0 - betas[1])
    root = (square / (1.0 - betas[1] ** step)).sqrt_().add_(eps)
    return (mean / (1.0 - betas[0] ** step)).div_(root)


def moment_shape(shape: torch.Size, rank: int) -> tuple[int, int]:
    """(r, n), what APOLLO's moments of a matrix of this shape have; n is its larger side."""
    return rank, max(shape)


def projection(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """P (r, m) float32 ~ N(0, 1/r), so that ‖P x‖² is ‖x‖² in the mean (the paper's algorithm 1)."""
    return torch.randn(rank, width, generator=generator, device=generator.device) / math.sqrt(rank)


def gradient_scale(update: Tensor, projected: Tensor, *, per_tensor: bool) -> Tensor:
    """s_j = ‖R̃[:, j]‖ / ‖R[:, j]‖ (n,), or ‖R̃‖ / ‖R‖ () per tensor; 0 where nothing is to be scaled.

    Args:
        update: R̃ (r, n) float32.
        projected: R (r, n) float32.
        per_tensor: one for all.
    """
    # Not vector_norm(dim=0), which takes 3 to 7 times as long on a CPU.
    lengths = [x.square().sum(None if per_tensor else 0).sqrt_() for x in (update, projected)]
    return torch.where(lengths[1] > 0, lengths[0] / lengths[1], 0.0)


def limited(update: Tensor, last_norm: Tensor, growth: float) -> tuple[Tensor, Tensor]:
    """``update``, shortened to at most ``growth`` times ``last_norm``, and its length ().

    A last norm of 0 limits nothing: see :class:`Apollo`.
    """
    norm = torch.linalg.vector_norm(update)
    limit = torch.where(last_norm > 0, growth * last_norm, norm)
    # Not limit / norm where the limit does not bind: of equal numbers it need not be 1, and of zeros it is no number.
    factor = torch.where(norm > limit, limit / norm, 1.0)
    return update * factor, torch.minimum(norm, limit)


def _generator(device: torch.device, seed: int, *words: str | int) -> torch.Generator:
    """A generator for one draw, which follows from the seed and what is drawn alone, so that none has to be stored."""
    text = "/".join(map(str, (seed, *words)))
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
    return torch.Generator(device).manual_seed(number)


def _check(named: list[tuple[str, Tensor]], settings: ApolloSettings, learning_rate: float) -> None:
    if not named:
        raise InvalidInputError("APOLLO: no parameter needs a gradient; give a model whose weights are to be trained")
    if not 0 <= learning_rate < math.inf:
        raise ConfigError(f"APOLLO: learning rate {learning_rate}; a finite number of 0 or more is allowed")
    for name, parameter in named:
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InvalidInputError(f"APOLLO: {name} is {parameter.dtype}; float32, bfloat16 and float16 are allowed")
        if parameter.dtype == torch.float16 and settings.rounding == "stochastic":
            raise InvalidInputError(f"APOLLO: {name} is float16; only bfloat16 is rounded by chance, take masters")
