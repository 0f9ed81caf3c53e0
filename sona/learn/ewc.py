"""EWC++: a quadratic pull towards the weights that earlier cycles ended with, strong where they matter.

Chaudhry, Dokania, Ajanthan, Torr 2018, "Riemannian Walk for Incremental Learning" (arXiv:1801.10112), §4. A weight
matters by two measures: the Fisher information at the end of the path (how much its change changes the answers) and the
path's score (how much loss its change saved on the way, per unit of change in the answers). With θ* the anchor,

    penalty(θ) = λ/2 Σ_i I_i (θ_i − θ*_i)²,     I = importance from both, of mean 1 over all weights.

Everything is a vector (P,) float32 laid out as :class:`sona.learn.flat.Layout` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sona.errors import ModelError
from sona.learn.flat import Layout

_GROUPS = ("fisher", "score", "anchor")


@dataclass(frozen=True, eq=False, slots=True)
class EwcState:
    """What earlier cycles leave to the next one. Never changed in place."""

    layout: Layout
    fisher: Tensor
    """(P,) running average of the Fisher information's diagonal, nats² per squared unit of weight."""
    score: Tensor
    """(P,) path score, averaged over the cycles; without a unit."""
    anchor: Tensor
    """(P,) θ*: the weights at the end of the last cycle."""
    updates: int
    """Batches that went into ``fisher`` since it was first measured."""

    def fitted(self, layout: Layout, device: torch.device) -> EwcState:
        """The same state with its vectors on ``device``.

        Raises:
            ModelError: it belongs to an adapter of another ``layout``.
        """
        if layout != self.layout:
            raise ModelError("EWC state: made with another adapter shape; begin a new state for this adapter")
        return replace(self, **{name: getattr(self, name).to(device) for name in _GROUPS})


