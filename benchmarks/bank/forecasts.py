"""How good probabilities of success were, now that the outcomes are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Chances = npt.NDArray[np.float64]
Outcomes = npt.NDArray[np.bool_]


def auroc(chances: Chances, succeeded: Outcomes) -> float:
    """How often a success was given a larger chance than a failure, over all pairs of the two; a tie counts half.

    It is the area under the receiver operating characteristic (Hanley & McNeil 1982): from 0 to 1, .5 for what knows
    nothing, and .5 where there are no such pairs. Through the ranks (Mann & Whitney 1947), so n log n for (n,) chances.
    """
    successes = int(succeeded.sum())
    pairs = successes * (len(succeeded) - successes)
    if not pairs:
        return 0.5
    _, place, count = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; equal chances share the mean of their ranks
    return float((ranks[succeeded].sum() - successes * (successes + 1) / 2) / pairs)


def brier(chances: Chances, succeeded: Outcomes) -> float:
    """Mean squared difference of the chance and the outcome, 0 or 1 (Brier 1950): 0 is best, .25 a coin's."""
    return float(np.square(chances - succeeded).mean())
