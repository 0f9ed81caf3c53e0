"""After a failed sync the system may show what it never wrote, and no later sync writes it (danluu.com/fsyncgate)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from sona.errors import StoreError
from sona.storage.store import DATABASE, Store
from tests.crash.torn_disk import torn_disk
from tests.storage.records import add, rated

SEEDS = range(5)


def fails_to_sync(times: int) -> Callable[[str], apsw.Error | None]:
    left = [apsw.IOError("the disk failed to sync")] * times
    return lambda operation: left.pop() if operation == "sync" and left else None


def held(folder: Path) -> set[str]:
    with Store.open(folder) as store:
        return {row.trajectory.id for row in store.iterate() if row.quality is not None}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_acknowledged_after_it_survives_a_power_cut(tmp_path: Path, seed: int) -> None:
    (tmp_path / "left").mkdir()
    with torn_disk(random.Random(seed)) as disk, Store.open(tmp_path / "store") as store:
        disk.failure = fails_to_sync(2)  # as it commits, and as it closes the log
        add(store, rated("ab"))
        disk.power_off(tmp_path / "left")
    assert held(tmp_path / "left") == set("ab")


@pytest.mark.parametrize("seed", SEEDS)
def test_so_does_what_the_next_process_finds_there_and_acknowledges(tmp_path: Path, seed: int) -> None:
    (tmp_path / "left").mkdir()
    with torn_disk(random.Random(seed)) as disk:
        with Store.open(tmp_path / "store") as store:
            disk.failure = fails_to_sync(100)
            with pytest.raises(StoreError):
                store.append(rated("ab"))
        disk.failure = fails_to_sync(0)
        with Store.open(tmp_path / "store") as store:
            add(store, rated("ab"))
            disk.power_off(tmp_path / "left")
    assert held(tmp_path / "left") == set("ab")


def test_a_log_without_its_database_is_nothing(tmp_path: Path) -> None:
    """A power cut may leave the name of the one and not that of the other."""
    (tmp_path / f"{DATABASE}-wal").write_bytes(bytes(5000))
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
    assert held(tmp_path) == {"a"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_power_cut_while_it_is_mended_costs_nothing_older(tmp_path: Path, seed: int) -> None:
    cuts: list[Path] = []
    with torn_disk(random.Random(seed)) as disk:

        def cut() -> None:
            cuts.append(tmp_path / f"left-{len(cuts)}")
            cuts[-1].mkdir()
            disk.power_off(cuts[-1])

        with Store.open(tmp_path / "store") as store:
            add(store, rated(f"old-{number}" for number in range(40)))
        with Store.open(tmp_path / "store") as store:  # that is in the database now, and the log is empty
            add(store, rated(["old-40"]))
            disk.failure = fails_to_sync(2)
            disk.before_operation = cut
            add(store, rated(f"new-{number}" for number in range(40)))
            disk.before_operation = lambda: None
    for left in cuts:
        assert {f"old-{number}" for number in range(41)} <= held(left)