def initial_state(fisher: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> EwcState:
    """The state before the first cycle: ``fisher`` measured on the base model's own answers, anchored at ``weights``.

    With it the first cycle is already held where the base model is sensitive.

    Raises:
        ModelError: the two name different tensors.
    """
    layout = Layout.of(weights)
    information = layout.join(fisher)
    return EwcState(layout, information, torch.zeros_like(information), layout.join(weights), updates=0)


def importance(state: EwcState) -> Tensor:
    """I (P,), 0 or more, of mean 1: Fisher information and path score, each divided by its own mean, in equal parts.

    A part that is zero throughout (no score yet, nothing measured yet) is left out. The paper divides by the maximum,
    which here is an outlier: over the cycles of one stream the Fisher information's maximum was 55 to 980 times its
    mean, so one λ would mean many, and the score's only 5 to 32 times, so it alone would decide.
    """
    return _mean_of_scaled(state.fisher, state.score)


def _mean_of_scaled(*parts: Tensor) -> Tensor:
    """The mean of the vectors (P,), 0 or more, each divided by its own mean first; an all-zero one is left out."""
    scaled = [part / part.mean() for part in parts if bool(part.any())]
    return torch.stack(scaled).mean(dim=0) if scaled else torch.zeros_like(parts[0])


@dataclass(frozen=True, eq=False, slots=True)
class Penalty:
    """The quadratic pull of one cycle; its importance is that of the cycles before, and stays while it trains."""

    stiffness: Tensor
    """(P,) λ I."""
    anchor: Tensor
    """(P,) θ*."""

    @classmethod
    def of(cls, state: EwcState, lam: float) -> Penalty:
        """The penalty of strength ``lam`` (λ) that ``state`` asks for."""
        return cls(importance(state) * lam, state.anchor)

    def value(self, weights: Tensor) -> Tensor:
        """½ Σ_i λ I_i (θ_i − θ*_i)², nats, a scalar, for ``weights`` (P,)."""
        return 0.5 * (self.stiffness * (weights - self.anchor).square()).sum()

    def gradient(self, weights: Tensor) -> Tensor:
        """λ I (θ − θ*), (P,): the derivative of :meth:`value`, without autograd."""
        return torch.sub(weights, self.anchor).mul_(self.stiffness)


class Walk:
    """What is observed on the way through one cycle; becomes the next state by :meth:`consolidate`."""

    def __init__(self, state: EwcState, weights: Tensor) -> None:
        self._state = state
        self.fisher = state.fisher.clone()
        """(P,) the running average."""
        self.path = torch.zeros_like(weights)
        """(P,) nats of task loss saved by each weight since its score was last taken."""
        self.score = torch.zeros_like(weights)
        """(P,) this cycle's path score."""
        self._mark = weights.clone()
        self._updates = state.updates

    def observe_fisher(self, batch: Tensor, decay: float) -> None:
        """F ← decay F + (1 − decay) F_batch (eq. 9 of the paper), for a batch's Fisher information (P,)."""
        self.fisher.lerp_(batch, 1.0 - decay)
        self._updates += 1

    def observe_step(self, gradient: Tensor, before: Tensor, after: Tensor) -> None:
        """One optimizer step from ``before`` to ``after`` (P,): add −g·Δθ, the loss it saved, to the path.

        ``gradient`` (P,) is that of the task's loss alone, unclipped: the penalty saves no loss.
        """
        self.path.addcmul_(gradient, before - after)

    def take_score(self, weights: Tensor) -> None:
        """Add max(0, path) / (½ F Δθ² + ε) since the last call to the score, and begin a new path at ``weights``.

        The denominator is the KL divergence, in nats, between the answers before and after the change (§3 of the
        paper). ε is its mean over all weights, so that a weight that hardly moved gets no arbitrary score, in whatever
        scale weights move.
        """
        divergence = 0.5 * self.fisher * (weights - self._mark).square()
        divergence += divergence.mean() + 1e-20  # for weights that did not move at all
        self.score += self.path.clamp(min=0.0).div_(divergence)
        self.path.zero_()
        self._mark.copy_(weights)

    def consolidate(self, weights: Tensor) -> EwcState:
        """The state after this cycle, anchored at ``weights`` (P,).

        Scores of the old cycles and of this one are averaged (§4.2), each scaled to a mean of 1, since a score grows
        with the number of steps.
        """
        score = _mean_of_scaled(self._state.score, self.score)
        return replace(
            self._state, fisher=self.fisher.clone(), score=score, anchor=weights.clone(), updates=self._updates
        )


def to_tensors(state: EwcState) -> dict[str, Tensor]:
    """The state for a safetensors file: ``fisher/<name>``, ``score/<name>``, ``anchor/<name>`` and ``updates``."""
    tensors = {"updates": torch.tensor(state.updates, dtype=torch.int64)}
    for group in _GROUPS:
        for name, tensor in state.layout.split(getattr(state, group)).items():
            tensors[f"{group}/{name}"] = tensor.detach().cpu().clone()  # safetensors refuses views of one memory
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> EwcState:
    """The state that :func:`to_tensors` wrote.

    Raises:
        ModelError: a tensor is missing, of another shape than its weight, not finite, or a negative Fisher or score.
    """
    groups = {
        group: {key.removeprefix(f"{group}/"): value for key, value in tensors.items() if key.startswith(f"{group}/")}
        for group in _GROUPS
    }
    if "updates" not in tensors or not groups["anchor"]:
        raise ModelError("EWC state: no 'updates' or no anchor; this is no EWC state")
    layout = Layout.of(groups["anchor"])
    vectors = {group: layout.join(named) for group, named in groups.items()}
    for group, vector in vectors.items():
        if not bool(torch.isfinite(vector).all()) or (group != "anchor" and bool((vector < 0).any())):
            raise ModelError(f"EWC state: {group} holds a number that is not finite, or negative; it was not loaded")
    return EwcState(layout, **vectors, updates=int(tensors["updates"]))
