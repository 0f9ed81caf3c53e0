"""How much each answer counts: quality against what is usual for its pattern."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sona.config import TrainConfig


def advantage_weights(
    quality: Sequence[float], baseline: Sequence[float], settings: TrainConfig
) -> npt.NDArray[np.float64]:
    """Weight of each answer's log-likelihood: exp(advantage / beta), bounded, with mean 1.

    The advantage is quality minus the mean quality of the answer's pattern. Advantage-weighted regression (Peng et al.
    2019, arXiv:1910.00177, eq. 9) imitates in proportion to exp(advantage / beta): unlike the advantage itself that is
    never negative, so it is safe on answers that another policy wrote, and a pattern whose answers are all right is
    still learned.

    Args:
        quality: (n,) in [0, 1].
        baseline: (n,) the usual quality of each answer's pattern.
        settings: ``advantage_beta`` and ``max_weight``.

    Returns:
        (n,) float64, positive, mean 1; empty for none.
    """
    if not len(quality):
        return np.zeros(0)
    advantage = np.asarray(quality, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    weights = np.minimum(np.exp(advantage / settings.advantage_beta), settings.max_weight)
    return np.asarray(weights / weights.mean())


def push_weights(quality: Sequence[float], baseline: Sequence[float], settings: TrainConfig) -> npt.NDArray[np.float64]:
    """How strongly each answer that was turned down is pushed away: ``push_weight`` for each unit of quality below the
    mean of its pattern, where 0 is one that is no worse than usual there.

    Args:
        quality: (n,) in [0, 1].
        baseline: (n,) the usual quality of each answer's pattern.
        settings: ``push_weight``.

    Returns:
        (n,) float64, from 0 to ``push_weight``.
    """
    advantage = np.asarray(quality, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return np.asarray(settings.push_weight * np.clip(-advantage, 0.0, 1.0))
