"""Anchors of EWC++: where the weights were when a task was known, and how much each weight mattered to it.

A sum of quadratics is a quadratic, so any number of anchors pulls like one of their joint stiffness and centre:

    Σ_k ½ Σ_i I_ki (θ_i − a_ki)²  =  ½ Σ_i K_i (θ_i − c_i)² + a constant,   K = Σ_k I_k,   c = Σ_k I_k a_k / K

(Huszár 2018, arXiv:1712.03847, on what such sums do to the earlier tasks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False, slots=True)
class Anchor:
    """One task's."""

    importance: Tensor
    """(P,) float32, 0 or more; of mean 1 when it was taken."""
    weights: Tensor
    """(P,) float32."""

    def to(self, device: torch.device) -> Anchor:
        """The same on ``device``."""
        return Anchor(self.importance.to(device), self.weights.to(device))

    def weakened(self, factor: float) -> Anchor:
        """With its importance times ``factor``."""
        return Anchor(self.importance * factor, self.weights)


def combined(anchors: Sequence[Anchor]) -> Anchor:
    """K and c: the one anchor that pulls as all of them together, at least one. Where nothing matters, c is the last's.

    c is computed from the last anchor on, a_n + Σ_k I_k (a_k − a_n) / K, since anchors of one adapter lie close to each
    other and the plain sum would lose what tells them apart.
    """
    *earlier, last = anchors
    if not earlier:
        return last
    stiffness, moment = last.importance.clone(), torch.zeros_like(last.weights)
    for anchor in earlier:
        stiffness += anchor.importance
        moment.addcmul_(anchor.importance, anchor.weights - last.weights)
    return Anchor(stiffness, moment.div_(stiffness.clamp(min=_TINY)).add_(last.weights))


def limited(anchors: Sequence[Anchor], limit: int) -> tuple[Anchor, ...]:
    """The anchors, oldest first, at most ``limit`` of them, 0 or more.

    Where there are more, the two oldest become one: half of their sum, so that its importance keeps its mean of 1 and
    the pull does not grow with the number of tasks, until nothing can be learned any more. What is oldest so fades by
    half with each new task, as in online EWC (Schwarz et al. 2018, arXiv:1805.06370).
    """
    kept = list(anchors)
    if limit == 0:
        return ()
    while len(kept) > limit:
        kept[:2] = [combined(kept[:2]).weakened(0.5)]
    return tuple(kept)
