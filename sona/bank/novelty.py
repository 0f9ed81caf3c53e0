"""Where new queries belong: to a known skill, or to none so far.

The classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545): if a classifier can tell held-out rows of two
samples apart, they come from two distributions. Here the classifier is a ridge regression, each row held out in turn.
Beside the accuracy it gives each row a value, so that traffic which mixes known and new queries comes apart row by row:
a query of a known skill looks as much like that skill's as like the hour's, a new one like nothing but the hour's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank.ridge import fit
from sona.checks import Float32

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

TOLD_APART = 0.92
"""Held-out accuracy of the two-sample test from which two samples are two skills. Measured over streams of agent tasks
with known boundaries: same skill .36-.58, another skill .94-1.0."""
NEW = 0.5
"""A row's value, from -1 (like the known) to 1 (like the new alone), from which it may be new."""
DECIMALS = 3
"""To which rows that are equal agree: features kept as float16 differ from fresh ones by their rounding."""
CUTS = 3
"""In halves; of how well they agree the median counts. One cut let 12 of 80 crowds of 80 rows pass as two kinds."""
COMPARED = 192
"""Rows of a known skill that new ones are compared with; more are drawn from."""


class TwoSample(NamedTuple):
    """How far two samples can be told apart."""

    values: Floats
    """(n,) of the first sample's rows: 1 where a row is like its own sample alone, 0 where it is like both."""
    accuracy: float
    """Balanced accuracy of telling held-out rows apart: 0.5 by chance."""


def two_sample(new: Float32, known: Float32) -> TwoSample:
    """Compare ``new`` (n, width) with ``known`` (m, width), both float32 with at least two rows."""
    left_out = fit([new, known]).left_out[:, 0]
    values, others = left_out[: len(new)], left_out[len(new) :]
    return TwoSample(values, float((values > 0).mean() + (others <= 0).mean()) / 2)


def told_apart(one: Float32, other: Float32) -> float:
    """The accuracy of :func:`two_sample` on the distinct rows of both, (n, width) and (m, width): 0.5 by chance. Of a
    single row it is 0.5 if both are that row, else 1: nothing says that they are alike.

    Left out of the fit, a repeated row's twin stays in it and vouches for it.
    """
    first, second = (rows[_distinct(rows)[0]] for rows in (one, other))
    if min(len(first), len(second)) < 2:
        return 0.5 if first.shape == second.shape and np.allclose(first, second, atol=10**-DECIMALS) else 1.0
    return two_sample(first, second).accuracy


class Sorted(NamedTuple):
    """What a cycle's queries are."""

    labels: list[str | None]
    """For each row the known class that it belongs to; None where it is new."""
    novelty: Floats
    """(n,) each row's value against the class most like it; 1 without known classes."""
    told_apart: float
    """Accuracy of telling what is new from the known class most like it; NaN where nothing looked new."""


def sort_rows(rows: Float32, known: Mapping[str, Float32], least: int, rng: np.random.Generator) -> Sorted:
    """Give each of ``rows`` (n, width) its known class, or None.

    New are those that are like no known class one by one, if together they number ``least`` or more and can be told
    from every known class and from the rest of the rows that are like it. Then all others are sorted again with the new
    ones as one more class.

    A query that comes again is looked at once: left out of the fit, its twin would stay in it and vouch for it, so that
    whatever an hour asks often would look new.

    Args:
        rows: float32, the queries of a cycle.
        known: by name float32 (m, width), at least two rows each.
        least: fewer rows than this are no new skill.
        rng: draws which rows of a large class are compared.
    """
    if not known:
        new = len(rows) >= least
        return Sorted([None] * len(rows) if new else [""] * len(rows), np.ones(len(rows)), 1.0 if new else float("nan"))
    first, of = _distinct(rows)
    found = _sorted_distinct(rows[first], known, least, rng)
    return Sorted([found.labels[place] for place in of], found.novelty[of], found.told_apart)


