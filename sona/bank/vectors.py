"""Rows of numbers: their directions, their sums by label, and a seed that FAISS and numpy take.

Nothing here multiplies matrices through numpy: its BLAS takes all cores unless the host says otherwise, and an agent's
process has better uses for them. ``einsum`` takes one, and FAISS what :mod:`sona.bank.clustering` tells it.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sona.checks import Float32

_Real = TypeVar("_Real", np.float32, np.float64)

Ints = npt.NDArray[np.intp]


def lengths(x: npt.NDArray[_Real]) -> npt.NDArray[_Real]:
    """(n,) the norms of the rows of ``x`` (n, width)."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", x, x)))


def unit_rows(x: Float32) -> Float32:
    """``x`` (n, width) with rows of norm 1; rows of zeros stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norms, 1e-12), dtype=np.float32)


def sums_by_label(
    x: npt.NDArray[_Real], labels: npt.NDArray[np.integer], count: int | None = None
) -> npt.NDArray[_Real]:
    """The sum of the rows of ``x`` (n, width) under each of ``labels`` (n,): (count, width).

    ``count`` is by default one more than the largest label; a label that no row has gets zeros.
    """
    sums = np.zeros((int(labels.max()) + 1 if count is None else count, x.shape[1]), dtype=x.dtype)
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    if len(starts):
        sums[ordered[starts]] = np.add.reduceat(x[order], starts, axis=0)  # a third of the time of np.add.at
    return sums


def distinct(x: Float32) -> tuple[Ints, Ints, Ints]:
    """Places of the first of each distinct row of ``x`` (n, width), in the order in which they come; for each row,
    which of them it is; and how many rows each stands for. Rows are distinct if a bit of them differs.
    """
    whole = np.ascontiguousarray(x + 0.0)  # -0.0 becomes 0.0
    keys = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel()
    _, first, of, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[of], count[order]


def reduced_seed(seed: int) -> int:
    """``seed``, any whole number, as one from 1 to 2**30: FAISS takes a C int, adds to it, and takes 0 for none."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % 2**30
