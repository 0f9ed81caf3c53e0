"""New kinds of queries are found, row by row, and known ones are not taken for new."""

from collections.abc import Mapping

import numpy as np
import pytest

from sona.bank.novelty import COMPARED, Sorted, found_again, sort_rows, told_apart, two_sample
from sona.checks import Float32

WIDTH = 192
CENTRES = np.random.default_rng(3).normal(size=(6, WIDTH)).astype(np.float32)
LEAST = 16


def rows(centre: int, count: int, seed: int, noise: float = 1.0) -> Float32:
    found = CENTRES[centre] + noise * np.random.default_rng([seed, centre]).normal(size=(count, WIDTH))
    return np.asarray(found, dtype=np.float32)


def sort(asked: Float32, known: Mapping[str, Float32], least: int = LEAST, seed: int = 0) -> Sorted:
    return sort_rows(asked, known, least, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(6))
def test_more_of_the_same_is_nothing_new(seed: int) -> None:
    known = {"": rows(0, 60, 10 + seed), "s1": rows(1, 80, 20 + seed)}
    found = sort(np.concatenate([rows(1, 40, seed), rows(0, 20, seed)]), known, seed=seed)
    assert found.labels == ["s1"] * 40 + [""] * 20
    assert np.isnan(found.told_apart)


@pytest.mark.parametrize("seed", range(3))
def test_another_kind_of_query_is_found(seed: int) -> None:
    known = {"": rows(0, 60, 10 + seed), "s1": rows(1, 80, 20 + seed)}
    found = sort(rows(2, 40, seed), known, seed=seed)
    assert found.labels == [None] * 40
    assert found.told_apart > 0.95
    assert (found.novelty > 0.5).all()


@pytest.mark.parametrize("seed", range(3))
def test_mixed_traffic_comes_apart_row_by_row(seed: int) -> None:
    known = {"": rows(0, 120, 10 + seed), "s1": rows(1, 120, 20 + seed), "s2": rows(2, 120, 30 + seed)}
    kinds = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2, 3], 30))
    rng = np.random.default_rng(seed)
    asked = (CENTRES[kinds] + rng.normal(size=(len(kinds), WIDTH))).astype(np.float32)
    found = sort(asked, known, seed=seed)
    wanted = [["", "s1", "s2", None][kind] for kind in kinds]
    right = [got == want for got, want in zip(found.labels, wanted, strict=True)]
    assert np.mean(right) > 0.95


def test_a_question_that_comes_again_and_again_does_not_look_new() -> None:
    """Its twins in the fit would vouch for it: they are asked alike, and nothing known is asked just so."""
    known = {"": rows(0, 60, 1), "s1": rows(1, 60, 2)}
    asked = np.repeat(rows(1, 5, 3), 40, axis=0)
    found = sort(asked, known)
    assert set(found.labels) == {"s1"}


def test_repeated_rows_are_counted_once_and_labelled_alike() -> None:
    known = {"": rows(0, 60, 1), "s1": rows(1, 60, 2)}
    few = rows(2, LEAST - 1, 3)
    assert None not in sort(np.repeat(few, 4, axis=0), known).labels
    order = np.random.default_rng(0).permutation(np.tile(np.arange(30), 3))
    found = sort(np.concatenate([rows(2, 15, 3), rows(2, 15, 4)])[order], known)
    assert found.labels == [None] * 90
    assert all(len(set(found.novelty[order == place])) == 1 for place in range(30))


@pytest.mark.parametrize("seed", range(3))
def test_a_drift_that_is_hard_to_tell_is_no_new_skill(seed: int) -> None:
    """Among many rows some look new each for itself; together they can't be told from the known."""
    asked = (rows(1, 120, seed) + 0.2 * CENTRES[2]).astype(np.float32)
    found = sort(asked, {"s1": rows(1, 150, 20 + seed)})
    assert found.labels == ["s1"] * 120
    assert (found.novelty > 0.5).sum() > LEAST
    assert 0.65 < found.told_apart < 0.92


