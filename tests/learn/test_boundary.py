from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from sona.errors import InvalidInputError
from sona.learn.boundary import embedding_shift, loss_shift

Sample = npt.NDArray[np.float32]
REPEATS = 300


def embeddings(rng: np.random.Generator, count: int, centre: float = 0.0, width: int = 8) -> Sample:
    """Around ``centre`` in each direction, at a spread of 1."""
    return (centre + rng.normal(size=(count, width))).astype(np.float32)


def losses(rng: np.random.Generator, count: int, factor: float = 1.0) -> Sample:
    """Log-normal, as losses are: some answers cost ten times the usual."""
    return (factor * np.exp(rng.normal(size=count))).astype(np.float32)


def alarms(test: Callable[[np.random.Generator], bool], repeats: int = REPEATS) -> float:
    """Share of the repeats in which ``test`` finds a change."""
    return float(np.mean([test(np.random.default_rng(seed)) for seed in range(repeats)]))


def most_by_chance(level: float, repeats: int = REPEATS) -> float:
    """Three standard deviations above ``level``."""
    return level + 3 * float(np.sqrt(level * (1 - level) / repeats))


@pytest.mark.parametrize(("m", "n"), [(8, 8), (30, 10), (3, 20)])
def test_embeddings_without_a_change_alarm_at_the_level(m: int, n: int) -> None:
    def test(rng: np.random.Generator) -> bool:
        return embedding_shift(
            embeddings(rng, m), embeddings(rng, n), level=0.1, permutations=99, seed=int(rng.integers(99))
        ).shifted

    assert 0.04 < alarms(test) < most_by_chance(0.1)


@pytest.mark.parametrize(("m", "n"), [(8, 8), (30, 10), (3, 20)])
def test_losses_without_a_change_alarm_at_the_level(m: int, n: int) -> None:
    def test(rng: np.random.Generator) -> bool:
        return loss_shift(
            losses(rng, m), losses(rng, n), level=0.1, permutations=99, seed=int(rng.integers(99))
        ).shifted

    assert 0.04 < alarms(test) < most_by_chance(0.1)


def test_losses_that_are_mostly_tied_alarm_at_most_at_the_level() -> None:
    def test(rng: np.random.Generator) -> bool:
        before, after = rng.integers(0, 2, 12).astype(np.float32), rng.integers(0, 2, 12).astype(np.float32)
        return loss_shift(before, after, level=0.1, permutations=99, seed=int(rng.integers(99))).shifted

    assert alarms(test) < most_by_chance(0.1)


def test_moved_embeddings_are_found() -> None:
    assert alarms(lambda rng: embedding_shift(embeddings(rng, 40), embeddings(rng, 40, 0.6)).shifted, 60) > 0.95


def test_a_change_of_spread_alone_is_found() -> None:
    """Where the means agree, and a comparison of means sees nothing."""
    assert alarms(lambda rng: embedding_shift(embeddings(rng, 60), 2 * embeddings(rng, 60)).shifted, 60) > 0.95


def test_moved_embeddings_among_earlier_ones_are_found() -> None:
    """30 % of the new samples are of the earlier kind."""

    def test(rng: np.random.Generator) -> bool:
        mixed = np.concatenate([embeddings(rng, 28, 0.8), embeddings(rng, 12)])
        return embedding_shift(embeddings(rng, 40), mixed).shifted

    assert alarms(test, 60) > 0.95


def test_higher_losses_are_found_among_earlier_ones_too() -> None:
    assert alarms(lambda rng: loss_shift(losses(rng, 40), losses(rng, 40, 4.0)).shifted, 60) > 0.95

    def mixed(rng: np.random.Generator) -> bool:
        return loss_shift(losses(rng, 40), np.concatenate([losses(rng, 28, 6.0), losses(rng, 12)])).shifted

    assert alarms(mixed, 60) > 0.95


def test_lower_losses_are_no_shift() -> None:
    assert alarms(lambda rng: loss_shift(losses(rng, 40), losses(rng, 40, 0.2)).shifted, 60) == 0.0


def test_one_huge_loss_is_no_shift() -> None:
    rng = np.random.default_rng(0)
    before, after = losses(rng, 40), losses(rng, 40)
    after[0] = 1e6
    assert not loss_shift(before, after).shifted


def test_mmd_equals_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    x, y = embeddings(rng, 5).astype(np.float64), embeddings(rng, 7, 0.5).astype(np.float64)
    pooled = [*x, *y]
    pairs = [float(((a - b) ** 2).sum()) for i, a in enumerate(pooled) for b in pooled[:i]]
    width = float(np.median(pairs))

    def mean_kernel(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
        return float(np.mean([[np.exp(-((a - b) ** 2).sum() / width) for b in right] for a in left]))

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert embedding_shift(x.astype(np.float32), y.astype(np.float32)).value == pytest.approx(expected, rel=1e-5)


def test_effect_of_losses_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 6, 9).astype(np.float32), rng.integers(2, 8, 11).astype(np.float32)
    pairs = np.mean([[1.0 if b > a else 0.5 if a == b else 0.0 for b in after] for a in before])
    found = loss_shift(before, after)
    assert found.value == pytest.approx(float(pairs))
    assert found.gap == pytest.approx(float(after.mean() - before.mean()))


