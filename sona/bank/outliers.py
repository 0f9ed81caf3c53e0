"""Rows that belong to no cluster: set aside, so that they move no centroid.

The trimming of trimmed k-means (Cuesta-Albertos, Gordaliza & Matrán 1997, doi:10.1214/aos/1031833664), where the share
to be trimmed follows from the data instead of being given.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.bank.lloyd import Partition, Points, directions
from sona.bank.vectors import Ints, lengths
from sona.checks import Float32

Mask = npt.NDArray[np.bool_]

DEVIATIONS = 4.0
"""Below the usual cosine: of 5,000 rows of a Gaussian less than one lies farther out."""
LEAST_DEVIATION = 0.01
"""Of a cosine; where all rows are nearly alike, a nearby one is no outlier."""
LEAST_ROWS = 16
"""Fewer rows, of all or of one cluster, don't say what is usual."""
TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


def outliers(points: Points, partition: Partition) -> Mask:
    """(n,) the points that lie far out both of all points and of their own cluster, where it is large enough to tell.

    Both, because a loose cluster beside tight ones is a cluster. How far out a point lies is its cosine to the centroid
    of the *other* points of its cluster: to one that it made alone, its cosine is 1. Points that are repeated, and all
    points of a cluster that would lose its last, are none.
    """
    if len(points) < LEAST_ROWS:
        return np.zeros(len(points), dtype=np.bool_)
    cosines = left_out_cosines(points, partition)
    far = (cosines < bar(cosines)) & (points.weights < 2)
    order = np.argsort(partition.labels, kind="stable")
    ends = np.searchsorted(partition.labels[order], np.arange(len(partition.sums) + 1))
    for label in np.unique(partition.labels[far]):
        members = order[ends[label] : ends[label + 1]]
        if len(members) >= LEAST_ROWS:
            far[members] &= cosines[members] < bar(cosines[members])
        elif far[members].all():
            far[members] = False
    return np.asarray(far)


def left_out_cosines(points: Points, partition: Partition) -> Float32:
    """(n,) the cosine of each point to the sum of its cluster without it; of a cluster's only one, to the nearest other
    centroid, or 1 where there is no other.
    """
    rest = partition.sums[partition.labels] - points.rows
    length = lengths(rest)
    cosines = np.einsum("nd,nd->n", rest, points.rows) / np.maximum(length, 1e-12)
    counts = np.bincount(partition.labels, points.weights)
    alone = np.flatnonzero(counts[partition.labels] < 2)
    if len(alone):
        cosines[alone] = _to_others(points.rows[alone], directions(points, partition), partition.labels[alone])
    return np.asarray(cosines)


def _to_others(rows: Float32, centroids: Float32, own: Ints) -> Float32:
    cosines = np.einsum("nd,kd->nk", rows, centroids)
    cosines[np.arange(len(rows)), own] = -np.inf
    return np.asarray(np.where(len(centroids) > 1, cosines.max(1), 1.0), dtype=np.float32)


def bar(cosines: Float32) -> float:
    """Below which one of `cosines` (n,) is far out: so many deviations below the median."""
    median = _median(cosines)
    deviation = TO_SIGMA * _median(np.abs(cosines - median))
    return median - DEVIATIONS * max(deviation, LEAST_DEVIATION)


def _median(values: Float32) -> float:
    """The upper one of two; a fifth of the time of np.median."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])
