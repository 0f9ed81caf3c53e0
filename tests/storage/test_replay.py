"""Replay: drawn by skill, by cycle and evenly by pattern, at a cost that the number of claims does not change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.errors import InvalidInputError
from sona.ports import Claim, Role
from sona.storage.claims import DRAWN, GROUPS_AFTER, ROLES
from sona.storage.connection import Connection
from sona.storage.replay import DRAW, DRAW_IN_GROUP, Replay
from sona.storage.store import DATABASE, Store
from sona.types import Version
from tests.storage.records import add, feedback, rated, report, run_cycle

Groups = dict[str, tuple[str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def learn(store: Store, groups: Groups, *, publish: bool = False, role: Role = "train") -> None:
    """One cycle that claims trajectories of these ids for their skills and patterns."""
    add(store, rated(groups))
    run_cycle(store, publish=publish, role=role, groups=groups)


def counted(
    store: Store,
    draws: int = 200,
    *,
    role: Role = "train",
    skills: Sequence[str] | None = None,
    after_cycle: int = 0,
    balanced: bool = False,
) -> Counter[str]:
    rows = store.sample(
        role, draws, np.random.default_rng(0), skills=skills, after_cycle=after_cycle, balanced=balanced
    )
    return Counter(row.trajectory.id for row in rows)


def is_likely(count: int, draws: int, chance: float) -> bool:
    """Within five standard deviations of a binomial count, where one in two million is not."""
    return abs(count - draws * chance) <= 5 * math.sqrt(draws * chance * (1 - chance))


# What is drawn from


def test_a_skill_leaves_only_its_own(store: Store) -> None:
    learn(store, {"a": ("s1", "p1"), "b": ("s2", "p1"), "c": ("s1", "p2"), "d": ("", "p1")})
    learn(store, {"e": ("s1", "p1"), "f": ("s2", "p3")})
    assert set(counted(store, skills=["s1"])) == {"a", "c", "e"}
    assert set(counted(store, skills=["s2"])) == {"b", "f"}
    assert set(counted(store, skills=[""])) == {"d"}
    assert [store.replayable("train", skills=[skill]) for skill in ("s1", "s2", "")] == [3, 2, 1]


def test_several_skills_are_drawn_from_as_one(store: Store) -> None:
    learn(store, {"a": ("s1", "p1"), "b": ("s2", "p1"), "c": ("s3", "p1"), "d": ("s3", "p1")})
    counts = counted(store, 3000, skills=["s1", "s3", "s3", "unknown"])
    assert set(counts) == {"a", "c", "d"}
    assert all(is_likely(count, 3000, 1 / 3) for count in counts.values())
    assert store.replayable("train", skills=["s1", "s3", "s3", "unknown"]) == 3


def test_the_role_is_kept_apart(store: Store) -> None:
    learn(store, {"a": ("s1", "p1")})
    learn(store, {"b": ("s1", "p1")}, role="held_out")
    assert set(counted(store, skills=["s1"])) == {"a"}
    assert set(counted(store, role="held_out", skills=["s1"], balanced=True)) == {"b"}
    assert (store.replayable("train"), store.replayable("held_out")) == (1, 1)


def test_only_cycles_after_the_one_named_count(store: Store) -> None:
    for name in "abcd":
        learn(store, {name: ("s1" if name in "ac" else "s2", "p1")})
    for after, names in enumerate(["abcd", "bcd", "cd", "d", "", ""]):
        assert set(counted(store, after_cycle=after)) == set(names)
        assert set(counted(store, after_cycle=after, skills=["s1"])) == set(names) & {"a", "c"}
        assert set(counted(store, after_cycle=after, balanced=True)) == set(names)
        assert store.replayable("train", after_cycle=after) == len(names)


def test_nothing_found_is_no_draw(store: Store) -> None:
    for balanced in (False, True):
        assert counted(store, balanced=balanced) == {}
    learn(store, {"a": ("s1", "p1")})
    for skills, after_cycle, draws in ((["s2"], 0, 5), ([], 0, 5), (["s1"], 1, 5), (None, 1, 5), (["s1"], 0, 0)):
        for balanced in (False, True):
            assert counted(store, draws, skills=skills, after_cycle=after_cycle, balanced=balanced) == {}
    assert store.replayable("train", skills=[]) == 0


def test_a_text_in_place_of_a_list_of_skills_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match=r"give a list of them, \['s1'\]"):
        counted(store, skills="s1")
    with pytest.raises(InvalidInputError, match="role 'left_out'"):
        store.replayable("left_out")


@pytest.mark.parametrize("text", [" ", "a\0", "\ud800", "x" * 201, None, 3])
def test_a_skill_or_pattern_that_is_no_id_is_refused(store: Store, text: str) -> None:
    add(store, rated("a"))
    for claim in (Claim(seq=1, role="train", skill=text), Claim(seq=1, role="train", pattern=text)):
        with pytest.raises(InvalidInputError, match="of a claim"):
            store.commit_cycle(report(1), [claim], None)
    assert store.next_cycle() == 1


def test_claims_come_back_as_they_were_given(store: Store) -> None:
    add(store, rated("abcd"))
    pairs = [("s2", "p2"), ("s1", "p1"), ("s2", "p1"), ("", "p1")]
    claims = [
        Claim(seq=row.seq, role="train", feedback_seq=row.feedback_seq, skill=skill, pattern=pattern)
        for row, (skill, pattern) in zip(store.collect(9).rows, pairs, strict=True)
    ]
    store.commit_cycle(report(1), claims, None)
    assert store.claims(1) == claims


def test_names_that_only_look_alike_stay_apart(store: Store) -> None:
    learn(store, {"a": ("s", "S"), "b": ("S", "s"), "c": ("s ", "p"), "d": ("1", "p"), "e": ("é", "p")})
    for name, skill in (("a", "s"), ("b", "S"), ("c", "s "), ("d", "1"), ("e", "é")):
        assert set(counted(store, skills=[skill])) == {name}
    assert counted(store, skills=["e\u0301", "01"]) == {}


# How often


def test_each_claim_of_a_skill_is_as_likely_as_any_other(store: Store) -> None:
    learn(store, {"a": ("s1", "p1"), "x": ("s2", "p1"), "b": ("s1", "p2")})
    learn(store, {"c": ("s1", "p1")}, publish=True)
    counts = counted(store, 6000, skills=["s1"])
    assert set(counts) == {"a", "b", "c"}
    assert all(is_likely(count, 6000, 1 / 3) for count in counts.values())


def test_a_balanced_draw_gives_each_pattern_its_share(store: Store) -> None:
    learn(store, {"one": ("s1", "small"), **{f"a{number}": ("s1", "big") for number in range(20)}})
    learn(store, {**{f"b{number}": ("s2", "big") for number in range(20)}, "two": ("s2", "other")})
    learn(store, {"three": ("", "")})
    counts = counted(store, 8000, balanced=True)
    assert all(is_likely(counts[name], 8000, 1 / 4) for name in ("one", "two", "three"))
    big = [counts[f"{cycle}{number}"] for cycle in "ab" for number in range(20)]
    assert all(is_likely(count, 8000, 1 / 160) for count in big)
    assert sum(counts.values()) == 8000


def test_a_balanced_draw_counts_only_the_patterns_that_are_left(store: Store) -> None:
    learn(store, {"a": ("s1", "p1"), "b": ("s1", "p2"), "c": ("s1", "p2"), "x": ("s2", "p3"), "y": ("s2", "p1")})
    counts = counted(store, 4000, skills=["s1"], balanced=True)
    assert set(counts) == {"a", "b", "c"}
    assert is_likely(counts["a"], 4000, 1 / 2)
    assert is_likely(counts["b"], 4000, 1 / 4)


def test_a_draw_follows_from_its_seed_alone(store: Store) -> None:
    """Neither from what the same store was asked before, nor from when it was opened."""
    rows = []
    for number in range(4):
        groups = {f"{number}-{place}": (f"s{(place + number) % 3}", f"p{place % 4 + number}") for place in range(12)}
        learn(store, groups, publish=True)
        with Store.open(store.path, read_only=True) as fresh:
            rows = [
                one.sample("train", 40, np.random.default_rng(3), skills=["s1", "s2"], balanced=True)
                for one in (store, store, fresh)
            ]
        assert rows[0] == rows[1] == rows[2]
    assert len({row.trajectory.id for row in rows[0]}) > 20


# What stands


def test_drawing_by_skill_follows_the_lineage(store: Store) -> None:
    learn(store, {"a": ("s1", "p1")}, publish=True)
    learn(store, {"b": ("s1", "p2")}, publish=True)
    assert set(counted(store, skills=["s1"])) == {"a", "b"}
    store.set_current("v1")
    assert set(counted(store, skills=["s1"], balanced=True)) == {"a"}
    assert store.replayable("train") == 1
    learn(store, {"c": ("s1", "p3"), "d": ("s2", "p2")}, publish=True)
    assert set(counted(store, skills=["s1"])) == {"a", "c"}
    assert set(counted(store, balanced=True, after_cycle=1)) == {"c", "d"}
    store.set_current("v2")
    assert set(counted(store, skills=["s1"])) == {"a", "b"}
    store.set_current("v0")
    assert counted(store, balanced=True) == {}
    assert store.replayable("train") == 0


def test_what_was_left_out_and_taken_again_leaves_no_gap(store: Store) -> None:
    learn(store, dict.fromkeys("abcde", ("s1", "p1")), role="left_out")
    assert counted(store, skills=["s1"]) == {}
    add(store, [feedback(name, 0.9, id=f"again-{name}") for name in "bd"])
    run_cycle(store, groups={"b": ("s1", "p1"), "d": ("s1", "p1")})
    assert [len(store.claims(cycle)) for cycle in (1, 2)] == [3, 2]
    assert set(counted(store, skills=["s1"])) == {"b", "d"}
    add(store, [feedback("c", 0.9, id="again-c")])
    run_cycle(store, groups={"c": ("s1", "p1")}, role="held_out")
    assert set(counted(store, role="held_out", balanced=True)) == {"c"}
    assert set(counted(store, balanced=True)) == {"b", "d"}
    assert (store.replayable("train"), store.replayable("held_out")) == (2, 1)


class Taken(NamedTuple):
    """A claim, as the slow reference remembers it."""

    cycle: int
    name: str
    role: Role
    skill: str
    pattern: str


def slow_choice(
    taken: list[Taken], parents: dict[str, str], current: str, role: Role, skills: list[str] | None, after_cycle: int
) -> list[Taken]:
    """What stands, by walking through all claims; ``parents`` are those of the published versions."""
    lineage = set()
    version: str | None = current
    while version is not None:
        lineage.add(version)
        version = parents.get(version)
    return [
        one
        for one in taken
        if one.role == role
        and one.cycle > after_cycle
        and (skills is None or one.skill in skills)
        and (f"v{one.cycle}" not in parents or f"v{one.cycle}" in lineage)
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_draws_agree_with_a_slow_choice(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    skill, pattern = st.sampled_from(["", "s1", "s2"]), st.sampled_from(["", "p1", "p2", "s1"])
    taken: list[Taken] = []
    parents: dict[str, str] = {}
    with Store.open(tmp_path_factory.mktemp("draws")) as store:
        for cycle in range(1, data.draw(st.integers(1, 5)) + 1):
            kinds = data.draw(st.lists(st.tuples(st.sampled_from(ROLES), skill, pattern), max_size=8))
            add(store, rated(f"{cycle}-{place}" for place in range(len(kinds))))
            if data.draw(st.booleans()):
                left = [one for one in taken if one.role == "left_out"]
                add(store, [feedback(one.name, 0.9, id=f"{cycle}-again-{one.name}") for one in left])
                taken = [one for one in taken if one.role != "left_out"]
                kinds += [("train", "s1", "p1")] * len(left)
            rows = store.collect(100).rows
            current, claims = store.current().id, []
            for row, (role, one_skill, one_pattern) in zip(rows, kinds, strict=True):
                claims.append(Claim(seq=row.seq, role=role, skill=one_skill, pattern=one_pattern))
                taken.append(Taken(cycle, row.trajectory.id, role, one_skill, one_pattern))
            if data.draw(st.booleans()):
                version = Version(id=f"v{cycle}", parent=current, cycle=cycle, created_ns=0, digest="")
                parents[version.id] = current
                outcome = report(cycle, status="published", parent=current, version=version.id)
                store.commit_cycle(outcome, claims, version)
            else:
                store.commit_cycle(report(cycle), claims, None)
            if data.draw(st.booleans()):
                store.set_current(data.draw(st.sampled_from(["v0", *parents])))
            check_draws(store, taken, parents, data)


def check_draws(store: Store, taken: list[Taken], parents: dict[str, str], data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(DRAWN))
    skills = data.draw(st.none() | st.lists(st.sampled_from(["", "s1", "s2", "s3", "p1"]), max_size=3))
    after_cycle = data.draw(st.integers(-1, 4))
    current = store.current().id
    expected = slow_choice(taken, parents, current, role, skills, after_cycle)
    assert store.replayable(role, skills=skills, after_cycle=after_cycle) == len(expected)
    for balanced in (False, True):
        counts = counted(store, 60, role=role, skills=skills, after_cycle=after_cycle, balanced=balanced)
        assert set(counts) <= {one.name for one in expected}
        assert sum(counts.values()) == (60 if expected else 0)
    everything = slow_choice(taken, parents, current, role, None, 0)
    rows = store.sample(role, 20, np.random.default_rng(0))
    picks = np.random.default_rng(0).integers(max(len(everything), 1), size=20).tolist()
    assert [row.trajectory.id for row in rows] == [everything[pick].name for pick in picks if everything]


# What it costs


class Meter:
    """Draws by a connection of its own, and the instructions that SQLite runs for them: no clock disturbs it."""

    def __init__(self, path: Path) -> None:
        self.connection = Connection(str(path / DATABASE), path, apsw.SQLITE_OPEN_READONLY)
        self.replay = Replay()
        self.steps = 0
        self.connection.set_progress_handler(self._count, 1)

    def _count(self) -> bool:
        self.steps += 1
        return False

    def cost(self, skills: list[str] | None, balanced: bool) -> int:
        before = self.steps
        rng = np.random.default_rng(0)
        rows = self.replay.sample(self.connection, "train", 50, rng, skills=skills, after_cycle=0, balanced=balanced)
        assert len(rows) == 50
        return self.steps - before


def cost_of_draws(store: Store, claims: int) -> list[int]:
    """For a store of two cycles and twelve groups: what the first draws and later ones cost."""
    for cycle in range(2):
        names = [f"{claims}-{cycle}-{number}" for number in range(claims // 2)]
        learn(store, {name: (f"s{place % 2}", f"p{place % 6}") for place, name in enumerate(names)})
    meter = Meter(store.path)
    kinds: list[tuple[list[str] | None, bool]] = [(None, False), (["s1"], False), (None, True), (["s0", "s1"], True)]
    costs = [meter.cost(*kind) for _ in range(2) for kind in kinds]
    meter.connection.close()
    return costs


def test_the_cost_of_drawing_does_not_follow_the_number_of_claims(tmp_path: Path) -> None:
    with Store.open(tmp_path / "few") as few, Store.open(tmp_path / "many") as many:
        costs = zip(cost_of_draws(few, 300), cost_of_draws(many, 1800), strict=True)
        assert all(after <= before * 1.2 for before, after in costs)  # of 50 draws from few claims some are the same


def test_a_cycle_reads_only_its_own_groups(store: Store) -> None:
    learn(store, {"first": ("s1", "p1")})
    meter = Meter(store.path)
    costs = []
    for cycle in range(30):
        learn(store, {f"{cycle}-{place}": (f"s{place % 2}", f"p{place}") for place in range(8)})
        before = meter.steps
        assert meter.replay.count(meter.connection, "train", skills=["s1"], after_cycle=0) == 1 + 4 * (cycle + 1)
        costs.append(meter.steps - before)
    meter.connection.close()
    assert max(costs[1:]) == min(costs[1:])  # the first also reads the cycle before it


def test_drawing_walks_through_no_table(store: Store) -> None:
    connection = Connection(str(store.path / DATABASE), store.path, apsw.SQLITE_OPEN_READONLY)
    for sql, values in (
        (DRAW, (1, "train", 0)),
        (DRAW_IN_GROUP, (1, "train", "s1", "p1", 0)),
        (GROUPS_AFTER, (1,)),
    ):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert [line for line in plan if line.startswith("SCAN") or "TEMP B-TREE" in line] == []
        assert any("SEARCH" in line for line in plan)
    connection.close()
