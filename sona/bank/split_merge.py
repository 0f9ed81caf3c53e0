"""What Lloyd's algorithm can't mend: one cluster that holds two groups, while two clusters share another group.

Rows don't cross the space between. So the two clusters that lose least by becoming one do so, and the one that gains
most by being cut in two is, as long as the gain is larger than the loss and the sum of cosines rises: iterative split
and merge (Kaukoranta, Fränti & Nevalainen 1998, doi:10.1117/1.601836). It also frees clusters that began at an outlier.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sona.bank.lloyd import Partition, Points, around, lloyd
from sona.bank.vectors import lengths, unit_rows
from sona.checks import Float32

ROUNDS = 12
"""At most so many; a mixture of 50 Gaussians takes 1 to 4."""
SETTLE = 3
"""Iterations of Lloyd's algorithm after each."""
POWER = 2
"""Steps of the power iteration towards the longest axis of a cluster; 3 to 5 cost time and gain nothing."""
TWO_MEANS = 2
"""Steps of 2-means from there."""
SAME = 0.2
"""A cluster whose sum moved by no more than this share of its length is cut as before: a cut is a guess that Lloyd's
algorithm mends, and counts only if the sum of cosines rises."""
LEAST_GAIN = 1e-6
"""As a share of the objective; less is rounding."""


class Cut(NamedTuple):
    """A cluster in two halves."""

    gain: float
    """In the sum of cosines; -1 where it can't be cut."""
    half: Float32
    """(width,) sum of the rows of one of them."""
    total: Float32
    """(width,) sum of the rows of both."""

    def still_holds(self, total: Float32) -> bool:
        """Whether the cluster, of the sum ``total`` by now, is nearly the one that was cut."""
        return _length(total - self.total) <= SAME * _length(self.total)


def repaired(points: Points, partition: Partition) -> Partition:
    """``partition`` after as many splits and merges as help; the number of clusters stays the same."""
    cuts: list[Cut] = []
    for _ in range(ROUNDS):
        cuts = _cuts(points, partition, cuts)
        sums = _exchanged(partition.sums, cuts)
        if sums is None:
            break
        moved = lloyd(points, around(points, unit_rows(sums), partition), SETTLE - 1)
        if moved.objective <= partition.objective * (1 + LEAST_GAIN):
            break
        partition = moved
    return partition


def _cuts(points: Points, partition: Partition, before: list[Cut]) -> list[Cut]:
    """Of each cluster; those ``before`` are kept where they still hold: most clusters take no part in an exchange."""
    order = np.argsort(partition.labels, kind="stable")
    ends = np.searchsorted(partition.labels[order], np.arange(len(partition.sums) + 1))
    cuts = []
    for label, total in enumerate(partition.sums):
        if before and before[label].still_holds(total):
            cuts.append(before[label])
            continue
        members = order[ends[label] : ends[label + 1]]
        cuts.append(_cut(points.rows[members], points.weighted[members], total))
    return cuts


def _cut(rows: Float32, weighted: Float32, total: Float32) -> Cut:
    """Along the longest axis of the cluster, as far as a few steps find it, and then by 2-means. It is called for every
    cluster in every round, so it makes few calls.
    """
    best, whole, side = Cut(-1.0, total, total), _length(total), _along_longest_axis(rows, total) > 0
    for step in range(TWO_MEANS):
        if not 0 < np.count_nonzero(side) < len(rows):
            break
        half = np.einsum("n,nd->d", side.astype(np.float32), weighted)
        one, other = _length(half), _length(total - half)
        if one + other - whole > best.gain:
            best = Cut(one + other - whole, half, total)
        if step < TWO_MEANS - 1:
            between = half / max(one, 1e-12) - (total - half) / max(other, 1e-12)
            side = np.einsum("nd,d->n", rows, between) > 0
    return best


def _along_longest_axis(rows: Float32, total: Float32) -> Float32:
    """(n,) each row's place along it, around 0: a power iteration from the row that is farthest out."""
    axis = rows[int(np.einsum("nd,d->n", rows, total).argmin())]
    for _ in range(POWER):
        axis = np.einsum("n,nd->d", _places(rows, axis), rows)
    return _places(rows, axis)


def _places(rows: Float32, axis: Float32) -> Float32:
    along = np.einsum("nd,d->n", rows, axis)
    return np.asarray(along - np.add.reduce(along) / np.float32(len(along)))


def _exchanged(sums: Float32, cuts: list[Cut]) -> Float32 | None:
    """The sums (k, width) after each exchange that promises a gain, no cluster in two of them; None where none does."""
    losses = _losses(sums)
    pairs = zip(
        *np.unravel_index(np.argsort(losses, axis=None, kind="stable")[: 4 * len(sums)], losses.shape), strict=True
    )
    by_gain = sorted(range(len(cuts)), key=lambda label: -cuts[label].gain)
    free = np.ones(len(sums), dtype=bool)
    changed = sums.copy()
    for one, other in pairs:
        split = next((label for label in by_gain if free[label] and label not in (one, other)), None)
        if split is None or cuts[split].gain <= losses[one, other] + LEAST_GAIN:
            break
        if free[one] and free[other]:
            free[[one, other, split]] = False
            changed[one] = sums[one] + sums[other]
            changed[other], changed[split] = cuts[split].half, sums[split] - cuts[split].half
    return None if free.all() else changed


def _losses(sums: Float32) -> Float32:
    """(k, k) what each two clusters lose in the sum of cosines by becoming one; infinite but above the diagonal."""
    length = lengths(sums)
    square = length**2
    products = np.einsum("id,jd->ij", sums, sums)
    together = np.sqrt(np.maximum(square[:, None] + square[None, :] + 2 * products, 0.0))
    loss = length[:, None] + length[None, :] - together
    loss[np.tril_indices(len(sums))] = np.inf
    return np.asarray(loss)


def _length(vector: Float32) -> float:
    return math.sqrt(np.dot(vector, vector))
