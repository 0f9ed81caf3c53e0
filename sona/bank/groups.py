"""Clusters that belong together: when two of them are one, and the groups of a cycle that follow from it.

k-means is told how many clusters to make, and cuts a group into as many pieces as it has to spare. So it is given
plenty, and the pieces are put together again by one rule, which also decides whether a group is a pattern that the bank
knows: **two are one unless there is a gap between them**. Along the line through their centroids, the gap is the
distance of their means in standard deviations of their members. Two halves of an even stretch have a gap of
sqrt(12) = 3.46 and two halves of a Gaussian 2.65, so whatever is larger than sqrt(12) has fewer members in the middle
than at its sides. Two Gaussians of equal size get there at a distance of about 3.5 of their standard deviations.

The line and the members along it must not be the same rows: in many dimensions any two handfuls of noise lie far apart
along the line through their own means. So one half of the rows makes the clusters, and the other half is looked at
(as in prediction strength: Tibshirani & Walther 2005, doi:10.1198/106186005X59243).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank.clustering import reduced_seed, spherical_kmeans, sums_by_label, unit_rows
from sona.checks import Float32
from sona.errors import InvalidInputError

WIDEST_GAP = 12.0**0.5
PIECES_EACH = 2  # pieces cut for each cluster that is wanted: a true group that shared one would not come apart again
DOUBT = 1.0  # standard errors of the distance, in favour of one: a few members are no evidence of a gap. Measured on
# the shipped model's embeddings: 0 leaves stray pieces in synthetic groups, 2 costs 2-8 % of the purity by skill.
FEW = 8  # rows: fewer are a stray piece, and no cluster to count on
ROUNDING = 1e-6  # a distance of cosines below it is none

Ints = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


class Group(NamedTuple):
    """What belongs together in one cycle."""

    places: list[int]
    """Of its rows among all rows."""
    centroid: Float32
    """(width,) mean direction of the rows that made it."""
    witnesses: Float32
    """(n, width) its rows that had no part in making it; may be none."""


def groups_of(x: Float32, k: int, seed: int) -> list[Group]:
    """At most ``k`` groups of ``x``, float32 (n, width) with unit rows: none of them empty, every row in one."""
    order = np.random.default_rng(reduced_seed(seed)).permutation(len(x))
    held_out = np.zeros(len(x), dtype=bool)
    held_out[order[1::2]] = True  # of one row none, of two rows one
    centroids = _merged(x[~held_out], x[held_out], k, seed)
    labels = (x @ centroids.T).argmax(1)
    return [
        Group(np.flatnonzero(of).tolist(), centroids[label], x[of & held_out])
        for label, of in ((label, labels == label) for label in range(len(centroids)))
        if of.any()
    ]


def choose_k(x: Float32, seed: int, *, low: int = 1, high: int = 128) -> int:
    """How many clusters ``x`` has, by the rule above: the groups of at least :data:`FEW` rows, with a gap between each
    two.

    Of mixtures of 50 Gaussians it finds 50 to 52, whether they lie near, have few rows or differ in size by 50 to 1,
    and 46 to 54 where 5 to 20 % of the rows are outliers. More rows show more gaps: real queries run into each other,
    and a thousand of them are few groups.

    Args:
        x: float32 (n, width), unit rows.
        seed: any whole number; the same seed and data give the same number.
        low: no fewer, unless there are fewer rows.
        high: no more.

    Raises:
        InvalidInputError: the bounds are below 1 or the wrong way round, or ``x`` can't be clustered.
    """
    if not 1 <= low <= high:
        raise InvalidInputError(f"low, high: {low}, {high}; 1 or more, the lower one first, is allowed")
    found = sum(len(group.places) >= FEW for group in groups_of(x, high, seed))
    return min(max(found, low), max(len(x), 1))


def _merged(made_of: Float32, witnesses: Float32, k: int, seed: int) -> Float32:
    """Centroids (groups, width) of the pieces of ``made_of``, after the nearest were put together until each two have
    a gap, and no more than ``k`` are left.
    """
    pieces = spherical_kmeans(made_of, PIECES_EACH * k if k > 1 else 1, seed, exchanges=False)
    inner = ~pieces.outliers
    sums = sums_by_label(made_of[inner], pieces.labels[inner])
    while len(sums) > 1:
        cosines = witnesses @ unit_rows(sums).T
        labels = cosines.argmax(1)
        seen = np.unique(labels)
        if len(seen) < len(sums):  # the other half of the rows knows nothing of such a piece
            sums = sums[seen]
            continue
        gap = gaps(cosines, labels)
        one, other = sorted(np.unravel_index(int(gap.argmin()), gap.shape))
        if gap[one, other] > WIDEST_GAP and len(sums) <= k:
            break
        sums[one] += sums[other]
        sums = np.delete(sums, other, axis=0)
    return unit_rows(sums)


def gaps(cosines: Float32, labels: Ints) -> Floats:
    """How far each two clusters lie apart: (clusters, clusters), symmetric, in standard deviations; infinite on the
    diagonal.

    The deviation is that of both clusters' members along their line. All clusters' members together count as one more,
    which is all there is to go by for a cluster of one.

    Args:
        cosines: (n, clusters) of each row to each centroid.
        labels: (n,) the cluster of each row; no cluster is empty.
    """
    counts = np.bincount(labels, minlength=cosines.shape[1]).astype(np.float64)
    means, around = _centred(cosines, labels)
    to_own = np.diag(means)
    distance = (to_own[:, None] - means) + (to_own[:, None] - means).T
    squares = np.stack([_squares(around[labels == label], label) for label in range(len(counts))])
    freedom = counts[:, None] + counts[None, :] - 2
    variance = (squares + squares.T + common_variance(around, len(counts))) / (freedom + 1)
    gap = _in_deviations(distance, variance) - DOUBT * np.sqrt(1 / counts[:, None] + 1 / counts[None, :])
    np.fill_diagonal(gap, np.inf)
    return gap


def _centred(cosines: Float32, labels: Ints) -> tuple[Floats, Floats]:
    """The means (clusters, clusters) of each cluster's rows, and the rows (n, clusters) less their cluster's mean."""
    wide = cosines.astype(np.float64)
    counts = np.bincount(labels, minlength=cosines.shape[1])
    means = sums_by_label(wide, labels) / counts[:, None]
    return means, wide - means[labels]


def _squares(around: Floats, label: int) -> Floats:
    """(clusters,) sum of squares of one cluster's rows along its line to each."""
    return np.asarray(((around[:, label : label + 1] - around) ** 2).sum(0))


