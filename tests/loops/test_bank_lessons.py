"""A cycle's work on lessons: what a distiller does wrong costs its lessons and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from sona.bank.bank import Bank, BankState
from sona.bank.lessons import LessonDraft, LessonRequest
from sona.bank.pattern import Member
from sona.config import BankConfig, Config, LessonsConfig
from sona.loops.bank_lessons import with_new_lessons, with_trials
from sona.patterns import PatternChange
from sona.types import Progress

CENTRES = np.random.default_rng(0).normal(size=(2, 8))


def members(cycle: int, count: int = 40, quality: float | None = None, recalled: tuple[str, ...] = ()) -> list[Member]:
    rng = np.random.default_rng(cycle)
    return [
        Member(
            f"t{cycle}-{place}",
            np.asarray(CENTRES[place % 2] + 0.1 * rng.normal(size=8), np.float32),
            (1.0 if place % 3 else 0.1) if quality is None else quality,
            f"question {cycle} {place}",
            "answer",
            recalled=recalled,
        )
        for place in range(count)
    ]


BANK = Bank().learn(members(1), BankConfig(), cycle=1, seed=0).bank
FIRST, SECOND = (pattern.id for pattern in BANK.patterns)


def quiet(progress: Progress) -> None:
    assert progress.stage == "distill"


def taught(bank: Bank, distill: Any, cycle: int = 1, **settings: Any) -> tuple[Bank, dict[str, float]]:
    return with_new_lessons(bank, distill, Config(lessons=LessonsConfig(**settings)), cycle, quiet)


def counted(metrics: dict[str, float]) -> tuple[float, ...]:
    return tuple(metrics[f"lessons_{name}"] for name in ("asked", "failed", "written", "refused"))


def good(request: LessonRequest) -> list[LessonDraft]:
    return [LessonDraft(title="T", when="W", advice="do", text=f"For {request.pattern.id}.")]


def test_patterns_that_are_due_get_lessons() -> None:
    bank, metrics = taught(BANK, good)
    assert counted(metrics) == (2, 0, 2, 0)
    assert [[one.id for one in pattern.lessons] for pattern in bank.patterns] == [["l1-0"], ["l1-1"]]
    assert {pattern.id: bank.asked[pattern.id].count for pattern in bank.patterns} == {FIRST: 20, SECOND: 20}
    assert taught(bank, good)[1]["lessons_asked"] == 0, "not before they have grown"


def raises(error: BaseException) -> Callable[[LessonRequest], None]:
    def distill(request: LessonRequest) -> None:
        raise error

    return distill


def ends_badly(request: LessonRequest) -> Iterator[LessonDraft]:
    yield from good(request)
    raise RuntimeError("in the middle")


@pytest.mark.parametrize(
    "distill", [raises(OSError("no network")), raises(SystemExit(3)), lambda: None, ends_badly, lambda request: 1 / 0]
)
def test_what_a_distiller_raises_is_counted_and_costs_its_lessons_alone(
    distill: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bank, metrics = taught(BANK, distill)
    assert counted(metrics) == (2, 2, 0, 0)
    assert bank.lessons == 0
    assert caplog.text.count("could not be distilled") == 2
    assert taught(bank, good)[0].lessons == 2, "they may be asked of again"


def test_one_failure_leaves_the_others_theirs() -> None:
    def distill(request: LessonRequest) -> list[LessonDraft]:
        if request.pattern.id == FIRST:
            raise ValueError("no")
        return good(request)

    bank, metrics = taught(BANK, distill)
    assert counted(metrics) == (2, 1, 1, 0)
    assert [len(pattern.lessons) for pattern in bank.patterns] == [0, 1]


@pytest.mark.parametrize("answer", ["text", 7, [None], [{}], {"a": 1}, [{"title": "x"}], [good]])
def test_rubbish_is_counted(answer: object) -> None:
    bank, metrics = taught(BANK, lambda request: answer)
    assert counted(metrics) == (2, 0, 0, 2)
    assert bank.lessons == 0
    assert taught(bank, good)[1]["lessons_asked"] == 0, "it was answered"


def test_foreign_ids_are_left_out() -> None:
    def distill(request: LessonRequest) -> list[dict[str, object]]:
        other = next(one for one in BANK.patterns if one.id != request.pattern.id).exemplars[0].trajectory_id
        fields = {"title": "T", "when": "W", "advice": "do"}
        return [
            {**fields, "text": "one", "trajectory_ids": [other, request.trajectory_ids[0]]},
            {**fields, "text": "two", "trajectory_ids": [other]},
        ]

    bank, metrics = taught(BANK, distill)
    assert counted(metrics) == (2, 0, 2, 2)
    for pattern in bank.patterns:
        own = {one.trajectory_id for one in (*pattern.exemplars, *pattern.failures)}
        assert {*pattern.lessons[0].trajectory_ids, *pattern.lessons[0].shown} <= own


def test_a_cancelled_cycle_ends_between_two_requests() -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_new_lessons(BANK, good, Config(), 1, stop)


def test_the_index_serves_the_bank_with_lessons() -> None:
    bank, _ = taught(BANK, good)
    query = np.asarray(CENTRES[0], np.float32)
    assert [one.pattern.id for one in BANK.recall(query)] == [one.pattern.id for one in bank.recall(query)]
    assert bank.recall(query)[0].pattern.lessons
    assert BANK.lessons == 0


def cycled(bank: Bank, cycle: int, **fields: Any) -> tuple[Bank, dict[str, float]]:
    new = members(cycle, **fields)
    placed = bank.learn(new, BankConfig(), cycle=cycle, seed=0)
    return with_trials(bank, placed.bank, new, placed.pattern_ids)


def test_trials_move_the_counters_and_the_useless_goes() -> None:
    bank, _ = taught(BANK, good)
    bank, metrics = cycled(bank, 2, count=4, quality=0.9, recalled=("l1-0", FIRST))
    assert metrics == {"lessons_helped": 4, "lessons_harmed": 0, "lessons_dropped": 0}
    (lesson,) = bank.patterns[0].lessons
    assert (lesson.helpful, lesson.harmful) == (4, 0)
    bank, metrics = cycled(bank, 3, count=20, quality=0.2, recalled=("l1-1", "gone"))
    assert metrics == {"lessons_helped": 0, "lessons_harmed": 20, "lessons_dropped": 1}
    assert [[one.id for one in pattern.lessons] for pattern in bank.patterns] == [["l1-0"], []]
    assert [one.id for one in bank.asked[SECOND].dropped] == ["l1-1"]


def test_what_did_not_help_is_not_written_again() -> None:
    bank, _ = taught(BANK, good)
    bank, _ = cycled(bank, 2, count=40, quality=0.0, recalled=("l1-1",))
    told: list[LessonRequest] = []

    def distill(request: LessonRequest) -> list[LessonDraft]:
        told.append(request)
        return good(request)

    bank, metrics = taught(bank, distill, cycle=2)
    assert [one.id for request in told for one in request.dropped] == ["l1-1"]
    assert metrics["lessons_written"] == 0
    assert bank.lessons == 1


def better_and_worse() -> Bank:
    """Two patterns of 20, of the mean qualities 0.8 and 0.2, with a lesson each."""
    new = members(1, quality=0.8)
    new[1::2] = [replace(member, quality=0.2) for member in new[1::2]]
    bank, _ = taught(Bank().learn(new, BankConfig(), cycle=1, seed=0).bank, good)
    assert [pattern.verdict.mean for pattern in bank.patterns] == pytest.approx([0.8, 0.2])
    return bank


def with_split(bank: Bank, *, off: str) -> Bank:
    """``bank``, in whose history "half" was split from the pattern ``off``, and "quarter" from "half"."""
    parts = {"half": off, "quarter": "half"}
    splits = [PatternChange(cycle=2, change="split", pattern=part, other=of) for part, of in parts.items()]
    state = msgspec.msgpack.decode(bank.to_bytes(), type=BankState)
    return Bank.from_bytes(msgspec.msgpack.encode(msgspec.structs.replace(state, changes=(*state.changes, *splits))))


@pytest.mark.parametrize("name", ["half", "quarter"])
@pytest.mark.parametrize("place", [0, 1])
def test_half_of_a_pattern_is_judged_by_what_was_usual_for_the_whole(place: int, name: str) -> None:
    bank = better_and_worse()
    whole = bank.patterns[place]
    after = with_split(bank, off=whole.id)
    usual = (20 * whole.verdict.mean + 0.5) / 21
    for quality, harmful in ((usual - 0.01, 1), (usual + 0.01, 0)):
        (new,) = members(2, count=1, quality=quality, recalled=("l1-0",))
        judged, _ = with_trials(bank, after, [new], [name])
        assert judged.patterns[0].lessons[0].harmful == harmful


@pytest.mark.parametrize("name", ["", "born since"])
def test_where_nothing_was_known_the_mean_of_all_is_one_trajectory_s_word(name: str) -> None:
    bank = better_and_worse()
    (new,) = members(2, count=1, quality=1.0, recalled=("l1-0",))
    judged, _ = with_trials(bank, bank, [new], [name])
    (lesson,) = judged.patterns[0].lessons
    assert lesson.effect == pytest.approx(0.5, abs=1 / 254)
    assert lesson.noise == pytest.approx(0.25 * (1 + 1 / 1))


def test_a_lesson_of_a_pattern_that_goes_worse_than_others_is_judged_by_its_own() -> None:
    bank = better_and_worse()
    new = members(2, count=40, quality=0.2, recalled=("l1-1",))
    judged, metrics = with_trials(bank, bank, new, [bank.patterns[1].id] * 40)
    assert metrics["lessons_dropped"] == 0
    assert judged.patterns[1].lessons[0].effect == pytest.approx(0.2 - 4.5 / 21, abs=1 / 254)


def test_a_bank_without_lessons_counts_nothing() -> None:
    bank, metrics = cycled(BANK, 2, recalled=("l1-0",))
    assert metrics == {}
    assert bank.lessons == 0


def test_the_same_cycle_writes_the_same_bank() -> None:
    assert taught(BANK, good)[0].to_bytes() == taught(BANK, good)[0].to_bytes()
