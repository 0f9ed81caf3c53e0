"""A cycle's trajectories by skill: what is learned, what waits, and what is remembered when."""

from collections.abc import Sequence

import numpy as np
import pytest

from sona.bank.skills import HELD_OUT, SHARED, Skill, SkillSet
from sona.loops.roster import FEW, LATER, Roster, shared_roster
from sona.loops.screen import Ready
from sona.loops.sorting import BASE
from sona.loops.split import Split
from sona.ports import Stored
from sona.types import Trajectory

CYCLE = 7


def items(count: int) -> list[Ready]:
    rows = [
        Stored(seq=place + 1, trajectory=Trajectory(prompt_ids=[1], response_ids=[2]), quality=1.0)
        for place in range(count)
    ]
    asked = np.asarray([1], np.int32)
    return [Ready(row, asked, np.asarray([2], np.int32), asked) for row in rows]


def skills(*names: str) -> SkillSet:
    found = SkillSet()
    for name in names:
        found = found.put(Skill(id=name, adapter=name, born_cycle=1, touched_cycle=1))
    return found


def roster(trained: Sequence[str], held_out: Sequence[str] = (), pushed: Sequence[str] = (), born: str = "") -> Roster:
    owners = [*trained, *held_out, *pushed]
    features = np.arange(len(owners), dtype=np.float32)[:, None]
    parts = Split(items(len(trained)), items(len(held_out)))
    return Roster(parts, items(len(pushed)), features, owners, skills("s1", "s2"), [born] if born else [])


def remembered(found: SkillSet) -> dict[str, list[float]]:
    return {name: rows[:, 0].tolist() for name, rows in found.rows.items()}


def test_every_trajectory_has_its_place_and_its_features() -> None:
    found = roster(["s1", BASE, "s2"], ["s1", "s2"], ["s2", BASE])
    assert (list(found.trained), list(found.held_out), list(found.pushed)) == ([0, 1, 2], [3, 4], [5, 6])
    assert len(found.items) == 7
    assert [found.of(skill, range(7)) for skill in found.skills.skills] == [[0, 3], [2, 4, 5]]
    rows = found.rows([6, 0])
    assert rows is not None
    assert rows[:, 0].tolist() == [6, 0]


def test_a_skill_is_touched_by_what_is_learned_for_it_and_not_by_what_is_held_out() -> None:
    assert [skill.id for skill in roster(["s1"], ["s2"]).touched()] == ["s1"]
    assert [skill.id for skill in roster([BASE], ["s2"], ["s1"]).touched()] == ["s1"]


def test_held_out_queries_are_remembered_only_once_they_have_been_judged_by() -> None:
    found = roster(["s1", BASE], ["s1", "s2", BASE], ["s2", BASE])
    taken_in = found.taken_in(CYCLE)
    assert remembered(taken_in) == {"s1": [0], BASE: [1], "s2": [5]}
    assert [(skill.count, skill.touched_cycle) for skill in taken_in.skills] == [(1, CYCLE), (0, CYCLE)]
    assert remembered(found.with_held_out(taken_in)) == {
        "s1": [0],
        BASE: [1],
        "s2": [5],
        f"{HELD_OUT}s1": [2],
        f"{HELD_OUT}s2": [3],
        HELD_OUT: [4],
    }, "apart, so that the router can be judged by them"


def test_what_became_part_of_another_skill_is_remembered_there() -> None:
    found = roster(["s1"], ["s2", "s2"])
    merged = found.taken_in(CYCLE).with_rows("s2", np.zeros((0, 1), np.float32)).merged("s1", "s2")
    assert remembered(found.with_held_out(merged)) == {"s1": [0], f"{HELD_OUT}s1": [1, 2]}
    gone = found.taken_in(CYCLE).without("s2")
    assert remembered(found.with_held_out(gone)) == {"s1": [0]}, "a skill that is no more has no rows"


def test_a_skill_with_few_answers_waits_for_more() -> None:
    found = roster(["s1"] * 3 + ["s2"] * 4 + [BASE], ["s1"] * 2).without_few(4, -1)
    assert found.owners == [LATER] * 3 + ["s2"] * 4 + [BASE] + ["s1"] * 2
    assert roster(["s1"] * 3).without_few(4, seen=99).owners == [FEW] * 3, "they waited once, and no more came"
    assert [skill.id for skill in found.touched()] == ["s2"]
    assert LATER not in remembered(found.taken_in(CYCLE))


@pytest.mark.parametrize("owner", [BASE, SHARED, "s2"])
def test_the_base_the_shared_adapter_and_a_new_skill_wait_for_nothing(owner: str) -> None:
    assert roster([owner] * 3, born="s2").without_few(4, -1).owners == [owner] * 3


def test_without_routing_everything_is_the_shared_skill_s() -> None:
    found = shared_roster(Split(items(3), items(2)), items(1), skills("s1"), CYCLE)
    assert found.owners == [SHARED] * 6
    assert [(skill.id, skill.adapter) for skill in found.skills.skills] == [(SHARED, SHARED)]
    after = found.with_held_out(found.taken_in(CYCLE))
    assert (after.skills[0].count, dict(after.rows)) == (3, {})
    again = shared_roster(Split(items(2), []), [], after, CYCLE + 1)
    assert again.taken_in(CYCLE + 1).skills[0].count == 5
