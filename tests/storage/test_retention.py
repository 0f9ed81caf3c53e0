"""Retention: what is beyond a limit goes, what it hung on goes with it, and all that is counted stays true."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sona.config import StoreConfig
from sona.errors import StoreCorruptError
from sona.storage.retention import CHUNK, NS_A_DAY, Limits
from sona.storage.store import DATABASE, Store
from sona.storage.writer import Writer
from sona.types import Trajectory
from tests.storage.records import add, ask, collected, feedback, rated, run_cycle, trajectory

NOW = 1_800_000_000 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def newest(count: int, *, unlearned: bool = True) -> Limits:
    return Limits(days=0, trajectories=count, per_source=0, unlearned=unlearned)


def names(store: Store) -> list[str]:
    return [row.trajectory.id for row in store.iterate()]


def test_only_the_newest_stay(store: Store) -> None:
    add(store, rated("abcdef"))
    run_cycle(store, publish=True)
    done = store.prune(newest(2))
    assert (done.trajectories, done.feedback, done.claims, done.unlearned) == (4, 4, 4, 0)
    assert names(store) == ["e", "f"]
    counts = store.counts()
    assert (counts.trajectories, counts.feedback, counts.trained, counts.uncollected) == (2, 2, 2, 0)
    assert {row.trajectory.id for row in store.sample("train", 50, np.random.default_rng(0))} == {"e", "f"}
    assert store.prune(newest(2)).trajectories == 0


def test_age_goes_by_the_hosts_time(store: Store) -> None:
    for name, days in (("new", 1), ("old", 40), ("imported-later", 50), ("now", 0)):
        record = Trajectory(id=name, messages=ask("x"), response="y", created_ns=NOW - days * NS_A_DAY)
        add(store, [record, feedback(name)])
    run_cycle(store)
    assert store.prune(Limits(30, 0, 0, True), NOW).trajectories == 2
    assert names(store) == ["new", "now"]


def test_each_source_has_its_own_limit(store: Store) -> None:
    for number in range(6):
        add(store, [trajectory(f"a{number}", source="a"), feedback(f"a{number}")])
    add(store, [trajectory("b", source="b"), feedback("b")])
    run_cycle(store)
    store.prune(Limits(0, 0, 2, True))
    assert names(store) == ["a4", "a5", "b"]
    assert {row.source: row.trajectories for row in store.sources()} == {"a": 2, "b": 1}


def test_a_source_of_which_nothing_is_left_is_not_listed(store: Store) -> None:
    add(store, [trajectory("a", source="gone"), feedback("a"), *rated("b")])
    run_cycle(store)
    store.prune(newest(1))
    assert [row.source for row in store.sources()] == ["agent"]


def test_what_no_cycle_has_taken_stays_unless_asked(store: Store) -> None:
    add(store, [trajectory("unrated"), *rated("ab")])
    run_cycle(store)
    add(store, [*rated(["new"]), *rated("cd")])
    done = store.prune(newest(2))
    assert (done.trajectories, done.unlearned) == (2, 2)
    assert names(store) == ["unrated", "new", "c", "d"]
    assert collected(store) == ["new", "c", "d"]
    assert store.prune(newest(2, unlearned=False)).trajectories == 2
    assert names(store) == collected(store) == ["c", "d"]


def test_what_was_left_out_and_rated_anew_is_not_taken_yet(store: Store) -> None:
    add(store, rated("abc", 0.1))
    run_cycle(store, role="left_out")
    add(store, [feedback("a", 0.9, id="again")])
    done = store.prune(newest(1))
    assert (done.trajectories, done.unlearned, names(store), collected(store)) == (1, 1, ["a", "c"], ["a"])
    assert store.counts().left_out == 1
    run_cycle(store)
    assert store.prune(newest(1)).trajectories == 1
    assert (store.counts().left_out, store.counts().trained) == (1, 0)


def test_a_reader_that_has_drawn_before_draws_rightly_after(store: Store) -> None:
    """It remembers the groups; they have changed."""
    add(store, rated(f"t{number}" for number in range(40)))
    run_cycle(store, publish=True, groups={f"t{number}": (f"s{number % 2}", f"p{number % 3}") for number in range(40)})
    with Store.open(store.path, read_only=True) as reader:
        for left in (21, 9, 4):
            for one in (store, reader):
                assert one.sample("train", 30, np.random.default_rng(1), skills=["s0"], balanced=True)
            store.prune(newest(left))
            for one in (store, reader):
                rows = one.sample("train", 300, np.random.default_rng(0))
                assert {row.trajectory.id for row in rows} == {f"t{number}" for number in range(40 - left, 40)}
                assert one.replayable("train") == left


def test_what_is_deleted_can_come_again_as_new(store: Store) -> None:
    add(store, rated("ab"))
    run_cycle(store)
    store.prune(newest(1))
    add(store, rated("a"))
    assert collected(store) == ["a"]
    seqs = [row.seq for row in store.iterate()]
    assert seqs == [2, 3]  # no number is ever given again: a cursor would pass it by


def test_pages_are_given_back(store: Store) -> None:
    big = "x" * 20_000
    for number in range(200):
        add(store, [Trajectory(id=f"{number}", messages=ask("q"), response=big), feedback(f"{number}")])
    run_cycle(store)
    before = store.counts().bytes_on_disk
    done = store.prune(newest(10))
    store.close()
    after = (store.path / DATABASE).stat().st_size
    assert done.freed_bytes > 3_000_000
    assert after < before / 4


def test_recording_goes_on(store: Store) -> None:
    add(store, rated(f"old{number}" for number in range(6 * CHUNK)))
    run_cycle(store, limit=10_000)
    writer, stop = Writer(store), threading.Event()

    def record() -> None:
        number = 0
        while not stop.is_set():
            assert writer.put(trajectory(f"new{number}"))
            writer.flush()
            number += 1

    thread = threading.Thread(target=record)
    thread.start()
    before = writer.counts().durable
    done = store.prune(newest(10))
    during = writer.counts().durable - before
    stop.set()
    thread.join()
    writer.close()
    assert done.trajectories >= 6 * CHUNK - 10
    assert during >= 6, "at least one record got in between any two transactions"
    assert sum(name.startswith("new") for name in names(store)) == writer.counts().durable


def test_a_damaged_row_is_left_for_the_doctor(store: Store) -> None:
    add(store, rated("abc"))
    run_cycle(store)
    with sqlite3.connect(store.path / DATABASE) as raw:
        raw.execute("UPDATE trajectories SET payload = x'00' WHERE id = 'a'")
    raw.close()
    done = store.prune(newest(1))
    assert (done.trajectories, done.damaged) == (1, 1)


def test_a_damaged_claim_in_the_way_changes_nothing(store: Store) -> None:
    add(store, rated("abc"))
    run_cycle(store)
    with sqlite3.connect(store.path / DATABASE) as raw:
        raw.execute("UPDATE claims SET prompt_ids = x'00' WHERE ordinal = 2")
    raw.close()
    with pytest.raises(StoreCorruptError, match=r"claim 2 \(train\) of cycle 1"):
        store.prune(newest(2))
    assert names(store) == ["a", "b", "c"]


def test_damage_of_what_is_remembered_is_not_counted_on(store: Store) -> None:
    add(store, rated("abc"))
    run_cycle(store)
    assert store.prune(newest(2)).claims == 1
    with sqlite3.connect(store.path / DATABASE) as raw:
        assert raw.execute("UPDATE learned SET trajectories = 7").rowcount == 1
    raw.close()
    with pytest.raises(StoreCorruptError, match="what cycle 1 learned is damaged"):
        store.prune(newest(1))
    assert names(store) == ["b", "c"]


@pytest.mark.parametrize("index", ["feedback_of_trajectory", "sqlite_autoindex_claims_1", "claims_by_group"])
def test_a_damaged_index_deletes_no_more_and_no_less(tmp_path: Path, index: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    with Store.open(good) as store:
        add(store, rated("abcdef"))
        run_cycle(store, groups=dict.fromkeys("abcdef", ("s", "p")))
    raw = sqlite3.connect(good / DATABASE)
    (page,) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
    raw.close()
    sound, end = (good / DATABASE).read_bytes(), page * 16384
    found = 0
    for place in range(end - 40, end):  # where the entries lie
        spoilt = bytearray(sound)
        spoilt[place] ^= 1 + place % 3
        shutil.rmtree(bad, ignore_errors=True)
        bad.mkdir()
        (bad / DATABASE).write_bytes(spoilt)
        try:
            with Store.open(bad) as store:
                found += store.prune(newest(4)).damaged
        except StoreCorruptError:
            found += 1
        _check_in_step(bad)
    assert found


def _check_in_step(folder: Path) -> None:
    """What belongs together is there or gone together; asked of the tables alone."""
    raw = sqlite3.connect(folder / DATABASE)
    owners = [raw.execute(f"SELECT {what} NOT INDEXED ORDER BY 1").fetchall() for what in OWNERS]
    assert owners[0] == owners[1] == owners[2]
    for number in ("ordinal", "place"):
        numbers = raw.execute(f"SELECT +{number} FROM claims NOT INDEXED ORDER BY 1").fetchall()
        assert numbers == [(place,) for place in range(len(owners[0]))]
    raw.close()


OWNERS = ("seq FROM trajectories", "+trajectory FROM feedback", "seq FROM claims")


def test_the_settings_are_the_limits(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=StoreConfig(keep_trajectories=2)) as store:
        add(store, rated("abc"))
        run_cycle(store)
        assert store.prune().trajectories == 1
    assert not Limits.of(StoreConfig())
