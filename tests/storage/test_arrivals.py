"""Sizes and rates: measured, by whoever looks, also beside the writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sona.errors import StoreCorruptError
from sona.ports import Arrivals
from sona.storage.arrivals import MINUTE_NS
from sona.storage.store import Store
from tests.storage.records import add, feedback, trajectory

START_NS = 1_000_000 * MINUTE_NS + 30 * 10**9


class Clock:
    """What the store takes for now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = START_NS
        monkeypatch.setattr("time.time_ns", lambda: self.now_ns)

    def pass_minutes(self, minutes: int) -> None:
        self.now_ns += minutes * MINUTE_NS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_came_in_is_counted_by_windows(tmp_path: Path, clock: Clock) -> None:
    with Store.open(tmp_path) as store, Store.open(tmp_path, read_only=True) as reader:
        add(store, [trajectory("a"), feedback("a"), trajectory("b")])
        add(store, [trajectory("a"), feedback("a")])  # known already: nothing came in
        clock.pass_minutes(30)
        add(store, [trajectory("c")])
        found = reader.arrivals()
        assert [(one.trajectories, one.feedback) for one in found.values()] == [(1, 0), (3, 1), (3, 1)]
        assert found["minute"].seconds == 30.0  # whole minutes, this one half gone
        assert found["hour"].seconds == found["day"].seconds == 30 * 60.0  # no more was counted yet
        clock.pass_minutes(45)
        assert reader.arrivals()["hour"] == Arrivals(trajectories=1, feedback=0, seconds=59.5 * 60)
        assert reader.arrivals()["day"].trajectories == 3


def minutes(store: Store) -> list[int]:
    with store._snapshot() as connection:
        first = START_NS // MINUTE_NS
        return [row[0] - first for row in connection.execute("SELECT minute FROM arrivals ORDER BY minute")]


def test_the_oldest_of_too_many_minutes_goes(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.storage.arrivals.KEPT_MINUTES", 3)
    with Store.open(tmp_path) as store:
        for place in range(5):
            add(store, [trajectory(f"{place}")])
            clock.pass_minutes(1)
        assert minutes(store) == [2, 3, 4]


def test_a_clock_that_is_ahead_for_a_while_takes_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sona.storage.arrivals.KEPT_MINUTES", 5)
    ahead = 3000 * 24 * 60
    with Store.open(tmp_path) as store:
        for place in range(3):
            add(store, [trajectory(f"{place}")])
            clock.pass_minutes(1)
        for place in range(2):
            clock.pass_minutes(ahead + place)
            add(store, [trajectory(f"ahead {place}")])
            clock.pass_minutes(-ahead - place)
        assert store.arrivals()["hour"].trajectories == 3
        for place in range(3, 6):  # and its minutes are the first to go
            add(store, [trajectory(f"{place}")])
            clock.pass_minutes(1)
        assert minutes(store) == [1, 2, 3, 4, 5]


def test_a_damaged_count_is_told(tmp_path: Path, clock: Clock) -> None:
    with Store.open(tmp_path) as store:
        add(store, [trajectory("a")])
        store._transact(lambda connection: connection.execute("UPDATE arrivals SET trajectories = 5"))
        with pytest.raises(StoreCorruptError, match="arrivals"):
            store.arrivals()


def test_a_store_of_an_older_form_counts_from_its_migration_on(tmp_path: Path) -> None:
    from tests.storage.golden.make import unpack

    unpack(1, tmp_path)
    with Store.open(tmp_path) as store:
        assert store.arrivals()["day"].trajectories == 0
        assert store.arrivals()["day"].seconds < 60.0


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, [trajectory("a", width=300)])
        before = store.sizes()
        folder = tmp_path / "versions" / "v1"
        folder.mkdir(parents=True)
        (folder / "adapter").write_bytes(bytes(5000))
        os.link(folder / "adapter", folder / "again")
        (tmp_path / "journal").mkdir()
        (tmp_path / "journal" / "1.seg").write_bytes(bytes(700))
        found = store.sizes()
        assert (found.versions - before.versions, found.journal - before.journal) == (5000, 700)
        assert found.database == (tmp_path / "store.db").stat().st_size
        assert found.log >= (tmp_path / "store.db-wal").stat().st_size > 0
