"""How many groups there are: Ward's agglomeration, as long as two groups are no better than one.

Groups are described by their count n and the sum of their unit rows, which is all that a mixture of round Gaussians of
one variance asks for. Making one group of two costs δ / 2σ² nats of likelihood, where δ = n₁n₂ / (n₁+n₂) |m₁ - m₂|² is
what it adds to the scatter (Ward 1963, doi:10.1080/01621459.1963.10500845) and σ² the variance of a row around its
group's mean in each dimension. It saves telling the two apart, n₁ ln (n₁+n₂)/n₁ + n₂ ln (n₁+n₂)/n₂, and the price
of a group's parameters: by the Bayesian information criterion (d + 1) / 2 ln N (Schwarz 1978; for k-means: Pelleg &
Moore 2000). A ``grain`` below 1 makes them cheaper, which gives finer groups: real queries run into each other, and at
the whole price a few thousand of them are a handful of groups, at a half about one for 30.

Sums add, so groups of groups are judged like groups of rows, and a cycle costs what is new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank.vectors import Ints

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PRIOR_ROWS, PRIOR_SCATTER = 8.0, 0.5
"""So many rows, each so far (squared) from its group's mean, are counted to those that there are: a few rows, or one
that is repeated, don't say how wide a group is."""


class Scale(NamedTuple):
    """What the evidence for two groups is measured by."""

    variance: float
    """σ²: of a row around its group's mean, in one dimension."""
    price: float
    """Nats that one more group has to bring."""

    @classmethod
    def of(cls, rows: float, scatter: float, width: int, grain: float) -> Scale:
        """For groups of so many ``rows`` altogether, whose squared distances to their groups' means sum to
        ``scatter``.
        """
        variance = (scatter + PRIOR_ROWS * PRIOR_SCATTER) / ((rows + PRIOR_ROWS) * width)
        return cls(variance, price_of(rows, width, grain))


def price_of(rows: float, width: int, grain: float) -> float:
    """Nats that one more group of so many ``rows`` altogether has to bring."""
    return grain * (width + 1) / 2 * math.log(rows + PRIOR_ROWS)


class Groups(NamedTuple):
    """Groups by what is known of them."""

    counts: Floats
    """(k,) rows of each."""
    sums: npt.NDArray[np.floating]
    """(k, width) of their unit rows."""

    @property
    def scatter(self) -> Floats:
        """(k,) of each the sum of its rows' squared distances to their mean."""
        squares = np.einsum("kd,kd->k", self.sums, self.sums, dtype=np.float64)
        return np.asarray(np.maximum(self.counts - squares / self.counts, 0.0))


def agglomerated(groups: Groups, scale: Scale, *, known: Mask | None = None, stay: float = 0.0) -> Ints:
    """For each of ``groups`` the number (from 0) of the one that it becomes part of: pairs become one, those with the
    least evidence that they differ first, until each two are better apart.

    Args:
        groups: k of them.
        scale: what their difference is measured by.
        known: (k,) those that were told apart before: two of them become one only if the evidence falls ``stay`` prices
            short of telling them apart.
        stay: from 0 to 1.
    """
    told_apart = np.zeros(len(groups.counts), dtype=np.bool_) if known is None else known.copy()

    def cost(one: int, counts: Floats, squared: Floats) -> Floats:
        total = counts + counts[one]
        apart = counts * np.log(total / counts) + counts[one] * np.log(total / counts[one])
        evidence = _added_scatter(one, counts, squared) / (2 * scale.variance) - apart - scale.price
        return np.asarray(evidence + stay * scale.price * (told_apart & told_apart[one]))

    of = np.arange(len(groups.counts))
    for one, other, _ in _merges(groups, cost, limit=0.0):
        told_apart[one] |= told_apart[other]
        of[of == other] = one
    return np.unique(of, return_inverse=True)[1]


def reduced(groups: Groups, most: int) -> Ints:
    """For each of ``groups`` the number (from 0) of the one that it becomes part of: pairs that add the least scatter
    become one until there are no more than ``most``.
    """
    of = np.arange(len(groups.counts))
    for one, other, _ in _merges(groups, _added_scatter, least=most):
        of[of == other] = one
    return np.unique(of, return_inverse=True)[1]