def test_p_value_of_ranks_tends_to_the_exact_one() -> None:
    """With 3 and 3 losses, all new ones higher, one of the 20 cuts is as extreme."""
    found = loss_shift([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], permutations=20_000, level=0.06)
    assert found.p_value == pytest.approx(1 / 20, abs=0.006)
    assert found.value == 1.0


def test_results_do_not_depend_on_order_but_on_the_seed() -> None:
    rng = np.random.default_rng(1)
    before, after = embeddings(rng, 20), embeddings(rng, 15, 0.2)
    before[3] = before[7] = after[2]  # the same question on both sides
    first = embedding_shift(before, after)
    assert embedding_shift(rng.permutation(before), rng.permutation(after)) == first
    assert embedding_shift(before, after, seed=1).p_value != first.p_value
    assert loss_shift(before[:, 0], after[:, 0]) == loss_shift(before[::-1, 0], rng.permutation(after[:, 0]))


def test_distance_from_the_origin_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    before, after = embeddings(rng, 20), embeddings(rng, 20, 1.0)
    far = embedding_shift((before + 256).astype(np.float32), (after + 256).astype(np.float32))
    assert far.value == pytest.approx(embedding_shift(before, after).value, rel=1e-3)


def test_constant_inputs_are_no_shift() -> None:
    same = np.full((20, 4), 0.3, np.float32)
    found = embedding_shift(same, same[:7])
    assert (found.value, found.p_value, found.shifted) == (0.0, 1.0, False)
    level = loss_shift(same[:, 0], same[:5, 0])
    assert (level.value, level.p_value, level.shifted, level.gap) == (0.5, 1.0, False, 0.0)


def test_two_constants_are_a_shift() -> None:
    found = embedding_shift(np.zeros((20, 4), np.float32), np.ones((20, 4), np.float32))
    assert found.shifted
    assert found.value == pytest.approx(2 - 2 / np.e)
    assert loss_shift(np.zeros(20), np.ones(20)).shifted


def test_copies_of_the_same_questions_are_no_shift() -> None:
    rng = np.random.default_rng(3)
    questions = embeddings(rng, 6)
    found = embedding_shift(np.repeat(questions, 5, axis=0), np.repeat(questions, 3, axis=0))
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert found.p_value == 1.0


def test_a_single_sample_can_be_judged() -> None:
    rng = np.random.default_rng(4)
    before = embeddings(rng, 200)
    assert not embedding_shift(before, before[:1]).shifted
    assert embedding_shift(before, before[:1] + 20).p_value <= 0.02  # 1 of 201 cuts is as extreme
    assert embedding_shift(before[:1], before[1:2]).p_value == 1.0
    assert loss_shift(before[:, 0], [100.0]).p_value <= 0.02
    assert loss_shift([1.0], [2.0]).p_value > 0.3


@pytest.mark.parametrize(
    ("reference", "new"),
    [
        (np.zeros((0, 4)), np.zeros((3, 4))),
        (np.zeros((3, 4)), np.zeros((3, 5))),
        (np.zeros(4), np.zeros((3, 4))),
        (np.full((3, 4), np.nan), np.zeros((3, 4))),
        (np.zeros((3, 4)), np.full((3, 4), np.inf)),
    ],
)
def test_arrays_that_are_no_embeddings_are_refused(reference: npt.NDArray[np.float64], new: Sample) -> None:
    with pytest.raises(InvalidInputError, match="embedding shift"):
        embedding_shift(reference.astype(np.float32), new.astype(np.float32))


@pytest.mark.parametrize(("reference", "new"), [([], [1.0]), ([1.0], [float("nan")]), ([[1.0]], [1.0])])
def test_arrays_that_are_no_losses_are_refused(reference: list[float], new: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="loss shift"):
        loss_shift(reference, new)


@pytest.mark.parametrize(("level", "permutations"), [(0.0, 99), (1.0, 99), (float("nan"), 99), (0.1, 0)])
def test_no_level_or_permutations_are_refused(level: float, permutations: int) -> None:
    with pytest.raises(InvalidInputError, match="level"):
        loss_shift([1.0], [2.0], level=level, permutations=permutations)


def test_a_few_hundred_samples_take_milliseconds() -> None:
    rng = np.random.default_rng(5)
    before, after = embeddings(rng, 200, width=128), embeddings(rng, 100, width=128)
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        embedding_shift(before, after)
        loss_shift(before[:, 0], after[:, 0])
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.25, "some 30 ms; the bound leaves room for slower machines"
