"""Counters of lessons: each trajectory once, by its latest quality, against what is usual for its pattern."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from sona.bank.pattern import Member
from sona.bank.trials import REMEMBERED, Trial, is_useless, trials_of, tried
from tests.bank.lesson_records import lesson

LESSON = lesson("l1-0")


def member(name: str, quality: float | None, recalled: tuple[str, ...] = ("l1-0",)) -> Member:
    return Member(name, np.ones(2, np.float32), quality, "q", "a", recalled=recalled)


def helped(quality: float | None, usual: dict[str, float], pattern: str = "p1") -> list[bool]:
    trials = trials_of([member("t", quality)], [pattern], lambda name: usual.get(name, 0.5), {"l1-0"})
    return [trial.helped for trial in trials]


def test_it_helped_what_went_as_well_as_usual_and_was_no_failure() -> None:
    assert helped(0.8, {"p1": 0.8}) == [True]
    assert helped(0.79, {"p1": 0.8}) == [False]
    assert helped(0.4, {"p1": 0.2}) == [False]
    assert helped(0.5, {"p1": 0.2}) == [True]
    assert helped(None, {"p1": 0.2}) == []


def test_a_mean_s_rounding_makes_no_harm() -> None:
    usual = 0.7000000000000002  # as a mean of 0.7s may come out
    assert helped(0.7, {"p1": usual}) == [True]


def test_only_lessons_count_and_each_once() -> None:
    members = [member("t", 1.0, ("p1", "l1-0", "l1-0", "gone")), member("u", 1.0, ())]
    assert trials_of(members, ["p1", "p1"], lambda name: 0.5, {"l1-0", "l1-1"}) == [Trial("l1-0", "t", True)]


def counted(*trials: tuple[str, bool]) -> tuple[int, int]:
    after = LESSON
    for name, good in trials:  # each in a cycle of its own
        after = tried(after, [Trial("l1-0", name, good)])
    return after.helpful, after.harmful


def test_a_later_word_takes_the_place_of_the_earlier_one() -> None:
    assert counted(("a", True), ("b", False)) == (1, 1)
    assert counted(("a", False), ("a", False)) == (0, 1)
    assert counted(("a", False), ("b", True), ("a", True)) == (2, 0)
    assert counted(("a", False), ("a", True), ("a", False)) == (0, 1)


@given(st.lists(st.tuples(st.integers(0, 30).map(str), st.booleans()), max_size=60))
def test_the_counters_are_those_of_the_latest_words(trials: list[tuple[str, bool]]) -> None:
    latest = dict(trials)
    assert counted(*trials) == (sum(latest.values()), len(latest) - sum(latest.values()))


def test_what_is_remembered_has_a_bound_and_no_names() -> None:
    after = tried(LESSON, [Trial("l1-0", f"name-of-eve-{n}", n % 2 == 0) for n in range(REMEMBERED + 100)])
    assert len(after.trials) == 8 * REMEMBERED
    assert b"eve" not in after.trials
    assert (after.helpful, after.harmful) == (REMEMBERED // 2 + 50, REMEMBERED // 2 + 50)
    newest = tried(after, [Trial("l1-0", f"name-of-eve-{REMEMBERED + 99}", True)])
    assert (newest.helpful, newest.harmful) == (after.helpful + 1, after.harmful - 1)


def test_a_lesson_that_harms_beyond_doubt_is_useless() -> None:
    assert not is_useless(LESSON)
    assert not is_useless(lesson("a", harmful=2))
    assert is_useless(lesson("a", harmful=3))
    assert not is_useless(lesson("a", helpful=10, harmful=15))
    assert is_useless(lesson("a", helpful=10, harmful=25))