def found_again(rows: Float32, known: Mapping[str, Float32], least: int, rng: np.random.Generator) -> float:
    """How well the two halves of ``rows`` (n, width) agree on what is new in them, from 0 to 1.

    Each half is sorted by itself, and what it finds new is learned from it; counted is which of the other half's new
    rows are recognised by that, and which of those recognised are new: the worst of the four shares, 0 where a half
    finds nothing new. Skills that have words of their own reach 1. Where kinds of query run into each other the test
    picks the far end of one: told from the rest well enough, by having been picked, but the next such query is any of
    them. (Of an hour of real queries it picked 13 %, of which 95 % reached a class of theirs, left out in turn, and of
    as many again 43 %.)

    Args:
        rows: float32, the queries of a cycle.
        known: by name float32 (m, width), at least two rows each, at least one name.
        least: fewer rows than this are no new skill; of a half, half of it.
        rng: cuts ``rows`` in halves, and draws as :func:`sort_rows` does.
    """
    distinct = rows[_distinct(rows)[0]]
    return float(np.median([_agreement(distinct, known, least, rng) for _ in range(CUTS)]))


def _agreement(rows: Float32, known: Mapping[str, Float32], least: int, rng: np.random.Generator) -> float:
    """Of one cut."""
    order = rng.permutation(len(rows))
    halves = [rows[np.sort(part)] for part in (order[::2], order[1::2])]
    labels = [sort_rows(half, known, max(least // 2, 2), rng).labels for half in halves]
    new = [np.asarray([label is None for label in part], dtype=np.bool_) for part in labels]
    if not all(part.any() for part in new):
        return 0.0
    shares: list[float] = []
    for one, other in ((0, 1), (1, 0)):
        sample = [halves[one][new[one]], *(_drawn(each, rng) for each in known.values())]
        recognised = fit(sample).values(halves[other]).argmax(1) == 0
        both = float((recognised & new[other]).sum())
        shares += [both / new[other].sum(), both / max(recognised.sum(), 1)]
    return min(shares)


def _sorted_distinct(rows: Float32, known: Mapping[str, Float32], least: int, rng: np.random.Generator) -> Sorted:
    names = list(known)
    sample = [_drawn(known[name][_distinct(known[name])[0]], rng) for name in names]
    values = np.stack([two_sample(rows, each).values for each in sample]) if len(rows) > 1 else _alone(rows, sample)
    # By one fit of all that is known: by the tests' values 36 of 800 rows of overlapping classes went astray, so 2.
    labels = [names[place] for place in fit(sample).values(rows).argmax(1)]
    novelty = values.min(0)
    candidates = novelty > NEW
    if candidates.sum() < max(least, 2):
        return Sorted([*labels], novelty, float("nan"))
    nearest = values.argmin(0)
    accuracy = min(
        # What was not picked stands with the known: those picked are the far end of one crowd, or a crowd of their own.
        two_sample(rows[candidates], np.concatenate([each, rows[~candidates & (nearest == place)]])).accuracy
        for place, each in enumerate(sample)
    )
    if accuracy < TOLD_APART:
        return Sorted([*labels], novelty, accuracy)
    again = fit([rows[candidates], *sample])
    chosen = again.values(rows).argmax(1)
    chosen[candidates] = again.left_out[: candidates.sum()].argmax(1)  # each without its own vote for what is new
    return Sorted([names[place - 1] if place else None for place in chosen], novelty, accuracy)


def _distinct(rows: Float32) -> tuple[Ints, Ints]:
    """Places of the first of each distinct row, and for each row which of them it is, up to rounding."""
    keys = np.round(rows, DECIMALS) + 0.0  # -0.0 becomes 0.0: equal, so equal bytes
    whole = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.itemsize * keys.shape[1]))).ravel()
    _, first, of = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they came, not as their bytes sort
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[of]


def _alone(rows: Float32, sample: list[Float32]) -> Floats:
    """One row can't be compared as a sample: minus its value for each class."""
    return -fit(sample).values(rows).T.astype(np.float64) if len(sample) > 1 else np.zeros((len(sample), len(rows)))


def _drawn(rows: Float32, rng: np.random.Generator) -> Float32:
    return rows if len(rows) <= COMPARED else rows[rng.choice(len(rows), COMPARED, replace=False)]
