"""Which patterns are asked of, and what becomes of whatever a distiller answers."""

import itertools
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from msgspec.structs import replace

from sona.bank.bank import Bank
from sona.bank.lessons import (
    LessonDraft,
    accepted,
    asked_after,
    asked_after_merges,
    asked_and_dropped,
    due,
    kept,
    request_of,
)
from sona.bank.pattern import Member
from sona.bank.shelf import Asked
from sona.config import BankConfig, LessonsConfig
from sona.patterns import Lesson, Pattern, PatternChange
from tests.bank.lesson_records import exemplar, lesson, pattern, request

DEFAULT = LessonsConfig()
GOOD = {"title": "Look it up", "when": "orders", "advice": "do", "text": "Call the lookup first."}


def names(
    patterns: list[Pattern], asked: dict[str, Asked] | None = None, settings: LessonsConfig = DEFAULT
) -> list[str]:
    return [one.pattern.id for one in due(patterns, asked or {}, settings, 3, cycle=3)]


def test_what_the_cycle_touched_and_is_rated_enough_is_asked_of() -> None:
    untouched, few = pattern("old", touched_cycle=2), pattern("few", count=7)
    assert names([untouched, few, pattern("ripe")]) == ["ripe"]
    assert names([few], settings=LessonsConfig(min_rated=7)) == ["few"]


def test_a_pattern_is_asked_of_again_when_it_has_grown_by_half() -> None:
    asked = {"p1": Asked(count=20)}
    assert names([pattern(count=29)], asked) == []
    assert names([pattern(count=30)], asked) == ["p1"]


def test_those_that_have_grown_most_come_first_and_only_so_many() -> None:
    patterns = [pattern("twice", count=40), pattern("new", count=30), pattern("half", count=30)]
    asked = {"twice": Asked(count=20), "half": Asked(count=20)}
    assert names(patterns, asked) == ["new", "twice", "half"]
    assert names(patterns, asked, LessonsConfig(per_cycle=2)) == ["new", "twice"]
    assert names(patterns, asked, LessonsConfig(per_cycle=0)) == []
    assert due(patterns, asked, DEFAULT, 0, cycle=3) == []


def test_there_must_be_something_to_compare_or_a_clear_success() -> None:
    assert names([pattern(failures=(), mean=0.5)]) == []
    assert names([pattern(failures=(), mean=0.95)]) == ["p1"]
    assert names([pattern(exemplars=(exemplar("a", 0.2),), mean=0.1)]) == []
    silent = (exemplar("a", 1.0, prompt=""), exemplar("b", 1.0, response=" "))
    assert names([pattern(exemplars=silent, mean=0.95)]) == []


def test_a_request_shows_the_best_and_the_worst_and_what_is_known() -> None:
    old = lesson("l1-0", shown=("long-ago",))
    made = request_of(pattern(lessons=(old,)), Asked(dropped=(lesson("l0-0", shown=("longer-ago",)),)), 2)
    assert made is not None
    assert [one.trajectory_id for one in made.best] == ["p1-good1", "p1-good2"]
    assert [one.trajectory_id for one in made.worst] == ["p1-bad"]
    assert (made.known, made.most) == ((old,), 2)
    assert made.trajectory_ids == ("p1-good1", "p1-good2", "p1-bad")
    assert made.shown == (*made.trajectory_ids, "long-ago", "longer-ago")


def test_a_request_that_failed_may_be_made_again_behind_all_others() -> None:
    failed = {"p1": asked_after(request(), answered=False), "p2": Asked(count=10)}
    assert names([pattern(), pattern("p2")], failed) == ["p2", "p1"]
    assert names([pattern()], {"p1": asked_after(request(), answered=True)}) == []


def one_of(draft: object) -> tuple[list[Lesson], int]:
    return accepted([draft], request(), cycle=7, first=2)


@pytest.mark.parametrize("draft", [GOOD, LessonDraft(**GOOD), lesson("foreign", **GOOD, trajectory_ids=())])  # type: ignore[arg-type]
def test_a_draft_in_any_form_becomes_a_lesson_of_this_cycle(draft: object) -> None:
    (made,), refused = one_of(draft)
    assert refused == 0
    assert (made.id, made.born_cycle, made.title, made.advice) == ("l7-2", 7, "Look it up", "do")
    assert made.trajectory_ids == made.shown == request().trajectory_ids
    assert (made.helpful, made.harmful, made.trials) == (0, 0, b"")


def test_a_lesson_rests_on_trajectories_of_the_request_alone() -> None:
    (made,), _ = one_of({**GOOD, "trajectory_ids": ["p1-bad", "elsewhere", "p1-bad"]})
    assert made.trajectory_ids == ("p1-bad",)
    assert made.shown == request().trajectory_ids, "what it was shown may be in it, whatever it names"
    assert one_of({**GOOD, "trajectory_ids": ["elsewhere"]}) == ([], 1)


@pytest.mark.parametrize(
    "rubbish",
    [
        *(None, 7, "a text", b"bytes", [], {}, object(), Exception),
        {**GOOD, "advice": "maybe"},
        {**GOOD, "title": " "},
        {**GOOD, "title": "x" * 81},
        {**GOOD, "text": "x" * 401},
        {**GOOD, "text": 7},
        {**GOOD, "when": "half a pair \ud800"},
        {**GOOD, "trajectory_ids": "p1-bad"},
        {**GOOD, "trajectory_ids": [7]},
        {**GOOD, "confidence": 1.0},
        {key: value for key, value in GOOD.items() if key != "when"},
    ],
)
def test_what_is_no_lesson_is_counted_and_the_others_stay(rubbish: object) -> None:
    assert one_of(rubbish) == ([], 1)
    lessons, refused = accepted([rubbish, GOOD], request(), cycle=1, first=0)
    assert ([one.text for one in lessons], refused) == (["Call the lookup first."], 1)


