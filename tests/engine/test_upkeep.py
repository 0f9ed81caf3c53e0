"""What an engine does for its store by itself, and what it is asked to."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import sona
from sona.config import StoreConfig
from sona.errors import ClosedError, StoreCorruptError, StoreError, StoreFullError, UnknownIdError
from sona.storage.journal import File
from sona.storage.mapped import MappedJournal
from sona.storage.store import Store
from sona.storage.versions import Versions
from tests.engine.small import SMALL, open_small, record_task


def test_a_cycle_ends_with_what_is_beyond_the_limits_deleted(tmp_path: Path) -> None:
    config = msgspec.structs.replace(SMALL, store=StoreConfig(keep_trajectories=30))
    with open_small(tmp_path / "store", None, config) as engine:  # without a model the bank alone learns
        ids = record_task(engine, 60, seed=1)
        engine.flush()
        assert engine.status().store.trajectories == 60, "nothing goes before a cycle has taken it"
        assert engine.learn().status == "published"
        left = engine.status().store
        assert (left.trajectories, left.left_out) == (30, 30)
        assert engine.get(ids[-1]).quality == 1.0
        with pytest.raises(sona.SonaError, match="not in this store"):
            engine.get(ids[0])


def test_what_was_deleted_does_not_come_back_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal on the disk may be half a minute older than the database, but for what it has synced since."""
    config = msgspec.structs.replace(SMALL, store=StoreConfig(keep_trajectories=30, linger_s=0.3))
    store, disk = tmp_path / "store", tmp_path / "disk"
    sync, being_made = MappedJournal.sync, shutil.ignore_patterns("*.new")

    def written(journal: MappedJournal, files: Sequence[File], *, whole: bool = False) -> None:
        sync(journal, files, whole=whole)
        shutil.copytree(store / "journal", disk / "journal", ignore=being_made, dirs_exist_ok=True)

    monkeypatch.setattr(MappedJournal, "sync", written)
    with open_small(store, None, config) as engine:
        record_task(engine, 60, seed=1)
        # Written out by chance, while all wait in it.
        shutil.copytree(store / "journal", disk / "journal", ignore=being_made)
        assert engine.learn().status == "published"
        shutil.copytree(store, disk, ignore=shutil.ignore_patterns("journal"), dirs_exist_ok=True)
    with open_small(disk, None, config) as engine:
        engine.flush()
        assert (engine.status().store.trajectories, engine.status().store.uncollected) == (30, 0)


def test_cycles_that_can_not_be_committed_leave_no_copy_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("the disk has no room; free some")

    with open_small(tmp_path / "store", None) as engine:
        record_task(engine, 60, seed=1)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit_cycle", full)
            for _ in range(2):
                with pytest.raises(StoreFullError):
                    engine.learn()
                assert folders(engine) == ["v1"], "the next cycle takes it away"
        assert engine.learn().version == "v1"
        assert folders(engine) == ["v1"]
        assert not (tmp_path / "store" / "quarantine").exists()


def learn_versions(engine: sona.SyncEngine, count: int) -> list[str]:
    """So many more versions of the bank; the ids of all that have files."""
    for _ in range(count):
        record_task(engine, 30, seed=int(engine.version.id[1:]))
        assert engine.learn().status == "published"
    return folders(engine)


def folders(engine: sona.SyncEngine) -> list[str]:
    return sorted(path.name for path in (engine._engine.path / "versions").iterdir())


def keeping(versions: int) -> sona.Config:
    return msgspec.structs.replace(SMALL, store=StoreConfig(keep_versions=versions))


def test_a_publication_ends_with_the_files_of_versions_out_of_reach_removed(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", None, keeping(2)) as engine:
        assert learn_versions(engine, 5) == ["v3", "v4", "v5"]
        assert [version.id for version in engine.versions()] == [f"v{number}" for number in range(6)]
        with pytest.raises(UnknownIdError, match="pruned"):
            engine.roll_back("v2")
        assert engine.version.id == "v5"
        assert [engine.roll_back().id, engine.roll_back().id] == ["v4", "v3"]
        assert learn_versions(engine, 1) == ["v3", "v6"], "what was rolled back from is in nobody's past"
    with open_small(tmp_path / "store", None, keeping(0)) as engine:
        assert learn_versions(engine, 3) == ["v3", "v6", "v7", "v8", "v9"]


def test_a_pinned_version_stays_until_it_is_let_go_of(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", None, keeping(1)) as engine:
        assert learn_versions(engine, 1) == ["v1"]
        engine.pin("v1")
        engine.pin("v1")
        assert learn_versions(engine, 3) == ["v1", "v3", "v4"]
        assert engine.pinned() == ["v1"]
        assert engine.roll_back("v1").id == "v1"
        assert engine.roll_back("v4").id == "v4"
    with open_small(tmp_path / "store", None, keeping(1)) as engine:
        engine.pin("v0")  # which is always there
        assert engine.pinned() == ["v1", "v0"]
        engine.unpin("v1")
        assert folders(engine) == ["v1", "v3", "v4"], "they go with the next publication"
        assert learn_versions(engine, 1) == ["v4", "v5"]


def test_what_can_not_be_put_in_force_can_not_be_pinned(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", None, keeping(1)) as engine:
        learn_versions(engine, 3)
        with pytest.raises(UnknownIdError, match="pruned"):
            engine.pin("v1")
        for change in (engine.pin, engine.unpin):
            with pytest.raises(UnknownIdError, match="'v9'"):
                change("v9")
        bank = engine._engine.path / "versions" / "v2" / "bank.msgpack"
        bank.write_bytes(bank.read_bytes() + b"x")
        with pytest.raises(StoreCorruptError, match="'v2'"):
            engine.pin("v2")
        assert engine.pinned() == []
    with pytest.raises(ClosedError):
        engine.pin("v3")


def test_the_same_on_an_event_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store") as engine:
            engine.pin("v0")
            assert engine.pinned() == ["v0"]
            engine.unpin("v0")
            assert engine.pinned() == []

    asyncio.run(scenario())


def test_files_that_can_not_be_removed_are_told_and_cost_no_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> list[str]:
        raise StoreError("the disk does not let go")

    with open_small(tmp_path / "store", None, keeping(1)) as engine:
        learn_versions(engine, 2)
        monkeypatch.setattr(Versions, "prune", refuse)
        with caplog.at_level(logging.ERROR):
            assert learn_versions(engine, 1) == ["v1", "v2", "v3"]
        assert "beyond store.keep_versions could not be removed" in caplog.text
        monkeypatch.undo()
        assert learn_versions(engine, 1) == ["v3", "v4"]
