"""A bank without what comes from certain trajectories."""

import msgspec
import numpy as np

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.shelf import Asked
from sona.config import BankConfig
from sona.patterns import Lesson
from tests.bank.lesson_records import lesson

WIDTH = 8
CENTRES = np.random.default_rng(0).normal(size=(2, WIDTH))


def learned(count: int = 40) -> Bank:
    """Of two patterns; every fourth trajectory is Eve's, and went by a route of hers."""
    rng = np.random.default_rng(1)
    members = [
        Member(
            f"{'eve' if place % 4 == 0 else 'bob'}-{place}",
            np.asarray(CENTRES[place % 2] + 0.1 * rng.normal(size=WIDTH), np.float32),
            0.9 if place % 3 else 0.1,
            f"question {place}",
            "answer",
            routes=("tool:hers", "tool:common") if place % 4 == 0 else ("tool:common",),
        )
        for place in range(count)
    ]
    bank = Bank().learn(members, BankConfig(), cycle=1, seed=0).bank
    assert len(bank.patterns) == 2
    return bank


def with_lessons(*lessons: Lesson, dropped: tuple[Lesson, ...] = ()) -> Bank:
    bank = learned()
    name = bank.patterns[0].id
    return bank.with_lessons({name: lessons}, {name: Asked(count=20, dropped=dropped)})


def is_eve(name: str) -> bool:
    return name.startswith("eve")


def test_lessons_survive_storing_and_learning() -> None:
    bank = with_lessons(lesson("l1-0", trials=b"12345678" * 2), dropped=(lesson("l0-0"),))
    again = Bank.from_bytes(bank.to_bytes())
    assert again.patterns == bank.patterns
    assert again.asked == bank.asked
    more = Member("more", np.asarray(CENTRES[0], np.float32), 0.5, "q", "a")
    after = again.learn([more], BankConfig(), cycle=2, seed=0).bank
    assert (after.lessons, after.asked) == (1, bank.asked)


def test_a_bank_of_before_there_were_lessons_is_read() -> None:
    bank = learned()
    assert b"asked" not in bank.to_bytes()
    assert Bank.from_bytes(bank.to_bytes()).asked == {}


def test_nothing_of_hers_is_left() -> None:
    bank = with_lessons(
        lesson("l1-0", trajectory_ids=("eve-4", "bob-1"), shown=()),
        lesson("l1-1", trajectory_ids=("bob-1",), shown=("bob-1", "eve-4")),
        lesson("l1-2", trajectory_ids=("bob-1",), shown=("bob-1", "bob-3")),
        dropped=(lesson("l0-0", shown=("eve-0",)), lesson("l0-1", shown=("bob-1",))),
    )
    assert b"eve" in bank.to_bytes()
    left = bank.without(is_eve, lambda route: route == "tool:hers")
    assert b"eve" not in left.to_bytes()
    assert b"hers" not in left.to_bytes()
    assert [one.id for one in left.patterns[0].lessons] == ["l1-2"]
    assert [one.id for one in left.asked[left.patterns[0].id].dropped] == ["l0-1"]
    assert [one.count for one in left.patterns] == [one.count for one in bank.patterns]
    assert all(one.exemplars and set(one.routes) == {"tool:common"} for one in left.patterns)
    assert left.patterns[0].verdict == bank.patterns[0].verdict


def test_a_pattern_that_lost_a_lesson_may_be_asked_of_at_once() -> None:
    bank = with_lessons(lesson("l1-0", shown=("eve-4",)))
    name = bank.patterns[0].id
    assert bank.asked[name].count == 20
    assert bank.without(is_eve).asked[name].count == 0
    kept = with_lessons(lesson("l1-0", shown=("bob-1",)))
    assert kept.without(is_eve).asked[name].count == 20


def test_families_are_not_called_by_what_is_gone() -> None:
    bank = learned().with_families()
    named = {one.family for one in bank.patterns}
    assert bank.without(lambda name: name == "nobody") is bank
    shown = {one.trajectory_id for p in bank.patterns for one in p.exemplars if one.prompt in named}
    left = bank.without(lambda name: name in shown)
    assert named.isdisjoint(one.family for one in left.patterns)
    assert all(one.family for one in left.patterns)
    # ... also where the exemplar itself had left the bank before
    renamed = [msgspec.structs.replace(one, family="words of hers") for one in bank.patterns]
    again = Bank(renamed, np.zeros(WIDTH, np.float32)).without(lambda name: False)
    assert {one.family for one in again.patterns} == named


def test_where_nothing_is_to_go_it_is_the_same_bank() -> None:
    bank = with_lessons(lesson("l1-0"))
    assert bank.without(lambda name: name == "nobody", lambda route: False) is bank


def test_each_trajectory_is_asked_about_once() -> None:
    asked: list[str] = []

    def gone(name: str) -> bool:
        asked.append(name)
        return False

    learned().without(gone)
    assert len(set(asked)) == len(asked) > 0