def test_no_answer_is_none_and_one_draft_alone_is_a_list_of_one() -> None:
    assert accepted(None, request(), cycle=1, first=0) == ([], 0)
    assert accepted([], request(), cycle=1, first=0) == ([], 0)
    assert len(accepted(GOOD, request(), cycle=1, first=0)[0]) == 1
    assert accepted("DO it", request(), cycle=1, first=0) == ([], 1)
    assert accepted(42, request(), cycle=1, first=0) == ([], 1)


def test_an_answer_without_an_end_is_cut() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            yield {**GOOD, "text": f"Say {number}."}

    lessons, refused = accepted(endless(), request(most=2), cycle=1, first=0)
    assert ([one.text for one in lessons], refused) == (["Say 0.", "Say 1."], 0)
    assert accepted(itertools.repeat("no"), request(), cycle=1, first=0) == ([], 100)


def test_what_is_known_or_did_not_help_is_no_news() -> None:
    had = lesson("l1-0", text="call  THE lookup first.")
    for known, dropped in (((had,), ()), ((), (had,))):
        made = request_of(pattern(lessons=known), Asked(dropped=dropped), 3)
        assert made is not None
        assert accepted([GOOD, GOOD], made, cycle=1, first=0) == ([], 0)
    assert len(accepted([GOOD, GOOD], request(), cycle=1, first=0)[0]) == 1


def test_texts_stand_on_one_line() -> None:
    (made,), _ = one_of({**GOOD, "text": "First look.\n\nThen   answer."})
    assert made.text == "First look. Then answer."


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "trajectory_ids", "x"]), inner)


@given(st.recursive(st.none() | st.integers() | st.text() | st.binary(), nested))
def test_whatever_comes_back_gives_lessons_or_counts(answer: object) -> None:
    lessons, refused = accepted(answer, request(), cycle=1, first=0)
    assert len(lessons) <= 3
    assert refused >= 0
    assert all(set(one.trajectory_ids) <= set(request().trajectory_ids) for one in lessons)


def test_lessons_that_have_helped_are_kept_then_the_newest() -> None:
    helped = lesson("l1-0", helpful=30, harmful=10, gain=9.0, noise=10.0, born_cycle=1)
    untried, harmed = lesson("l1-1", born_cycle=1), lesson("l1-2", harmful=2, gain=-0.5, noise=0.5, born_cycle=1)
    new = [lesson("l2-0", born_cycle=2), lesson("l2-1", born_cycle=2)]
    assert [one.id for one in kept([untried, helped, harmed], new, 4)] == ["l1-0", "l2-0", "l2-1", "l1-1"]
    assert kept([], [], 3) == ()


def test_only_the_newest_of_the_dropped_are_remembered() -> None:
    before = Asked(count=5, dropped=(lesson("a"), lesson("b"), lesson("c")))
    after = asked_and_dropped(before, [lesson("d"), lesson("e")])
    assert (after.count, [one.id for one in after.dropped]) == (5, ["b", "c", "d", "e"])


def merged(gone: str, kept_one: str) -> PatternChange:
    return PatternChange(cycle=3, change="merged", pattern=gone, other=kept_one)


def test_what_was_dropped_goes_with_a_merged_pattern() -> None:
    before = {"p1": Asked(count=9, dropped=(lesson("a"),)), "p2": Asked(count=5, dropped=(lesson("b"),))}
    assert asked_after_merges(before, []) == before
    after = asked_after_merges(before, [merged("p1", "p2"), merged("p2", "p3")])
    assert {name: [one.id for one in asked.dropped] for name, asked in after.items()} == {"p3": ["a", "b"]}
    assert after["p3"].count == 0, "it was never asked of itself"
    split = PatternChange(cycle=3, change="split", pattern="p4", other="p1")
    assert asked_after_merges(before, [split, merged("p4", "p5")]) == before


def test_of_what_was_dropped_the_kept_pattern_s_own_stays_first() -> None:
    own, others = [lesson(name) for name in "abcd"], [lesson(name) for name in "efg"]
    before = {"p1": Asked(dropped=tuple(own)), "p2": Asked(count=7, dropped=tuple(others))}
    after = asked_after_merges(before, [merged("p2", "p1")])
    assert [one.id for one in after["p1"].dropped] == ["a", "b", "c", "d"]
    after = asked_after_merges(before, [merged("p1", "p2")])
    assert (after["p2"].count, [one.id for one in after["p2"].dropped]) == (7, ["d", "e", "f", "g"])


def test_a_bank_that_merges_patterns_keeps_what_both_had_dropped() -> None:
    centre = np.ones(4, np.float32)
    patterns = [
        replace(pattern(name, count=count), centroid=(centre / 2).tobytes()) for name, count in (("p1", 30), ("p2", 20))
    ]
    asked = {"p1": Asked(count=9, dropped=(lesson("a"),)), "p2": Asked(count=5, dropped=(lesson("b"),))}
    bank = Bank(patterns, np.zeros(4, np.float32)).with_lessons({}, asked)
    after = bank.learn([Member("t", centre, 1.0, "q", "a")], BankConfig(), cycle=4, seed=0).bank
    assert [(one.pattern, one.other) for one in after.changes if one.change == "merged"] == [("p2", "p1")]
    assert {name: [one.id for one in known.dropped] for name, known in after.asked.items()} == {"p1": ["b", "a"]}
