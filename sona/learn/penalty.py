"""The quadratic pull of EWC++ in one cycle: as a penalty's gradient or a proximal step, on weights or on products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sona.learn.anchors import combined
from sona.learn.products import Products

if TYPE_CHECKING:
    from sona.learn.ewc import EwcState


@dataclass(frozen=True, eq=False, slots=True)
class Penalty:
    """λ/2 Σ_k Σ_i I_ki (θ_i − a_ki)² over the anchors k of a state.

    It costs a step the same for any number of anchors. The importance is that of the cycles before, and stays while the
    cycle trains.
    """

    stiffness: Tensor
    """(P,) K = λ Σ_k I_k."""
    anchor: Tensor
    """(P,) c: the one anchor, or what stands for all of them."""
    rest: Tensor
    """A scalar, nats: what is left at c because the anchors differ; 0 with one."""

    @classmethod
    def of(cls, state: EwcState, lam: float) -> Penalty:
        """The penalty of strength ``lam`` (λ) that ``state`` asks for."""
        anchors = state.anchors
        centre = combined(anchors)
        rest = centre.weights.new_zeros(())
        if len(anchors) > 1:
            for anchor in anchors:
                rest += 0.5 * lam * (anchor.importance * (anchor.weights - centre.weights).square()).sum()
        return cls(centre.importance * lam, centre.weights, rest)

    def value(self, weights: Tensor) -> Tensor:
        """The penalty, nats, a scalar, for ``weights`` (P,)."""
        return 0.5 * (self.stiffness * (weights - self.anchor).square()).sum() + self.rest

    def gradient(self, weights: Tensor) -> Tensor:
        """K (θ − c), (P,): the derivative of :meth:`value`, without autograd."""
        return torch.sub(weights, self.anchor).mul_(self.stiffness)

    def settled(self, weights: Tensor, rate: float) -> Tensor:
        """(θ + ηK c) / (1 + ηK), (P,): where the penalty lets ``weights`` (P,) settle in a step of ``rate`` (η).

        The exact minimiser over z of penalty(z) + ‖z − θ‖² / 2η, the proximal operator (Parikh, Boyd 2014, "Proximal
        Algorithms", §1.1). It always lies between θ and c, so no λ is too large, where a gradient step on the penalty
        overshoots from ηK = 2 on.
        """
        pull = self.stiffness * rate
        return torch.lerp(weights, self.anchor, pull.div_(pull + 1.0))


@dataclass(frozen=True, eq=False, slots=True)
class ProductPenalty:
    """The same pull on the products ΔW = s B A, felt by A and B.

    Three vectors of as many numbers as the adapted base weights are held, and two more for the moment of a step: for a
    model of 1e9 weights 12 GB and 8 GB. For a large model choose ``train.ewc_on = "weights"``.
    """

    penalty: Penalty
    """On vectors (D,)."""
    products: Products

    def value(self, weights: Tensor) -> Tensor:
        """λ/2 Σ I (ΔW − c)², nats, a scalar, for ``weights`` (P,)."""
        return self.penalty.value(self.products.of(weights))

    def gradient(self, weights: Tensor) -> Tensor:
        """Its derivative by A and B, (P,), for ``weights`` (P,)."""
        return self.products.pulled_back(self.penalty.gradient(self.products.of(weights)), weights)
