"""How good weights are: against the facts that an answer is known to rest on, and as a forecast."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def precision_at(weights: Float64, right: Collection[int], k: int) -> float:
    """The share of right ones among the ``k`` heaviest; among equals, as often as a draw finds them."""
    order = np.sort(weights)[::-1]
    least = order[k - 1]
    sure = weights > least
    equal = weights == least
    chosen = np.zeros(len(weights))
    chosen[list(right)] = 1.0
    open_places = k - int(sure.sum())
    return float((chosen[sure].sum() + open_places * chosen[equal].mean()) / k)


def lds(weights: Float64, kept: Bool, outcomes: Float64) -> float:
    """Linear datamodeling score (Park et al. 2023, "TRAK", arXiv:2303.14186, definition 2.3): Spearman's correlation
    between what the weights foretell, the sum over the memories that are there, and what came out.

    Args:
        weights: (memories,)
        kept: (runs, memories)
        outcomes: (runs,)

    Returns:
        From -1 to 1; 0 where the forecast or the outcomes are all equal, for that tells nothing.
    """
    return correlation(ranks(kept.astype(np.float64) @ weights), ranks(outcomes))


def ranks(values: Float64) -> Float64:
    """From 0; equals share their mean rank. Sums that differ by rounding alone count as equal."""
    close = np.round(values / max(float(np.abs(values).max(initial=0.0)), 1e-300), 9)
    _, inverse, counts = np.unique(close, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def correlation(one: Float64, other: Float64) -> float:
    """Pearson's; 0 where one does not vary."""
    a, b = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0
