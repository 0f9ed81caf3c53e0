"""Candidates and weights of memories in the store: durable, once, and as hard to lose as all else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sona.candidate import CHANGES, KEPT_REJECTED, STATES, Candidate, Mattered, MemoryWeight, Settled, State
from sona.errors import CycleError, InvalidInputError, StateChangeError, StoreCorruptError, UnknownIdError
from sona.storage.catalogue import CANDIDATES, Row
from sona.storage.doctor import diagnose
from sona.storage.quarantine import Quarantine
from sona.storage.repair import repair
from sona.storage.retention import Limits
from sona.storage.salvage import Found, rebuild
from sona.storage.store import DATABASE, Store
from sona.types import Version
from tests.reviews import NOW, candidate
from tests.storage.records import add, feedback, report, run_cycle, trajectory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def publish(store: Store, settled: list[Settled]) -> None:
    """A cycle that takes candidates alone."""
    cycle, parent = store.next_cycle(), store.current().id
    version = Version(id=f"v{cycle}", parent=parent, cycle=cycle, created_ns=cycle, digest="00")
    store.commit_cycle(report(cycle, status="published", parent=parent, version=version.id), [], version, settled)


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path / DATABASE)) as raw, raw:
        raw.execute(sql)


def pruned(store: Store, *, unlearned: bool = False) -> None:
    """All that retention may delete goes."""
    store.prune(Limits(days=1.0, trajectories=0, per_source=0, unlearned=not unlearned), now_ns=NOW + 10**15)


# One row a response


def test_what_was_added_comes_back_whole(store: Store) -> None:
    given = candidate(3, alternate="", divergence=-0.0, mattered=[Mattered(key="ключ", nats=-1.0)])
    assert store.candidates.add([given]) == [1]
    found = store.candidates.get(1)
    assert replace(found, seq=0, changes=()) == given
    assert [(change.state, change.by) for change in found.changes] == [("new", "scoring")]
    assert found.ids("bare_ids").tolist() == [1, 3]


def test_a_response_is_a_candidate_once_by_its_time_in_ns(store: Store) -> None:
    assert store.candidates.add([candidate(0), candidate(0, divergence=9.0), candidate(0, at_ns=NOW + 1)]) == [1, 0, 2]
    assert store.candidates.get(1).divergence == 1.0
    assert store.candidates.knows("turn-0", NOW)
    assert not store.candidates.knows("turn-0", NOW + 2)


def test_a_response_without_a_time_is_no_candidate() -> None:
    with pytest.raises(InvalidInputError, match="a response without a time has no key"):
        candidate(at_ns=0)


def test_new_ones_come_without_losing_approvals(store: Store) -> None:
    store.candidates.add([candidate(0), candidate(1)])
    store.candidates.change([1], "approved", by="ana")
    assert store.candidates.add([candidate(0), candidate(2)]) == [0, 3]
    assert [one.seq for one in store.candidates.approved(9)] == [1]
    assert [one.seq for one in store.candidates.heaviest("new", above=3.0)] == [3]


def test_the_ten_newest_rejected_are_kept(store: Store) -> None:
    store.candidates.add([candidate(place) for place in range(14)])
    for seq in range(14, 0, -1):
        store.candidates.change([seq], "rejected", by="ana")
    assert store.candidates.counts()["rejected"] == KEPT_REJECTED == 10
    assert sorted(one.seq for one in store.candidates.heaviest("rejected")) == list(range(1, 11))


def test_numbers_are_not_given_twice(store: Store) -> None:
    store.candidates.add([candidate(place) for place in range(12)])
    store.candidates.change(list(range(12, 0, -1)), "rejected", by="ana")
    assert store.candidates.add([candidate(20)]) == [13]


def test_a_damaged_row_is_an_error_and_never_empty(store: Store) -> None:
    store.candidates.add([candidate(0)])
    store.candidates.change([1], "approved", by="ana")
    publish(store, [Settled(seq=1, state="trained")])
    execute(store.path, "UPDATE candidates SET payload = x'80'")
    for use in (
        lambda: store.candidates.knows("turn-0", NOW),
        lambda: store.candidates.heaviest("trained"),
        lambda: store.candidates.trained([1]),
        lambda: store.candidates.add([candidate(0)]),
        lambda: store.candidates.get(1),
    ):
        with pytest.raises(StoreCorruptError, match="candidate 1, of trajectory 'turn-0' is damaged"):
            use()


# States


@settings(max_examples=30, deadline=None)
@given(walk=st.lists(st.sampled_from(get_args(State)), max_size=8))
def test_states_change_as_the_table_says(tmp_path_factory: pytest.TempPathFactory, walk: list[State]) -> None:
    with Store.open(tmp_path_factory.getbasetemp() / "walks") as store:
        seq = _fresh(store)
        at: State = "new"
        seen = ["new"]
        for state in walk:
            if state == at or state in CHANGES[at]:
                assert store.candidates.change([seq], state, by="walk")[0].state == state
                seen += [state] if state != at else []
                at = state
            else:
                with pytest.raises(StateChangeError, match=f"it is {at}, which can't become {state}"):
                    store.candidates.change([seq], state, by="walk")
        found = store.candidates.get(seq)
        assert found.state == at
        assert [change.state for change in found.changes] == seen


def _fresh(store: Store) -> int:
    """A candidate that is not there yet."""
    place = sum(store.candidates.counts().values()) + 1000
    while not (seq := store.candidates.add([candidate(place)])[0]):
        place += 1
    return seq


def test_what_is_trained_stays_so() -> None:
    assert CHANGES["trained"] == ()
    assert set(CHANGES) == set(STATES)


def test_all_change_or_none(store: Store) -> None:
    store.candidates.add([candidate(0), candidate(1)])
    store.candidates.change([2], "approved", by="ana")
    with pytest.raises(StateChangeError):
        store.candidates.change([1, 2], "trained", by="ana")
    with pytest.raises(UnknownIdError, match="candidate 9: there is none"):
        store.candidates.change([1, 9], "approved", by="ana")
    assert (store.candidates.get(1).state, store.candidates.get(2).state) == ("new", "approved")


# Cycles


def test_a_cycle_takes_what_is_approved_once(store: Store) -> None:
    store.candidates.add([candidate(0), candidate(1)])
    store.candidates.change([1], "approved", by="ana")
    publish(store, [Settled(seq=1, state="trained", skill="s1")])
    found = store.candidates.get(1)
    assert (found.state, found.cycle, found.skill) == ("trained", 1, "s1")
    for seq, what in ((1, "it is trained"), (2, "it is new"), (7, "there is none of this number")):
        with pytest.raises(CycleError, match=what):
            publish(store, [Settled(seq=seq, state="trained")])
    assert store.next_cycle() == 2, "nothing of those cycles is left"


def test_nothing_is_trained_by_a_cycle_that_publishes_nothing(store: Store) -> None:
    store.candidates.add([candidate(0)])
    store.candidates.change([1], "approved", by="ana")
    with pytest.raises(CycleError, match="published nothing"):
        store.commit_cycle(report(1), [], None, [Settled(seq=1, state="trained")])
    assert store.candidates.get(1).state == "approved"


def test_replay_knows_what_a_version_s_cycles_moved(store: Store) -> None:
    store.candidates.add([candidate(0), candidate(1)])
    store.candidates.change([1, 2], "approved", by="ana")
    publish(store, [Settled(seq=1, state="trained")])
    publish(store, [Settled(seq=2, state="trained")])
    assert [one.seq for one in store.candidates.trained([2])] == [2]
    assert [one.seq for one in store.candidates.trained([1, 2])] == [1, 2]


# Retention, erasure, backup, doctor


def test_of_a_deleted_trajectory_the_trained_key_stays_without_a_text(store: Store) -> None:
    add(store, [trajectory("turn-0"), feedback("turn-0")])
    run_cycle(store)
    store.candidates.add([candidate(0), candidate(0, at_ns=NOW + 1)])
    store.candidates.change([1], "approved", by="ana")
    pruned(store)
    assert "turn-0" in store, "what is approved is not deleted before it is learned"
    publish(store, [Settled(seq=1, state="trained")])
    pruned(store)
    assert "turn-0" not in store
    left = store.candidates.get(1)
    assert (left.state, left.response, left.context_tail, left.mattered) == ("trained", "", "", ())
    assert not left.context_ids + left.bare_ids + left.continuation_ids
    assert store.candidates.counts()["new"] == 0, "what was not trained on went along"
    assert store.candidates.add([candidate(0)]) == [0], "it is known for good"
    assert store.candidates.trained([2]) == [], "and can't be replayed"


def test_an_erased_source_leaves_no_candidate_and_no_weight(store: Store) -> None:
    add(store, [trajectory("turn-0"), feedback("turn-0"), trajectory("turn-1", source="other")])
    secret = "a secret of the source"
    store.candidates.add([candidate(0, response=secret), candidate(0, at_ns=NOW + 1), candidate(1, source="other")])
    store.candidates.change([1], "approved", by="ana")
    publish(store, [Settled(seq=1, state="trained")])
    weights = [MemoryWeight(key="k", weight=1.0, last_scored_ns=1, source=name) for name in ("agent", "other")]
    store.memory_weights.put(weights)
    pruned(store, unlearned=True)  # the trained key outlives its trajectory
    erasure = store.erasure("agent")
    erasure.check_known()
    erasure.begin()
    erasure.delete_rows()
    assert erasure.forget() == ("v1",), "what learned a candidate has learned from its source"
    erasure.scrub()
    erasure.end()
    assert store.candidates.counts() == {**dict.fromkeys(STATES, 0), "new": 0}
    assert store.memory_weights.get("k", "agent") is None
    assert store.memory_weights.get("k", "other") is not None
    store.close()
    assert all(secret.encode() not in file.read_bytes() for file in store.path.rglob("*") if file.is_file())


def test_a_backup_holds_them(store: Store, tmp_path: Path) -> None:
    store.candidates.add([candidate(0)])
    store.backup(tmp_path / "backup")
    with Store.open(tmp_path / "backup", read_only=True) as copy:
        assert copy.candidates.get(1) == store.candidates.get(1)


def test_a_doctor_finds_a_damaged_one_and_sets_it_aside(store: Store) -> None:
    store.candidates.add([candidate(0), candidate(1)])
    store.memory_weights.put([MemoryWeight(key=name, weight=1.0, last_scored_ns=1) for name in "ab"])
    store.close()
    execute(store.path, "UPDATE candidates SET state = 'approved' WHERE seq = 1")
    execute(store.path, "UPDATE memory_weights SET weight = 9.0 WHERE key = 'a'")
    found = {finding.where for finding in diagnose(store.path).findings}
    assert found == {
        f"candidates, seq 1, trajectory 'turn-0', at_ns {NOW}",
        "memory_weights, source 'default', key 'a'",
    }
    assert repair(store.path).exit_code == 0
    with Store.open(store.path) as opened:
        assert [one.seq for one in opened.candidates.heaviest("new")] == [2]
        assert opened.memory_weights.get("a") is None
        assert opened.memory_weights.get("b") is not None
        assert opened.candidates.add([candidate(0)]) == [3]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_copies_of_a_row_the_one_that_came_further_is_salvaged(store: Store, tmp_path: Path, order: int) -> None:
    """A page no longer in use may hold a row as it was: what was trained on must not come back as approved."""
    store.candidates.add([candidate(0)])
    copies = [_row(store)]
    store.candidates.change([1], "approved", by="ana")
    copies.append(_row(store))
    publish(store, [Settled(seq=1, state="trained")])
    copies.append(_row(store))
    found = [Found(CANDIDATES, row, True) for row in copies[::order]]
    target = tmp_path / "rebuilt.db"
    with Quarantine(tmp_path, 1) as quarantine:
        rebuild(iter(found), target, quarantine)
    with closing(sqlite3.connect(target)) as raw:
        assert raw.execute("SELECT state FROM candidates").fetchall() == [("trained",)]


def _row(store: Store) -> Row:
    with store._snapshot() as connection:
        values = connection.execute(f"SELECT {', '.join(CANDIDATES.columns)} FROM candidates").fetchone()
    assert values is not None
    return dict(zip(CANDIDATES.columns, values, strict=True))


def test_of_a_torn_database_whole_candidates_are_kept(store: Store) -> None:
    store.candidates.add([candidate(place, response="x" * 900) for place in range(60)])
    every = list(range(1, 61))
    store.candidates.change(every, "approved", by="ana")
    publish(store, [Settled(seq=seq, state="trained") for seq in every])
    store.close()
    file = store.path / DATABASE
    data = bytearray(file.read_bytes())
    data[100:108] = bytes(8)  # the head of the first page: SQLite reads nothing any more
    file.write_bytes(data)
    assert repair(store.path).exit_code == 0
    with Store.open(store.path, read_only=True) as opened:
        assert opened.candidates.counts()["trained"] == 60
        assert opened.candidates.approved(100) == []


# Weights of memories


def test_a_weight_is_of_a_source_and_replaced_whole(store: Store) -> None:
    rows = store.memory_weights
    rows.put(
        [
            MemoryWeight(key="k", weight=1.0, last_scored_ns=5),
            MemoryWeight(key="k", weight=2.0, last_scored_ns=4, source="b"),
        ]
    )
    rows.put([MemoryWeight(key="k", weight=0.5, last_scored_ns=9, times=2)])
    assert rows.get("k") == MemoryWeight(key="k", weight=0.5, last_scored_ns=9, times=2)
    assert rows.get("k", "b") == MemoryWeight(key="k", weight=2.0, last_scored_ns=4, source="b")
    assert rows.get("unknown") is None


def test_one_source_s_weights_are_its_own(store: Store) -> None:
    own = store.memory_weights.of("bot")
    own.write_weight(MemoryWeight(key="k", weight=1.5, last_scored_ns=5))
    assert own.weight_of("k") == MemoryWeight(key="k", weight=1.5, last_scored_ns=5, source="bot")
    assert store.memory_weights.get("k") is None


def test_the_oldest_come_first_and_the_lightest_may_go(store: Store) -> None:
    rows = store.memory_weights
    given = [("a", 0.01, 30, 3), ("b", 2.0, 10, 5), ("c", -0.1, 20, 4), ("d", 0.0, 5, 1)]
    rows.put([MemoryWeight(key=k, weight=w, last_scored_ns=at, times=n) for k, w, at, n in given])
    assert [one.key for one in rows.oldest(3)] == ["d", "b", "c"]
    assert [one.key for one in rows.prune_candidates(0.05)] == ["c", "a"], "d was scored once, which says too little"
    rows.remove(["c"])
    assert [one.key for one in rows.prune_candidates(0.05)] == ["a"]


def test_a_damaged_weight_is_an_error(store: Store) -> None:
    store.memory_weights.put([MemoryWeight(key="k", weight=1.0, last_scored_ns=5)])
    execute(store.path, "UPDATE memory_weights SET weight = 3.0")
    with pytest.raises(StoreCorruptError, match="weight of memory 'k'"):
        store.memory_weights.oldest(1)


def test_a_candidate_is_checked_when_it_is_made() -> None:
    for wrong in ({"divergence": float("nan")}, {"tokens": -1}, {"state": "old"}, {"continuation_ids": [-1]}):
        with pytest.raises(InvalidInputError):
            candidate(**wrong)
    assert isinstance(candidate(), Candidate)
