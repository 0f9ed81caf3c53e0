"""Where k-means begins: places of k points that lie apart."""

from __future__ import annotations

import numpy as np

from sona.bank.lloyd import Points
from sona.bank.vectors import Ints
from sona.checks import Float32


def farthest_first(points: Points, k: int, rng: np.random.Generator) -> Ints:
    """Places (k,) of a random point, and then always of the one farthest from those chosen (Gonzalez 1985,
    doi:10.1016/0304-3975(85)90224-5). One from each cluster where clusters lie apart; outliers where there are any.
    """
    chosen = [int(rng.integers(len(points)))]
    closest = _cosines(points, chosen[0])
    for _ in range(k - 1):
        chosen.append(int(closest.argmin()))
        np.maximum(closest, _cosines(points, chosen[-1]), out=closest)
    return np.asarray(chosen, dtype=np.intp)


def greedy_plus_plus(points: Points, k: int, rng: np.random.Generator, trials: int = 2) -> Ints:
    """Places (k,) drawn by their distance to those chosen, each the best of ``trials`` (Arthur & Vassilvitskii 2007,
    section 6). The distance is 1 - cosine, half of the squared one between unit rows.
    """
    chosen = [int(rng.choice(len(points), p=_shares(points.weights)))]
    distance = 1.0 - _cosines(points, chosen[0])
    for _ in range(k - 1):
        distance[chosen[-1]] = 0.0  # not the same again, whatever rounding makes of 1 - 1
        candidates = rng.choice(len(points), size=trials, p=_shares(np.maximum(distance, 0.0) * points.weights))
        left = [np.minimum(distance, 1.0 - _cosines(points, int(place))) for place in candidates]
        best = int(np.argmin([float(each @ points.weights) for each in left]))
        chosen.append(int(candidates[best]))
        distance = left[best]
    return np.asarray(chosen, dtype=np.intp)


def _cosines(points: Points, place: int) -> Float32:
    return np.asarray(np.einsum("nd,d->n", points.rows, points.rows[place]))


def _shares(values: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    wide = values.astype(np.float64)
    total = wide.sum()
    return wide / total if total > 0 else np.full(len(wide), 1 / len(wide))
