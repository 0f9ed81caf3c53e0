"""Lloyd's algorithm on the sphere: rows go to the centroid of the largest cosine, centroids to their rows' direction.

An iteration costs one product of rows and centroids, in FAISS, and the sums of those rows that changed their cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from sona.bank.vectors import Ints, lengths, sums_by_label, unit_rows
from sona.checks import Float32

CANCELLED = 1e-6
"""A sum of unit rows no longer than this share of their number is rounding, and has no direction."""


@dataclass(frozen=True, eq=False)
class Points:
    """What is clustered: rows that differ, and how much each of them counts."""

    rows: Float32
    """(n, width), unit norm, contiguous."""
    weights: Float32
    """(n,) at least 1."""
    weighted: Float32
    """(n, width) ``rows`` times ``weights``; the same array where every weight is 1."""

    @classmethod
    def of(cls, rows: Float32, weights: Ints) -> Points:
        """The rows (n, width) with their weights (n,)."""
        weight = weights.astype(np.float32)
        weighted = rows if (weight == 1).all() else rows * weight[:, None]
        return cls(rows, weight, weighted)

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, kept: Ints) -> Points:
        """Those at the places ``kept``."""
        rows = np.ascontiguousarray(self.rows[kept])
        return Points(rows, self.weights[kept], rows if self.weighted is self.rows else self.weighted[kept])


@dataclass(frozen=True, eq=False)
class Partition:
    """Points in clusters, none of them empty."""

    labels: Ints
    """(n,)"""
    sums: Float32
    """(k, width) of each cluster's weighted rows. Its length is the sum of their cosines to its direction."""

    @property
    def objective(self) -> float:
        """The sum of the weighted cosines of all points to their centroids: what is to be large."""
        return float(lengths(self.sums).sum(dtype=np.float64))


def nearest(rows: Float32, centroids: Float32) -> tuple[Ints, Float32]:
    """Of each of ``rows`` (n, width) the centroid of largest inner product, and that product: (n,) each."""
    faiss.omp_set_num_threads(1)  # it holds for the calling thread alone, and cycles run in one of their own
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    similarity, places = index.search(rows, 1)
    return places[:, 0].astype(np.intp), similarity[:, 0]


def around(points: Points, centroids: Float32, before: Partition | None = None) -> Partition:
    """Each point in the cluster of its nearest of ``centroids`` (k, width), k no more than there are points.

    A cluster without points gets the one that is farthest from its centroid, so that k stays k. From the partition
    ``before``, of as many clusters, the sums follow faster; it is the same object where no point changes its cluster.
    """
    labels = _assigned(points, centroids)
    if before is None:
        return Partition(labels, sums_by_label(points.weighted, labels, len(centroids)))
    moved = np.flatnonzero(labels != before.labels)
    if not len(moved):
        return before
    changed = points.weighted[moved]
    entered = sums_by_label(changed, labels[moved], len(centroids))
    return Partition(labels, before.sums + entered - sums_by_label(changed, before.labels[moved], len(centroids)))


def lloyd(points: Points, partition: Partition, iterations: int) -> Partition:
    """``partition`` after at most so many iterations, fewer where no point changes its cluster any more."""
    for _ in range(iterations):
        before, partition = partition, around(points, directions(points, partition), partition)
        if partition is before:
            break
    return partition


def directions(points: Points, partition: Partition) -> Float32:
    """Unit centroids (k, width) of the clusters; that of rows which cancel out is the first of them."""
    centroids = unit_rows(partition.sums)
    weight = np.bincount(partition.labels, points.weights, minlength=len(centroids))
    for label in np.flatnonzero(lengths(partition.sums) <= CANCELLED * weight):
        centroids[label] = points.rows[int(np.argmax(partition.labels == label))]
    return centroids


def _assigned(points: Points, centroids: Float32) -> Ints:
    """(n,) the nearest centroid of each point, after the empty clusters have got one each."""
    labels, similarity = nearest(points.rows, centroids)
    counts = np.bincount(labels, minlength=len(centroids))
    for label in np.flatnonzero(counts == 0):
        farthest = int(np.where(counts[labels] > 1, similarity, np.inf).argmin())
        counts[labels[farthest]] -= 1
        labels[farthest], similarity[farthest], counts[label] = label, np.inf, 1
    return labels
