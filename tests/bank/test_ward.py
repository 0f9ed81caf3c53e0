"""Two groups become one as long as that is better than two."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.vectors import unit_rows
from sona.bank.ward import Floats, Groups, Scale, agglomerated, evidence_of_two, reduced, scale_of


def rows_of(groups: int, each: int, width: int, noise: float, seed: int) -> tuple[Groups, Floats]:
    """Single rows of Gaussian groups on the sphere, and their truth."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(groups, width)).astype(np.float32))
    truth = np.repeat(np.arange(groups), each)
    rows = unit_rows((centres[truth] + noise / width**0.5 * rng.normal(size=(len(truth), width))).astype(np.float32))
    return Groups(np.ones(len(rows)), rows.astype(np.float64)), truth.astype(np.float64)


@pytest.mark.parametrize(("groups", "each", "noise"), [(1, 64, 1.0), (5, 20, 0.5), (10, 20, 0.8), (4, 50, 0.7)])
@pytest.mark.parametrize("width", [32, 256])
def test_it_ends_with_as_many_groups_as_there_are(groups: int, each: int, noise: float, width: int) -> None:
    found, truth = rows_of(groups, each, width, noise, seed=3)
    of = agglomerated(found, scale_of(found, 0.5))
    assert len(set(zip(of.tolist(), truth.tolist(), strict=True))) == groups == of.max() + 1


def test_the_variance_that_it_settles_on_is_that_within_the_groups() -> None:
    found, _ = rows_of(10, 40, 128, 1.0, seed=1)
    of = agglomerated(found, scale := scale_of(found, 0.5))
    sums = np.stack([found.sums[of == label].sum(0) for label in range(10)])
    scatter = Groups(np.bincount(of).astype(float), sums).scatter.sum()
    assert scale.variance * 128 == pytest.approx(scatter / (400 - 10), rel=0.03)


def test_what_was_told_apart_takes_more_to_become_one() -> None:
    found, _ = rows_of(2, 30, 64, 1.2, seed=0)
    one, other = Groups(found.counts[:30], found.sums[:30]), Groups(found.counts[30:], found.sums[30:])
    both = Groups(np.asarray([30.0, 30.0]), np.stack([one.sums.sum(0), other.sums.sum(0)]))
    free = Scale(variance=1 / 64, price=0.0)
    nats = evidence_of_two(one, other, free)
    joins = Scale(free.variance, nats * 1.2)  # the evidence falls short by a sixth of the price
    known = np.ones(2, dtype=np.bool_)
    assert agglomerated(both, joins).tolist() == [0, 0]
    assert agglomerated(both, joins, known=known, stay=0.1).tolist() == [0, 0]
    assert agglomerated(both, joins, known=known, stay=0.5).tolist() == [0, 1]


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_merges_are_those_that_a_plain_search_finds(k: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = Groups(rng.integers(1, 9, k).astype(np.float64), rng.normal(size=(k, 3)))
    assert partition(reduced(groups, most)) == partition(plainly_reduced(groups, most))


def plainly_reduced(groups: Groups, most: int) -> list[int]:
    counts, sums = list(groups.counts), [row.copy() for row in groups.sums]
    of = list(range(len(counts)))
    while len(set(of)) > most:
        alive = sorted(set(of))
        pairs = [(a, b) for at, a in enumerate(alive) for b in alive[at + 1 :]]

        def added(pair: tuple[int, int]) -> float:
            a, b = pair
            apart = sums[a] / counts[a] - sums[b] / counts[b]
            return float((apart @ apart) * counts[a] * counts[b] / (counts[a] + counts[b]))

        a, b = min(pairs, key=added)
        counts[a] += counts[b]
        sums[a] = sums[a] + sums[b]
        of = [a if label == b else label for label in of]
    return of


def partition(labels: "list[int] | np.ndarray[tuple[int, ...], np.dtype[np.intp]]") -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.asarray(labels) == label).tolist()) for label in set(np.asarray(labels))}


def test_the_evidence_is_the_difference_of_two_likelihoods() -> None:
    """Against the log-likelihood of a mixture of round Gaussians of one variance, row by row."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(7, 4)) + 1, rng.normal(size=(11, 4))
    rows, variance = np.concatenate([a, b]), 0.7

    def likelihood(parts: list[Floats]) -> float:
        total = 0.0
        for part in parts:
            squares = ((part - part.mean(0)) ** 2).sum()
            total += -squares / (2 * variance) + len(part) * np.log(len(part) / len(rows))
        return total

    one, other = (Groups(np.ones(len(part)), part) for part in (a, b))
    expected = likelihood([a, b]) - likelihood([rows])
    assert evidence_of_two(one, other, Scale(variance, price=0.0)) == pytest.approx(expected)
    assert evidence_of_two(one, other, Scale(variance, price=3.0)) == pytest.approx(expected - 3)
