"""The best route for a query, by what the routes did for queries like it."""

from typing import Any

import numpy as np
import pytest

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError
from sona.patterns import BestRoute

WIDTH = 16
CENTRES = 4 * np.eye(WIDTH, dtype=np.float32)[:3]


def near(place: int, seed: int) -> Float32:
    return np.asarray(CENTRES[place] + 0.3 * np.random.default_rng(seed).normal(size=WIDTH), dtype=np.float32)


def tried(place: int, route: str, right: int, wrong: int, cycle: int = 1) -> list[Member]:
    qualities = [1.0] * right + [0.0] * wrong
    return [
        Member(f"{cycle}-{place}-{route}-{n}", near(place, 1000 * cycle + 100 * place + n), quality, "q", "a", (route,))
        for n, quality in enumerate(qualities)
    ]


def learned(*cycles: list[Member], settings: BankConfig = BankConfig()) -> Bank:  # noqa: B008 - frozen
    bank = Bank()
    for number, members in enumerate(cycles, start=1):
        bank = bank.learn(members, settings, cycle=number, seed=0).bank
    return bank


def best(bank: Bank, place: int, kind: str | None = None) -> BestRoute:
    found = bank.best_route(near(place, 7), kind)
    assert found is not None
    return found


GOOD_HERE_BAD_THERE = [
    *tried(0, "tool:search", 30, 3),
    *tried(0, "tool:lookup", 5, 25),
    *tried(1, "tool:search", 4, 28),
    *tried(1, "tool:lookup", 29, 4),
]


def test_the_best_route_is_that_of_the_querys_pattern() -> None:
    bank = learned(GOOD_HERE_BAD_THERE)
    here, there = best(bank, 0), best(bank, 1)
    assert (here.route, there.route) == ("tool:search", "tool:lookup")
    assert here.chosen.count == 33
    assert here.chosen.best > 0.99
    assert here.chosen.quality == pytest.approx(30 / 33, abs=0.06)  # drawn a little towards what it is elsewhere
    assert here.chosen.low < here.chosen.quality < here.chosen.high
    assert [one.route for one in here.others] == ["tool:lookup"]
    assert here.others[0].high < here.chosen.low
    assert here.pattern != there.pattern


ELSEWHERE = [
    *tried(0, "tool:good", 30, 0),
    *tried(1, "tool:bad", 0, 30),
    *(Member(f"x{n}", near(2, n), 0.5, "q", "a") for n in range(30)),
]


def test_a_pattern_without_tries_falls_back_on_what_a_route_is_worth_elsewhere() -> None:
    found = best(learned(ELSEWHERE), 2)
    assert (found.route, found.chosen.count) == ("tool:good", 0)
    assert found.chosen.low < 0.5 < found.chosen.high  # hardly any evidence
    assert 0.6 < found.chosen.best < 0.99


def test_what_was_only_taken_for_other_queries_is_not_recommended() -> None:
    """Each intent has a tool of its own, and one of them rarely works."""
    bank = learned([*tried(0, "tool:reset", 9, 21), *tried(1, "tool:refund", 29, 1), *tried(2, "tool:track", 28, 2)])
    assert (best(bank, 0).route, best(bank, 0).others) == ("tool:reset", ())
    rng = np.random.default_rng(0)
    assert {found.route for _ in range(50) if (found := bank.best_route(near(0, 7), explore=rng))} == {"tool:reset"}
    asked = bank.best_route(near(0, 7), among=["tool:reset", "tool:refund", "tool:never"])
    assert asked is not None
    found_here = best(bank, 0).chosen.count
    assert found_here >= 29  # one may lie far out
    assert {one.route: one.count for one in (asked.chosen, *asked.others)} == {
        "tool:reset": found_here,
        "tool:refund": 0,
        "tool:never": 0,
    }


@pytest.mark.parametrize(
    "question",
    [
        {"kind": "tool:search"},
        {"kind": 5},
        {"kind": ["tool"]},
        {"among": []},
        {"among": "tool:a"},
        {"among": [5]},
        {"explore": True},
    ],
)
def test_a_question_that_makes_no_sense_is_a_typed_error(question: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"allowed|name some"):
        learned(ELSEWHERE).best_route(near(0, 7), **question)


def test_kinds_are_compared_among_themselves() -> None:
    bank = learned([*tried(0, "tool:search", 20, 10), *tried(0, "model:large", 30, 0), *tried(1, "model:small", 9, 21)])
    assert best(bank, 0, "tool").route == "tool:search"
    assert best(bank, 0, "tool").others == ()
    assert best(bank, 0, "model").route == "model:large"
    assert best(bank, 0).route == "model:large"
    assert bank.best_route(near(0, 7), "plan") is None
    assert Bank().best_route(near(0, 7)) is None


def test_a_route_that_breaks_is_left_within_some_cycles() -> None:
    worked = [*tried(0, "tool:old", 100, 0, 1), *tried(0, "tool:new", 40, 40, 1)]
    broke = [[*tried(0, "tool:old", 0, 20, c), *tried(0, "tool:new", 16, 4, c)] for c in range(2, 5)]
    assert best(learned(worked), 0).route == "tool:old"
    found = best(learned(worked, *broke), 0)
    assert found.route == "tool:new"
    assert found.chosen.low > found.others[0].quality


def test_exploration_tries_each_as_often_as_it_may_be_the_best() -> None:
    few = [
        *tried(0, "tool:a", 3, 2),
        *tried(0, "tool:b", 2, 3),
        *tried(0, "tool:c", 0, 40),
        *tried(1, "tool:d", 25, 25),
    ]
    bank, rng = learned(few), np.random.default_rng(0)
    drawn = [bank.best_route(near(0, 7), explore=rng) for _ in range(2000)]
    routes = [one.route for one in drawn if one is not None]
    shares = {one.route: one.best for one in (best(bank, 0).chosen, *best(bank, 0).others)}
    for route, share in shares.items():
        assert routes.count(route) / 2000 == pytest.approx(share, abs=0.05)
    assert 0.15 < shares["tool:b"] < 0.5


def test_a_query_of_another_width_is_a_typed_error() -> None:
    with pytest.raises(DimensionMismatchError, match="width 3"):
        learned(GOOD_HERE_BAD_THERE).best_route(np.ones(3, dtype=np.float32))
