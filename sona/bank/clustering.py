"""Spherical k-means on FAISS.

One OpenMP thread: two threads under load were measured 10-100 times slower, and an agent's process has better uses for
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from sona.checks import Float32, Int32

faiss.omp_set_num_threads(1)


@dataclass(frozen=True)
class Clusters:
    """A partition of n unit vectors."""

    centroids: Float32
    """(k, width), unit norm."""
    labels: Int32
    """(n,) cluster of each vector."""
    similarity: Float32
    """(n,) cosine of each vector to its centroid."""


def unit_rows(x: Float32) -> Float32:
    """``x`` (n, width) with rows of norm 1; rows of zeros stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norms, 1e-12), dtype=np.float32)


def spherical_kmeans(x: Float32, k: int, seed: int, *, starts: int = 4, iterations: int = 25) -> Clusters:
    """The best of ``starts`` runs of spherical k-means (Dhillon & Modha 2001), by the sum of cosines.

    Args:
        x: (n, width) float32, unit rows. Equal rows count once for the choice of the starts, by their number for the
            centroids.
        k: clusters wanted; at most the number of distinct rows are made.
        seed: the same seed and data give the same clusters.
        starts: random starts.
        iterations: of Lloyd's algorithm in each.

    Returns:
        Clusters, none of them empty.
    """
    k = min(k, len(np.unique(x, axis=0)))
    # min_points_per_centroid only governs a warning on stdout; max_points would silently subsample.
    kmeans = faiss.Kmeans(
        x.shape[1],
        k,
        niter=iterations,
        nredo=starts,
        spherical=True,
        seed=seed + 1,  # FAISS takes 0 as "no seed of mine"
        min_points_per_centroid=1,
        max_points_per_centroid=max(len(x), 1),
    )
    kmeans.train(x)
    _, labels = kmeans.index.search(x, 1)
    return _without_empty(x, labels[:, 0].astype(np.int32))


def _without_empty(x: Float32, labels: Int32) -> Clusters:
    """Number the used clusters from 0, with centroids that are their members' mean direction."""
    numbered = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    sums = np.zeros((int(numbered.max()) + 1, x.shape[1]), dtype=np.float32)
    np.add.at(sums, numbered, x)
    centroids = unit_rows(sums)
    return Clusters(centroids, numbered, np.einsum("nd,nd->n", x, centroids[numbered]))
