"""Pins: kept with the store, looked at before files go, and never lost in silence."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from sona.errors import StoreCorruptError, StoreReadOnlyError, UnknownIdError
from sona.storage.doctor import diagnose
from sona.storage.repair import repair
from sona.storage.store import DATABASE, Store
from sona.storage.version_retention import prune_versions
from sona.storage.versions import Versions
from tests.storage.learned import publish
from tests.storage.records import add, rated


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with the versions v1 to v3, of which v1 is pinned."""
    with Store.open(tmp_path / "store") as store:
        for name in "abc":
            add(store, rated([name]))
            publish(store)
        store.pin("v1")
    return tmp_path / "store"


def execute(path: Path, sql: str) -> None:
    raw = sqlite3.connect(path / DATABASE)
    with raw:
        assert raw.execute(sql).rowcount == 1
    raw.close()


def test_a_pin_outlives_the_process_and_is_let_go_of(filled: Path) -> None:
    with Store.open(filled) as store:
        (since,) = store.pinned().values()
        store.pin("v1")
        assert store.pinned() == {"v1": since}, "it stays pinned since when it was"
        store.pin("v3")
        assert set(store.pinned()) == {"v1", "v3"}
    with Store.open(filled, read_only=True) as reader:
        assert set(reader.pinned()) == {"v1", "v3"}
        with pytest.raises(StoreReadOnlyError):
            reader.unpin("v1")
    with Store.open(filled) as store:
        store.unpin("v1")
        store.unpin("v1")  # nothing happens
        assert set(store.pinned()) == {"v3"}


def test_what_is_no_version_can_not_be_pinned(filled: Path) -> None:
    with Store.open(filled) as store:
        for change in (store.pin, store.unpin):
            with pytest.raises(UnknownIdError, match="'v9'"):
                change("v9")
        assert set(store.pinned()) == {"v1"}


def test_the_stored_form_stays_as_it_is(filled: Path) -> None:
    """A state of its own, with the moment in decimal digits: what later versions of sona have to read."""
    raw = sqlite3.connect(filled / DATABASE)
    ((name, value),) = raw.execute("SELECT name, value FROM state WHERE name LIKE 'pin%'").fetchall()
    raw.close()
    assert name == "pinned/v1"
    with Store.open(filled) as store:
        assert store.pinned() == {"v1": int(value.decode("ascii"))}
        store.write_state("pinned/v2", b"1700000000000000000")
        assert store.pinned()["v2"] == 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE state SET name = 'qinned/v1' WHERE name = 'pinned/v1'",
        "UPDATE state SET name = 'pinned/v2' WHERE name = 'pinned/v1'",
        "UPDATE state SET value = x'39' WHERE name = 'pinned/v1'",
    ],
)
def test_a_damaged_pin_keeps_every_file(filled: Path, sql: str) -> None:
    execute(filled, sql)
    with Store.open(filled) as store:
        with pytest.raises(StoreCorruptError, match=r"state.*damaged"):
            prune_versions(store, 1)
        assert len(list(Versions(filled).folder.iterdir())) == 3
    assert diagnose(filled).exit_code == 1


def test_a_state_that_is_no_moment_is_damage(filled: Path) -> None:
    with Store.open(filled) as store:
        store.write_state("pinned/v2", b"soon")
        with pytest.raises(StoreCorruptError, match="no moment"):
            store.pinned()


def test_a_backup_and_a_repaired_store_keep_pins(filled: Path, tmp_path: Path) -> None:
    with Store.open(filled) as store:
        pins = store.pinned()
        store.backup(tmp_path / "copy")
    with Store.open(tmp_path / "copy", read_only=True) as copy:
        assert copy.pinned() == pins
    data = bytearray((filled / DATABASE).read_bytes())
    data[:100] = bytes(100)  # SQLite reads nothing of it any more
    (filled / DATABASE).write_bytes(data)
    assert repair(filled).exit_code == 0
    with Store.open(filled, read_only=True) as store:
        assert store.pinned() == pins


def test_a_pin_names_a_version_whose_row_was_lost(filled: Path) -> None:
    """Its folder gives it back, though neither a cycle nor another version names it any more."""
    with Store.open(filled) as store:
        store.pin("v3")
        store.set_current("v2")
    execute(filled, "UPDATE versions SET payload = x'00' WHERE id = 'v3'")
    execute(filled, "UPDATE cycles SET report = x'00' WHERE version = 'v3'")
    repair(filled)
    with Store.open(filled) as store:
        assert [version.id for version in store.versions()] == ["v0", "v1", "v2", "v3"]
        Versions(filled).verify(store.versions()[-1])
        assert set(store.pinned()) == {"v1", "v3"}


def test_the_pin_of_a_version_that_is_lost_for_good_goes_too(filled: Path) -> None:
    shutil.rmtree(Versions(filled).path("v1"))
    execute(filled, "UPDATE versions SET payload = x'00' WHERE id = 'v1'")
    done = repair(filled)
    assert "version 'v1' is lost" in done.done
    assert done.exit_code == 0
    with Store.open(filled) as store:
        assert store.pinned() == {}


def test_the_doctor_misses_the_files_of_a_pinned_version_alone(filled: Path) -> None:
    shutil.rmtree(Versions(filled).path("v2"))
    assert diagnose(filled).exit_code == 0
    shutil.rmtree(Versions(filled).path("v1"))
    (found,) = [one for one in diagnose(filled).findings if one.severity != "note"]
    assert (found.severity, found.where) == ("damaged", "version v1, pinned")
    assert "sona versions unpin v1" in found.what
    with Store.open(filled) as store:
        store.unpin("v1")
    assert diagnose(filled).exit_code == 0