def evidence_of_two(one: Groups, other: Groups, scale: Scale) -> float:
    """Nats that speak for ``one`` and ``other``, taken together each, being two groups."""
    counts = np.asarray([one.counts.sum(), other.counts.sum()])
    sums = np.stack([one.sums.sum(0, dtype=np.float64), other.sums.sum(0, dtype=np.float64)])
    apart = sums[0] / counts[0] - sums[1] / counts[1]
    added = _added_scatter(0, counts, np.asarray([0.0, apart @ apart]))[1]
    total = counts.sum()
    return float(added / (2 * scale.variance) - (counts * np.log(total / counts)).sum() - scale.price)


def scale_of(groups: Groups, grain: float) -> Scale:
    """The scale that suits ``groups`` where nothing is known yet: that of the level of Ward's agglomeration at which
    likelihood, less the prices, is largest.
    """
    counts, width = groups.counts.astype(np.float64), groups.sums.shape[1]
    rows, scatter = float(counts.sum()), float(groups.scatter.sum())
    price = Scale.of(rows, scatter, width, grain).price
    # Of one group more or less only this part of the log-likelihood changes: Σ n ln n, and what the variance explains.
    sizes = float((counts * np.log(counts)).sum())
    best, chosen = -math.inf, 0.0
    for number, (one, other, added) in enumerate([(0, 0, 0.0), *_merges(groups, _added_scatter)]):
        if number:
            total = counts[one] + counts[other]
            sizes += total * math.log(total)
            sizes -= counts[one] * math.log(counts[one]) + counts[other] * math.log(counts[other])
            counts[one], scatter = total, scatter + added
        # Without the degrees of freedom that the means take (Patterson & Thompson 1971) groups of one row would win:
        # they have no scatter at all.
        freedom = rows - (len(counts) - number) + PRIOR_ROWS
        variance = (scatter + PRIOR_ROWS * PRIOR_SCATTER) / (freedom * width)
        score = -freedom * width / 2 * math.log(variance) + sizes + number * price
        if score > best:
            best, chosen = score, variance
    return Scale(chosen, price)


def _added_scatter(one: int, counts: Floats, squared: Floats) -> Floats:
    """(k,) what ``one`` and each group would add to the scatter by becoming one."""
    return np.asarray(squared * (counts * counts[one] / (counts + counts[one])))


def _merges(
    groups: Groups, cost: Callable[[int, Floats, Floats], Floats], *, limit: float = math.inf, least: int = 1
) -> Iterator[tuple[int, int, float]]:
    """The pairs that become one, with their cost, the cheapest first, up to ``limit`` and down to ``least`` groups: the
    first of a pair stands for both from then on.

    ``cost`` takes a group's number, the counts (k,) and the squared distances (k,) of all means to its own.
    """
    counts = groups.counts.astype(np.float64)
    means = groups.sums.astype(np.float64) / counts[:, None]
    squares = np.einsum("kd,kd->k", means, means)
    everyone = np.arange(len(counts))
    alive = np.ones(len(counts), dtype=np.bool_)

    def line(one: int) -> Floats:
        squared = np.maximum(squares + squares[one] - 2 * np.einsum("kd,d->k", means, means[one]), 0.0)
        costs = np.where(alive, cost(one, counts, squared), np.inf)
        costs[one] = np.inf
        return costs

    table = np.stack([line(one) for one in range(len(counts))])
    partner = table.argmin(1)
    lowest = table[everyone, partner]
    for _ in range(len(counts) - least):
        one = int(lowest.argmin())
        other = int(partner[one])
        if not lowest[one] <= limit:
            return
        yield one, other, float(lowest[one])
        total = counts[one] + counts[other]
        means[one] = (means[one] * counts[one] + means[other] * counts[other]) / total
        counts[one], squares[one], alive[other] = total, float(means[one] @ means[one]), False
        table[other], table[:, other] = np.inf, np.inf
        table[one] = table[:, one] = line(one)
        stale = np.flatnonzero((partner == one) | (partner == other))
        partner[stale] = table[stale].argmin(1)
        partner[one] = table[one].argmin()
        partner[table[one] < lowest] = one
        lowest = table[everyone, partner]
