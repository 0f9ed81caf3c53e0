"""Rows in small pieces, which Ward's agglomeration puts together; and how many groups that makes."""

from __future__ import annotations

import numpy as np

from sona.bank.clustering import spherical_kmeans
from sona.bank.vectors import Ints, distinct
from sona.bank.ward import Groups, agglomerated, scale_of
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import InvalidInputError

ALONE = 256
"""Up to so many rows each is a piece of its own."""
PIECE, MOST_PIECES = 8, 1024
"""Of more, so many rows make a piece, until there are so many pieces."""


def pieces_of(x: Float32, seed: int) -> list[Ints]:
    """The places of the rows of each piece of ``x`` (n, width), unit rows: equal rows are one, and of many rows those
    that are alike.
    """
    if len(x) <= ALONE:
        labels = distinct(x)[1]
    else:
        k = min(max(ALONE, len(x) // PIECE), MOST_PIECES)
        labels = spherical_kmeans(x, k, seed, exchanges=False).labels.astype(np.intp)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def choose_k(x: Float32, seed: int, *, low: int = 1, high: int = 1024, grain: float = BankConfig().grain) -> int:
    """How many groups of at least two rows ``x`` has, by the rule that the bank makes patterns with
    (:mod:`sona.bank.ward`).

    Of mixtures of 50 Gaussians it finds 50 or 51, whether they lie near or differ in size by 50 to 1, and where 5 to
    20 % of the rows are outliers; with 20 rows each amid twice as much noise, 38. Real queries run into each other: the
    more there are, the finer the groups that the evidence carries, about one for 30.

    Args:
        x: float32 (n, width), unit rows.
        seed: any whole number; the same seed and data give the same number.
        low: no fewer, unless there are fewer rows.
        high: no more.
        grain: see :class:`sona.config.BankConfig`.

    Raises:
        InvalidInputError: the bounds are below 1 or the wrong way round, or ``x`` can't be clustered.
    """
    if not 1 <= low <= high:
        raise InvalidInputError(f"low, high: {low}, {high}; 1 or more, the lower one first, is allowed")
    found = spherical_kmeans(x, max(min(len(x) // PIECE, MOST_PIECES), 1), seed, exchanges=False)
    labels = found.labels[~found.outliers]
    pieces = [np.flatnonzero((found.labels == label) & ~found.outliers) for label in np.unique(labels)]
    counts = np.asarray([len(rows) for rows in pieces], dtype=np.float64)
    groups = Groups(counts, np.stack([x[rows].sum(0, dtype=np.float64) for rows in pieces]))
    sizes = np.bincount(agglomerated(groups, scale_of(groups, grain)), counts)
    return min(max(int((sizes > 1).sum()), low), high, max(len(x), 1))
