"""Spherical k-means on FAISS.

One OpenMP thread: two threads under load were measured 10-100 times slower, and an agent's process has better uses for
them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from sona.checks import Float32, Int32

faiss.omp_set_num_threads(1)

_Real = TypeVar("_Real", np.float32, np.float64)


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


def sums_by_label(x: npt.NDArray[_Real], labels: npt.NDArray[np.integer]) -> npt.NDArray[_Real]:
    """The sum of the rows of ``x`` (n, width) under each of ``labels`` (n,): (labels, width)."""
    sums = np.zeros((int(labels.max()) + 1, x.shape[1]), dtype=x.dtype)
    np.add.at(sums, labels, x)
    return sums


def reduced_seed(seed: int) -> int:
    """``seed``, any whole number, as one from 1 to 2**30: FAISS takes a C int, adds to it, and takes 0 for none."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % 2**30


def spherical_kmeans(x: Float32, k: int, seed: int, *, starts: int = 4, iterations: int = 25) -> Clusters:
    """The best of ``starts`` runs of spherical k-means (Dhillon & Modha 2001), by the sum of cosines.

    Args:
        x: (n, width) float32, unit rows. Equal rows count once for the choice of the starts, by their number for the
            centroids.
        k: clusters wanted; at most the number of distinct rows are made.
        seed: any whole number; the same seed and data give the same clusters.
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
        seed=reduced_seed(seed),
        min_points_per_centroid=1,
        max_points_per_centroid=max(len(x), 1),
    )
    kmeans.train(x)
    _, labels = kmeans.index.search(x, 1)
    return _without_empty(x, labels[:, 0].astype(np.int32))


def _without_empty(x: Float32, labels: Int32) -> Clusters:
    """Number the used clusters from 0, with centroids that are their members' mean direction."""
    numbered = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    centroids = unit_rows(sums_by_label(x, numbered))
    return Clusters(centroids, numbered, np.einsum("nd,nd->n", x, centroids[numbered]))