def common_variance(around: Floats, clusters: int) -> Floats:
    """(clusters, clusters) variance of all clusters' rows, each around its own mean, along the line of each two."""
    covariance = around.T @ around / max(len(around) - clusters, 1)
    own = np.diag(covariance)
    return np.asarray(own[:, None] + own[None, :] - 2 * covariance)


def _in_deviations(distance: Floats, variance: Floats) -> Floats:
    deviation = np.sqrt(np.maximum(variance, ROUNDING**2))
    return np.where(distance > ROUNDING, distance / deviation, 0.0)


class Neighbours:
    """The groups of a cycle, and how far each lies from a known pattern."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups
        self._around = np.concatenate(
            [group.witnesses - group.witnesses.mean(0) for group in groups if len(group.witnesses)]
            or [np.zeros((0, len(groups[0].centroid)), dtype=np.float32)]
        )

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def is_one_with(self, group: Group, centroid: Float32, spread: float) -> bool:
        """Whether there is no gap between a group and the pattern of ``centroid`` (width,), whose members' mean cosine
        to it is ``spread``.

        The pattern's members are gone: their mean along the line follows from ``spread``, and all groups' members
        together stand for their deviation. A group without two witnesses is one with the pattern if it is as near to
        it as the pattern's members are.
        """
        if len(group.witnesses) < 2:
            return bool(group.centroid @ centroid >= spread)
        line = (group.centroid - centroid).astype(np.float64)
        along = group.witnesses @ line
        distance = along.mean() + spread * (1.0 - float(group.centroid @ centroid))
        common = ((self._around @ line) ** 2).sum() / max(len(self._around) - len(self.groups), 1)
        gap = _in_deviations(np.asarray(distance), np.asarray((along.var(ddof=1) + common) / 2))
        return bool(gap - DOUBT / np.sqrt(len(along)) <= WIDEST_GAP)
