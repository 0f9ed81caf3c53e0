"""What EWC++ observes on the way through one cycle: Fisher information and the path's score."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sona.learn.ewc import EwcState, scaled_mean


class Walk:
    """Becomes the next state by :meth:`consolidate`.

    On products (see :class:`sona.learn.ewc.EwcState`) no score is taken: it would need the gradient of each ΔW at every
    step, which a LoRA step never forms.
    """

    def __init__(self, state: EwcState, weights: Tensor) -> None:
        """Begin at ``weights`` (P,), which are not needed, and may be empty, where no score is taken."""
        self._state = state
        self._scored = state.on == "weights"
        self.fisher = state.fisher.clone()
        """(P,) the running average."""
        self.path = torch.zeros_like(state.score)
        """(P,) nats of task loss saved by each weight since its score was last taken."""
        self.score = torch.zeros_like(state.score)
        """(P,) this cycle's path score."""
        self._mark = weights.clone() if self._scored else state.score
        self._updates = state.updates

    def observe_fisher(self, batch: Tensor, decay: float) -> None:
        """F ← decay F + (1 − decay) F_batch (eq. 9 of the paper), for a batch's Fisher information (P,)."""
        self.fisher.lerp_(batch, 1.0 - decay)
        self._updates += 1

    def observe_step(self, gradient: Tensor, before: Tensor, after: Tensor) -> None:
        """One optimizer step from ``before`` to ``after`` (P,): add −g·Δθ, the loss it saved, to the path.

        ``gradient`` (P,) is that of the task's loss alone, unclipped: the penalty saves no loss.
        """
        if self._scored:
            self.path.addcmul_(gradient, before - after)

    def take_score(self, weights: Tensor) -> None:
        """Add max(0, path) / (½ F Δθ² + ε) since the last call to the score, and begin a new path at ``weights``.

        The denominator is the KL divergence, in nats, between the answers before and after the change (§3 of the
        paper). ε is its mean over all weights, so that a weight that hardly moved gets no arbitrary score, in whatever
        scale weights move.
        """
        if not self._scored:
            return
        divergence = 0.5 * self.fisher * (weights - self._mark).square()
        divergence += divergence.mean() + 1e-20  # for weights that did not move at all
        self.score += self.path.clamp(min=0.0).div_(divergence)
        self.path.zero_()
        self._mark.copy_(weights)

    def consolidate(self, weights: Tensor) -> EwcState:
        """The state after this cycle, its latest anchor moved to ``weights`` (P,) and holding in full.

        Scores of the old cycles and of this one are averaged (§4.2), each scaled to a mean of 1, since a score grows
        with the number of steps; the old ones count less where the state was released, and not after a boundary.
        """
        score = scaled_mean((self._state.score, self._state.kept), (self.score, 1.0))
        return replace(
            self._state,
            fisher=self.fisher.clone(),
            score=score,
            anchor=weights.clone(),
            updates=self._updates,
            kept=1.0,
        )
