"""Spherical k-means on FAISS: starts, Lloyd's algorithm, splits and merges, outliers set aside.

One OpenMP thread: two threads under load were measured 10-100 times slower, and an agent's process has better uses for
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from sona.bank.lloyd import Partition, Points, around, directions, lloyd, nearest
from sona.bank.outliers import Mask, outliers
from sona.bank.split_merge import repaired
from sona.bank.starts import farthest_first, greedy_plus_plus
from sona.bank.vectors import Ints, distinct, lengths, reduced_seed, sums_by_label, unit_rows
from sona.checks import Float32, Int32
from sona.errors import InvalidInputError

__all__ = ["Clusters", "reduced_seed", "spherical_kmeans", "sums_by_label", "unit_rows"]

faiss.omp_set_num_threads(1)

STARTS = (farthest_first, greedy_plus_plus)
BEFORE_REPAIR = 2
"""Iterations before splits and merges; 1 costs purity, 3 only time."""
UNIT = 1e-4
"""A norm no farther from 1 is 1, but for rounding."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of n rows."""

    centroids: Float32
    """(k, width), unit norm: the direction of the sum of its rows that are no outliers."""
    labels: Int32
    """(n,) cluster of each row; the nearest one of an outlier."""
    similarity: Float32
    """(n,) cosine of each row to its centroid."""
    outliers: Mask
    """(n,) rows that are far from every cluster: they moved no centroid. No cluster consists of them."""

    @property
    def objective(self) -> float:
        """The sum of the cosines of all rows to their centroids: what spherical k-means makes large."""
        return float(self.similarity.sum(dtype=np.float64))


def spherical_kmeans(
    x: Float32, k: int, seed: int, *, starts: int = 1, iterations: int = 25, exchanges: bool = True
) -> Clusters:
    """``x`` in ``k`` clusters of large cosines to their centroids (Dhillon & Modha 2001, doi:10.1023/A:1007612920971).

    From each start Lloyd's algorithm, then splits and merges as long as they help (:mod:`sona.bank.split_merge`), then
    Lloyd's algorithm until no row changes its cluster; the best start by the sum of cosines counts. Rows that belong to
    no cluster are set aside after that (:mod:`sona.bank.outliers`).

    Args:
        x: (n, width) float32. Directions count, not norms. Equal rows count once for the choice of the starts, by their
            number for the centroids. Rows of zeros have no direction, and are outliers of similarity 0.
        k: clusters wanted; at most the number of distinct directions are made.
        seed: any whole number; the same seed and data give the same clusters.
        starts: the first is farthest-first, the second greedy k-means++, and so on in turn. After splits and merges
            they hardly differ, and each costs as much as the first.
        iterations: of Lloyd's algorithm at the end, at most.
        exchanges: splits and merges. Without them small far groups keep a cluster each, at the cost of the sum of
            cosines: right where clusters are many, and put together afterwards.

    Returns:
        Clusters, none of them empty.

    Raises:
        InvalidInputError: ``x`` is not of two dimensions, has no row with a direction, or holds NaN or infinities; or
            ``k``, ``starts`` or ``iterations`` is below 1.
    """
    _check_counts(k=k, starts=starts, iterations=iterations)
    rows, real = _directions_of(x)
    first, of, count = distinct(rows)
    points = Points.of(rows if len(first) == len(rows) else rows[first], count)
    rng = np.random.default_rng(reduced_seed(seed))
    partition = max(
        (_from_start(points, min(k, len(points)), number, rng, iterations, exchanges) for number in range(starts)),
        key=lambda found: found.objective,
    )
    centroids, labels, aside = _trimmed(points, partition, iterations)
    found = Clusters(centroids, labels[of].astype(np.int32), _cosines(rows, centroids[labels[of]]), aside[of])
    return found if real.all() else _with_rows_of_zeros(found, real)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InvalidInputError(f"{name}: {value}; 1 or more is allowed")


def _directions_of(x: Float32) -> tuple[Float32, Mask]:
    """The rows of ``x`` that have a direction, with norm 1, and which they are."""
    if x.ndim != 2 or not x.size:
        raise InvalidInputError(f"rows to cluster: shape {x.shape}; (n, width) with at least one number is allowed")
    x = np.ascontiguousarray(x, dtype=np.float32)
    norms = lengths(x)
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise InvalidInputError(
            f"rows to cluster: row {bad} holds NaN, an infinity or numbers beyond float32's range; leave it out"
        )
    real = norms > 0
    if not real.any():
        raise InvalidInputError(f"rows to cluster: all {len(x)} are zero, which has no direction; leave them out")
    if (np.abs(norms - 1) < UNIT).all():
        return x, real
    return unit_rows(x[real]), real


def _from_start(
    points: Points, k: int, number: int, rng: np.random.Generator, iterations: int, exchanges: bool
) -> Partition:
    places = STARTS[number % len(STARTS)](points, k, rng)
    begun = lloyd(points, around(points, points.rows[places]), BEFORE_REPAIR - 1)
    return lloyd(points, repaired(points, begun) if exchanges else begun, iterations)


def _trimmed(points: Points, partition: Partition, iterations: int) -> tuple[Float32, Ints, Mask]:
    """Centroids (k, width) that outliers had no part in, the label of each point, and which points are outliers."""
    aside = outliers(points, partition)
    if not aside.any():
        return directions(points, _summed(points, partition.labels)), partition.labels, aside
    inner = points.only(np.flatnonzero(~aside))
    settled = lloyd(inner, _summed(inner, partition.labels[~aside]), iterations)
    centroids = directions(inner, _summed(inner, settled.labels))
    labels = nearest(points.rows, centroids)[0]
    labels[~aside] = settled.labels
    return centroids, labels, aside


def _summed(points: Points, labels: Ints) -> Partition:
    """The same clusters with sums made anew: differences gather rounding errors."""
    return Partition(labels, sums_by_label(points.weighted, labels))


def _cosines(rows: Float32, others: Float32) -> Float32:
    return np.asarray(np.einsum("nd,nd->n", rows, others))


def _with_rows_of_zeros(found: Clusters, real: Mask) -> Clusters:
    """``found`` of the rows that are ``real`` (n,) as clusters of all n."""
    labels = np.zeros(len(real), dtype=np.int32)
    similarity = np.zeros(len(real), dtype=np.float32)
    aside = np.ones(len(real), dtype=np.bool_)
    labels[real], similarity[real], aside[real] = found.labels, found.similarity, found.outliers
    return Clusters(found.centroids, labels, similarity, aside)
