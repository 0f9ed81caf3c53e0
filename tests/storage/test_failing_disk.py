"""A disk that fails or is full: nothing is acknowledged that is not there, and nothing is stored twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sona.errors import (
    StoreError,
    StoreFullError,
)
from sona.ports import Claim
from sona.storage.store import Store
from tests.processes import run
from tests.storage.faulty_disk import faulty_disk
from tests.storage.records import add, collected, rated, report, run_cycle


def test_a_failed_sync_is_not_repeated_but_the_batch_is(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:
        add(store, rated("a"))
        disk.failing_syncs = 1
        add(store, rated("b"))
        assert [row.trajectory.id for row in store.iterate()] == ["a", "b"]
        assert store.sources()[0].trajectories == 2


@pytest.mark.parametrize("lose_after_sync", [False, True])
def test_a_cycle_whose_commit_failed_is_stored_once(tmp_path: Path, lose_after_sync: bool) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store, Store.open(tmp_path, read_only=True) as reader:
        add(store, rated("ab"))
        assert len(collected(reader)) == 2
        disk.failing_syncs = 1
        disk.lose_after_sync = lose_after_sync
        run_cycle(store, publish=True)
        assert store.counts().trained == 2
        assert store.current().id == "v1"
        assert collected(store) == []


def test_a_cycle_that_landed_although_its_commit_failed_is_not_committed_again(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:  # no reader: the log is all that the new connection sees
        add(store, rated("ab"))
        disk.failing_syncs = 2  # of the commit, and of the checkpoint when the connection is closed
        disk.lose_after_sync = True
        store.commit_cycle(report(1), [Claim(seq=1, role="train"), Claim(seq=2, role="train")], None)
        assert disk.failing_syncs == 0
        assert (store.counts().trained, store.next_cycle()) == (2, 2)


def test_a_disk_that_keeps_failing_is_an_error_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:
        add(store, rated("a"))
        disk.failing_syncs = 100
        with pytest.raises(StoreError):
            store.append(rated("b"))
        disk.failing_syncs = 0
        add(store, rated("b"))
        assert store.counts().trajectories == 2
        assert store.sources()[0].rated == 2


def test_a_store_on_a_disk_that_fails_can_be_closed(tmp_path: Path) -> None:
    with faulty_disk() as disk:
        store = Store.open(tmp_path)
        add(store, rated("a"))
        assert store.get("a").quality == 0.5  # leaves a reading connection, the last one once the writing one is gone
        disk.failing_syncs = 100
        with pytest.raises(StoreError):
            store.append(rated("b"))
        store.close()
        disk.failing_syncs = 0
        with Store.open(tmp_path) as again:  # the lock was let go of
            assert again.get("a").quality == 0.5


def test_a_full_disk_is_said_and_recovered_from(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:
        add(store, rated("a"))
        disk.full = True
        with pytest.raises(StoreFullError, match="free space"):
            store.append(rated(f"b{number}" for number in range(300)))
        with pytest.raises(StoreFullError):
            run_cycle(store, publish=True)
        assert store.get("a").quality == 0.5
        assert store.counts().trajectories == 1
        disk.full = False
        add(store, rated(f"b{number}" for number in range(300)))
        run_cycle(store, publish=True)
        assert store.counts().trained == 301


def test_a_folder_that_cannot_be_synced_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", fail)
        with pytest.raises(StoreError, match="Input/output"):
            Store.open(tmp_path)
    Store.open(tmp_path).close()  # the one that failed kept no lock


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    """The system's own refusal, which SQLite hands on as an I/O error."""
    output = run(
        """
import resource, sys
from sona.errors import StoreFullError
from sona.storage.store import Store
from tests.storage.records import add, rated
store = Store.open(sys.argv[1])
add(store, rated("a"))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
try:
    store.append(rated(f"b{number}" for number in range(2000)))
except StoreFullError:
    print("full")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
add(store, rated("c"))
print([row.trajectory.id for row in store.iterate()])
store.close()
""",
        tmp_path,
    )
    assert output == "full\n['a', 'c']"