def test_too_few_new_rows_go_to_what_they_are_most_like() -> None:
    known = {"": rows(0, 60, 1), "s1": rows(1, 60, 2)}
    between = (0.8 * CENTRES[1] + 0.6 * CENTRES[2] + rows(1, LEAST - 1, 3) - CENTRES[1]).astype(np.float32)
    assert sort(between, known).labels == ["s1"] * (LEAST - 1)
    assert set(sort(between, known, least=8).labels) == {None}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_rows_is_sorted_too(count: int) -> None:
    known = {"": rows(0, 60, 1), "s1": rows(1, 60, 2)}
    assert sort(rows(1, count, 5), known).labels == ["s1"] * count
    assert sort(rows(1, count, 5), {"s1": known["s1"]}).labels == ["s1"] * count


def test_without_anything_known_all_is_new_or_too_little() -> None:
    found = sort(rows(1, LEAST, 1), {})
    assert (found.labels, found.told_apart) == ([None] * LEAST, 1.0)
    few = sort(rows(1, LEAST - 1, 1), {})
    assert few.labels == [""] * (LEAST - 1)
    assert np.isnan(few.told_apart)


def test_a_large_class_is_compared_by_a_sample_that_the_seed_draws() -> None:
    known = {"s1": rows(1, 5 * COMPARED, 2)}
    asked = np.concatenate([rows(1, 30, 3), rows(2, 30, 3)])
    first, again = sort(asked, known, seed=1), sort(asked, known, seed=1)
    np.testing.assert_array_equal(first.novelty, again.novelty)
    assert first.labels == again.labels == ["s1"] * 30 + [None] * 30
    assert sort(asked, known, seed=2).labels == first.labels


def test_the_accuracy_is_by_chance_between_equals_and_whole_between_others() -> None:
    same = np.mean([two_sample(rows(1, 60, seed), rows(1, 90, 50 + seed)).accuracy for seed in range(10)])
    assert same == pytest.approx(0.5, abs=0.08)
    other = two_sample(rows(1, 60, 1), rows(2, 90, 2))
    assert other.accuracy > 0.98
    assert other.values.shape == (60,)
    assert two_sample(rows(2, 90, 2), rows(1, 60, 1)).accuracy == pytest.approx(other.accuracy, abs=0.02)


def test_repeated_rows_do_not_tell_two_samples_of_one_kind_apart() -> None:
    one, other = (np.repeat(rows(1, 40, seed), 5, axis=0) for seed in (0, 1))
    assert two_sample(one, other).accuracy > 0.95, "each row's twins vouch for it"
    assert told_apart(one, other) < 0.7


@pytest.mark.parametrize(("other", "accuracy"), [(1.0, 0.5), (1.0002, 0.5), (2.0, 1.0)])
def test_a_single_row_is_like_itself_alone(other: float, accuracy: float) -> None:
    one = np.ones((5, 4), np.float32)
    assert told_apart(one, np.full((9, 4), other, np.float32)) == accuracy
    assert told_apart(one, rows(1, 30, 0)[:, :4]) == 1.0


def known_and_crowd(seed: int) -> tuple[dict[str, Float32], Float32]:
    """Queries that begin at a known kind and thin out towards another, without a gap."""
    known = {"": rows(0, 60, 10 + seed), "s1": rows(1, 80, 20 + seed)}
    rng = np.random.default_rng(seed)
    way = rng.random((160, 1))
    crowd = CENTRES[1] * (1 - way) + CENTRES[4] * way + rng.normal(size=(160, WIDTH))
    return known, crowd.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("repeats", [1, 4])
def test_both_halves_find_what_is_new_unless_it_was_only_picked(seed: int, repeats: int) -> None:
    known, crowd = known_and_crowd(seed)
    assert sort(crowd, known).labels.count(None) > 50, "else nothing was picked, and this shows nothing"
    apart = np.concatenate([rows(2, 60, seed), rows(1, 60, seed)])
    for draw in range(5):
        rng = np.random.default_rng(draw)
        assert found_again(np.repeat(apart, repeats, axis=0), known, LEAST, rng) == 1.0
        assert found_again(np.repeat(crowd, repeats, axis=0), known, LEAST, rng) < 0.95
        assert found_again(rows(1, 60, seed), known, LEAST, rng) == 0.0
