"""Backups: of one moment, whole, taken while others write, and stores themselves."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from sona.config import StoreConfig
from sona.errors import InvalidInputError, StoreCorruptError, StoreError, StoreFullError
from sona.storage import backup as backup_module
from sona.storage.backup import back_up
from sona.storage.doctor import diagnose
from sona.storage.layout import BLOBS
from sona.storage.snapshot_gate import SnapshotGate
from sona.storage.store import DATABASE, Store
from sona.storage.versions import Versions
from sona.storage.writer import Writer
from tests.storage.golden.make import contents, fill
from tests.storage.learned import ADAPTER, publish, spoil
from tests.storage.records import add, feedback, rated, trajectory


def test_a_backup_holds_everything_and_is_a_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        fill(store)
        with pytest.raises(StoreCorruptError, match=r"'v2' is in force, and its files in .* are damaged or missing"):
            store.backup(tmp_path / "copies" / "none")
        store.set_current("v0")
        made = store.backup(tmp_path / "copies" / "one")
        expected = contents(store)
    assert (made.trajectories, made.version, made.size_bytes > 0) == (len(expected["stored"]), "v0", True)
    with Store.open(tmp_path / "copies" / "one") as copy:
        assert contents(copy) == expected
        add(copy, rated(["new"]))
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["one"]


def test_the_versions_files_are_in_it_and_outlive_the_originals(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        versions = []
        for name in "abc":
            add(store, rated([name]))
            versions.append(publish(store))
        Versions(store.path).prune({"v2", "v3"})
        made = store.backup(tmp_path / "copy")
        assert made.versions == ("v2", "v3")
        shutil.rmtree(store.path)
    for version in versions[1:]:
        Versions(tmp_path / "copy").verify(version)
    assert diagnose(tmp_path / "copy").findings == ()


def test_a_backup_on_another_disk_copies_a_shared_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def across(source: Path, target: Path, *, follow_symlinks: bool) -> None:
        if "store" in Path(source).relative_to(tmp_path).parts[0]:
            raise OSError(18, "Invalid cross-device link")
        link(source, target, follow_symlinks=follow_symlinks)

    with Store.open(tmp_path / "store") as store:
        for name in "ab":
            add(store, rated([name]))
            publish(store)
        monkeypatch.setattr(os, "link", across)
        assert store.backup(tmp_path / "copy").versions == ("v1", "v2")
    files = [tmp_path / folder / "versions" / name / ADAPTER for folder in ("store", "copy") for name in ("v1", "v2")]
    assert [file.stat().st_nlink for file in files] == [2, 2, 2, 2]
    assert len({file.read_bytes() for file in files}) == 1


def test_recording_goes_on_during_a_backup(tmp_path: Path) -> None:
    """What was durable before it began is in it, whatever came meanwhile is in it whole or not at all."""
    stop = threading.Event()
    with Store.open(tmp_path / "store") as store:
        add(store, rated(f"before{number}" for number in range(3000)))
        with_writer = Writer(store)

        def record() -> None:
            number = 0
            while not stop.is_set():
                assert with_writer.put(trajectory(f"during{number}"))
                assert with_writer.put(feedback(f"during{number}"))
                number += 1
                with_writer.flush()

        recording = threading.Thread(target=record)
        recording.start()
        seen = []
        for number in range(5):
            seen.append(store.counts().trajectories)
            store.backup(tmp_path / f"copy{number}")
        stop.set()
        recording.join()
        with_writer.close()
        assert store.counts().trajectories > seen[-1] > seen[0]
    for number, least in enumerate(seen):
        with Store.open(tmp_path / f"copy{number}", read_only=True) as copy:
            rows = list(copy.iterate())
            assert len(rows) == copy.counts().trajectories >= least
            assert all(row.quality == 0.5 for row in rows[:-1])
        assert diagnose(tmp_path / f"copy{number}").exit_code == 0


def test_a_target_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    with Store.open(tmp_path / "store") as store:
        for name in ("taken", "link"):
            with pytest.raises(InvalidInputError, match="exists"):
                store.backup(tmp_path / name)
        with pytest.raises(InvalidInputError, match="within the store"):
            store.backup(store.path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "store", "taken"]
    assert list((tmp_path / "taken").iterdir()) == []


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(draft: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_module, "rename_folder", full)
    with Store.open(tmp_path / "store") as store:
        add(store, rated("a"))
        with pytest.raises(StoreFullError):
            store.backup(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_damaged_version_is_left_out_and_named_unless_it_is_in_force(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        for name in "ab":
            add(store, rated([name]))
            publish(store)
        spoil(store.path / "versions" / "v1" / "version.json")
        made = store.backup(tmp_path / "copy")
        assert (made.versions, made.damaged) == (("v2",), ("v1",))
        spoil(store.path / "versions" / "v2" / "version.json")
        with pytest.raises(StoreCorruptError, match="sona doctor"):
            store.backup(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_damaged_database_is_a_typed_error(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        add(store, rated(f"{number}" for number in range(200)))
    data = bytearray((tmp_path / "store" / DATABASE).read_bytes())
    data[16384 * 5 : 16384 * 6] = bytes(16384)
    (tmp_path / "store" / DATABASE).write_bytes(data)
    with pytest.raises(StoreError):
        back_up(
            tmp_path / "store" / DATABASE,
            SnapshotGate(tmp_path / "store" / BLOBS),
            Versions(tmp_path / "store"),
            tmp_path / "copy",
        )
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("left", [None, 100])
def test_a_blob_file_that_lacks_what_rows_name_is_refused(tmp_path: Path, left: int | None) -> None:
    """Else the backup gets a file of zeros, and looks whole."""
    with Store.open(tmp_path / "store", config=StoreConfig(blob_batch_bytes=0)) as store:
        add(store, rated("abc"))
        (file,) = (store.path / BLOBS).glob("*.blob")
        if left is None:
            file.unlink()
        else:
            os.truncate(file, left)
        how = "is missing" if left is None else "ends at byte 100"
        with pytest.raises(StoreCorruptError, match=rf"00000001\.blob: it {how}, .* 'sona doctor --store"):
            store.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_blob_file_that_may_not_be_read_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store", config=StoreConfig(blob_batch_bytes=0)) as store:
        add(store, rated("abc"))
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
        with pytest.raises(StoreError, match=r"00000001\.blob: it can't be read; grant read permission"):
            store.backup(tmp_path / "copy")


@pytest.mark.parametrize("sql", ["payload = x'00'", "source = CAST(x'ff' AS TEXT)", "content"])
def test_damaged_rows_are_in_it_and_counted(tmp_path: Path, sql: str) -> None:
    """It may be the last backup there will be."""
    in_blobs = sql == "content"
    with Store.open(tmp_path / "store", config=StoreConfig(blob_batch_bytes=0 if in_blobs else 1 << 30)) as store:
        add(store, rated("abc"))
        assert store.backup(tmp_path / "whole").damaged_rows == 0
    if in_blobs:
        (file,) = (tmp_path / "store" / BLOBS).glob("*.blob")
        spoil(file)
    else:
        with closing(apsw.Connection(str(tmp_path / "store" / DATABASE))) as raw:
            raw.execute(f"UPDATE trajectories SET {sql} WHERE id = 'b'")
            raw.execute("UPDATE sources SET rated = 7")
    with Store.open(tmp_path / "store", read_only=True) as store:
        made = store.backup(tmp_path / "copy")
    assert (made.trajectories, made.damaged_rows) == (3, 1 if in_blobs else 2)
    assert diagnose(tmp_path / "copy").exit_code == 1


def test_a_backup_is_as_large_as_the_store_that_it_is(tmp_path: Path) -> None:
    """A file that two versions share is one file."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        first = publish(store)
        second = publish(store)
        one, other = (Versions(store.path).path(version.id) / ADAPTER for version in (first, second))
        assert one.read_bytes() == other.read_bytes()
        other.unlink()
        os.link(one, other)
        made = store.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy", read_only=True) as copy:
        assert made.size_bytes == copy.counts().bytes_on_disk
