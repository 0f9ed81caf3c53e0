"""The doctor: it finds what is wrong, says it of nothing else, and a repair keeps all that is whole."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sona.errors import StoreCorruptError, StoreError, StoreFullError, StoreLockedError, StoreReadOnlyError
from sona.ports import Role
from sona.storage import doctor as doctor_module
from sona.storage import repair as repair_module
from sona.storage import schema
from sona.storage.doctor import diagnose
from sona.storage.layout import QUARANTINE, REBUILDING, REBUILT
from sona.storage.mapped import open_journal
from sona.storage.repair import repair
from sona.storage.salvage import by_pages
from sona.storage.store import DATABASE, Store
from sona.storage.versions import Versions
from sona.storage.writer import Writer
from sona.types import Trajectory
from tests.processes import run
from tests.storage.golden.make import contents, unpack
from tests.storage.learned import publish, spoil
from tests.storage.records import add, ask, collected, feedback, rated, run_cycle
from tests.storage.test_damage import FLIP

PAGE = 16384
SEEDS = (1, 11, 14, 20, 23, 31)
"""At which records claim more bytes than there are, and one at which none does."""


def make(folder: Path, each: int = 60) -> None:
    """Two versions, a cycle that was rejected and one that left all out, some not taken yet, one that fills pages."""
    with Store.open(folder) as store:
        for name in "ab":
            add(store, rated(f"{name}{number}" for number in range(each)))
            publish(store)
        add(store, rated(f"c{number}" for number in range(each)))
        run_cycle(store, role="held_out")
        add(store, rated((f"d{number}" for number in range(each)), 0.125))
        run_cycle(store, role="left_out")
        add(store, [Trajectory(id="long", messages=ask("x" * 40_000), response="y" * 9_000, source="other")])
        add(store, [*rated(f"new{number}" for number in range(5)), feedback("long"), feedback("d0", 0.875, id="again")])
        store.write_state("probes", b"1234")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which nothing is wrong; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    make(folder)
    return folder


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return copy_of(whole, tmp_path / "store")


def copy_of(whole: Path, to: Path) -> Path:
    shutil.copytree(whole, to)
    return to


def change(folder: Path, *sql: str) -> None:
    with sqlite3.connect(folder / DATABASE) as raw:
        for one in sql:
            assert raw.execute(one).rowcount >= 1
    raw.close()


def all_of(folder: Path) -> Any:
    with Store.open(folder, read_only=True) as store:
        return contents(store)


def set_aside(folder: Path) -> list[dict[str, Any]]:
    files = (folder / QUARANTINE).glob("*.jsonl")
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def check_repaired(folder: Path) -> set[str]:
    """Nothing is wrong any more, a second repair does nothing, nothing is new again; returns the ids that are left."""
    assert [one for one in diagnose(folder).findings if one.severity != "note"] == []
    assert repair(folder).done == ()
    with Store.open(folder) as opened:
        rows = {row.trajectory.id: row for row in opened.iterate()}
        assert set(collected(opened)) <= {"d0", "long", *(f"new{number}" for number in range(5))}
        counts = opened.counts()
        assert counts.trajectories == len(rows)
        of_role: list[tuple[Role, int]] = [("train", counts.trained), ("held_out", counts.held_out)]
        for role, count in of_role:
            stands = opened.current().id == "v2"
            assert opened.replayable(role) == count or not stands
            drawn = opened.sample(role, 4 * count, np.random.default_rng(0), balanced=True)
            assert len(drawn) == 4 * opened.replayable(role) or not stands
        add(opened, rated(["after-the-repair"]))
        run_cycle(opened)
    return set(rows)


# What is whole


def test_nothing_is_wrong_with_a_store_that_was_used(store: Path) -> None:
    found = diagnose(store)
    assert (found.findings, found.exit_code) == ((), 0)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert repair(store).done == ()
    after = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in after}
    assert before[store / DATABASE] == after[store / DATABASE]


def test_beside_a_writer_it_looks_and_does_not_repair(store: Path) -> None:
    with Store.open(store) as opened:
        add(opened, rated(["now"]))
        found = diagnose(store)
        assert [(one.severity, one.where) for one in found.findings] == [("note", "store.lock")]
        assert str(os.getpid()) in found.findings[0].what
        with pytest.raises(StoreLockedError):
            repair(store)


def test_a_crash_is_no_damage(tmp_path: Path) -> None:
    script = """
import os, sys
from sona.storage.store import Store
from tests.storage.records import add, rated
store = Store.open(sys.argv[1])
add(store, rated(f"t{number}" for number in range(50)))
os._exit(0)
"""
    run(script, tmp_path / "store")
    assert (tmp_path / "store" / f"{DATABASE}-wal").exists()
    assert diagnose(tmp_path / "store").findings == ()


# What is no store


def test_what_is_no_store_is_fatal_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    raw = sqlite3.connect(tmp_path / "theirs" / DATABASE)
    raw.execute("CREATE TABLE theirs (x)")
    raw.close()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / DATABASE).write_bytes(b"no database, but long enough to be taken for one. " * 999)
    Store.open(tmp_path / "newer").close()
    raw = sqlite3.connect(tmp_path / "newer" / DATABASE)
    raw.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    raw.close()
    (tmp_path / "empty").mkdir()
    for name in ("theirs", "text", "newer", "empty", "nothing"):
        database = tmp_path / name / DATABASE
        before = database.read_bytes() if database.exists() else None
        for look in (diagnose, repair):
            found = look(tmp_path / name)
            assert (found.exit_code, found.findings[0].severity) == (2, "fatal")
        assert (database.read_bytes() if database.exists() else None) == before
        assert not database.exists() or [path.name for path in database.parent.glob("*.damaged*")] == []


def test_a_file_and_a_folder_below_one_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for look in (diagnose, repair):
        found = look(tmp_path / "file")
        assert (found.exit_code, found.findings[0].what.startswith("a file; a store is a folder")) == (2, True)
        found = look(tmp_path / "file" / "below")
        assert (found.exit_code, found.findings[0].what.startswith("there is no store")) == (2, True)


def test_another_user_s_folder_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refused)
    assert [one.what[:14] for one in diagnose(tmp_path).findings] == ["another user's"]
    with pytest.raises(StoreError, match="another user's"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", ["journal", "blobs", "versions", "store.lock"])
def test_what_is_in_the_way_of_opening_it_is_told(store: Path, name: str) -> None:
    path = store / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if name == "store.lock":
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(StoreError), Store.open(store) as opened:
        open_journal(store, opened.config)
    for look in (diagnose, repair):
        found = look(store)
        assert (found.exit_code, [one.where for one in found.findings]) == (2, [name])
        assert "can't be opened; move it away" in found.findings[0].what


def refused(monkeypatch: pytest.MonkeyPatch, mode: int, *paths: Path) -> None:
    """As if this user had no permission for them: root has any."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, wanted, **how: not (wanted & mode and path in paths) and access(path, wanted, **how)
    )


def test_what_may_not_be_written_to_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, os.W_OK, store / DATABASE)
    with pytest.raises(StoreReadOnlyError):
        Store.open(store)
    found = diagnose(store)
    assert (found.exit_code, [one.where for one in found.findings]) == (1, [DATABASE])
    assert "may not write to it, so nothing can be stored" in found.findings[0].what
    with pytest.raises(StoreReadOnlyError):
        repair(store)


def test_a_folder_to_read_is_no_damage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup on a disk that is mounted read-only."""
    refused(monkeypatch, os.W_OK, store, store / DATABASE, store / "store.lock")
    assert diagnose(store).findings == ()


def test_a_database_that_may_not_be_read_is_told_as_that(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, os.R_OK, store / DATABASE)
    found = diagnose(store)
    assert (found.exit_code, [one.where for one in found.findings]) == (2, [DATABASE])
    assert found.findings[0].what.startswith("this user may not read it")


def test_a_file_that_may_not_be_read_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(doctor_module, "owner_of", no)
    assert [(one.severity, one.where) for one in diagnose(store).findings] == [("fatal", "store.lock")]


def test_an_empty_database_is_not_called_whole(tmp_path: Path) -> None:
    """It may be all that is left of one, and nothing beside it tells."""
    (tmp_path / DATABASE).touch()
    found = diagnose(tmp_path)
    assert found.exit_code == 1
    assert "its records are lost: then use a backup" in found.findings[0].what
    assert repair(tmp_path).done == ("an empty one was begun anew",)
    assert diagnose(tmp_path).findings == ()


def test_of_what_is_no_database_only_what_is_there_is_told(store: Path) -> None:
    (store / DATABASE).write_bytes(b"no database, but long enough to be taken for one. " * 999)
    assert "What was learned still lies in versions/" in diagnose(store).findings[0].what
    shutil.rmtree(store / "versions")
    assert "versions/" not in diagnose(store).findings[0].what


# What is damaged row by row


@pytest.mark.parametrize(
    ("sql", "severity", "where"),
    [
        (f"UPDATE trajectories SET payload = {FLIP.format('payload')} WHERE seq = 3", "damaged", "trajectories seq 3"),
        ("UPDATE trajectories SET source = 'other' WHERE id = 'new1'", "damaged", "id 'new1'"),
        ("UPDATE feedback SET quality = 0.75 WHERE seq = 7", "damaged", "feedback seq 7"),
        ("UPDATE claims SET role = 'left_out', ordinal = 99 WHERE seq = 9", "damaged", "claims, seq 9"),
        ("DELETE FROM claims WHERE seq = 10", "repairable", "claim_groups"),
        (f"UPDATE cycles SET report = {FLIP.format('report')} WHERE cycle = 1", "damaged", "cycles, cycle 1"),
        ("DELETE FROM cycles WHERE cycle = 2", "damaged", "cycles, cycle 2"),
        (f"UPDATE versions SET payload = {FLIP.format('payload')} WHERE id = 'v1'", "damaged", "id 'v1'"),
        ("UPDATE state SET value = x'00' WHERE name = 'probes'", "damaged", "state, name 'probes'"),
        ("UPDATE sources SET rated = 7 WHERE source = 'agent'", "repairable", "sources, source 'agent'"),
        ("DELETE FROM sources WHERE source = 'agent'", "repairable", "source 'agent'"),
        ("UPDATE head SET watermark = 3", "damaged", "head"),
        ("DELETE FROM head", "damaged", "head"),
        ("UPDATE claim_groups SET size = 3 WHERE cycle = 1 AND pattern = 'p1'", "repairable", "claim_groups"),
        ("DELETE FROM claim_groups WHERE cycle = 3", "repairable", "claim_groups"),
        ("UPDATE arrivals SET minute = minute + 1", "damaged", "arrivals"),
    ],
)
def test_a_row_that_is_damaged_is_found_and_repaired(store: Path, sql: str, severity: str, where: str) -> None:
    if "arrivals" in sql:
        change(store, "INSERT INTO arrivals VALUES (1, 2, 3, 4)")
    before = all_of(store) if "sources" in sql or "claim_groups" in sql else None
    with_id = {row["trajectory"]["id"] for row in all_of(store)["stored"]}
    change(store, sql)
    found = diagnose(store)
    assert found.exit_code == 1
    assert severity in {one.severity for one in found.findings}
    assert any(where in one.where for one in found.findings), found.findings
    done = repair(store)
    assert done.exit_code == 0, done.findings
    if before is not None:
        assert all_of(store) == before
    aside = {row["row"]["id"] for row in set_aside(store) if row["table"] == "trajectories"}
    assert check_repaired(store) | aside == with_id
    assert len(aside) <= 1
    assert (store / f"{DATABASE}.damaged-1").exists()


def test_what_is_set_aside_is_there_raw(store: Path) -> None:
    change(store, "UPDATE trajectories SET payload = x'00FF' WHERE id = 'a3'")
    repair(store)
    rows = {row["table"]: row for row in set_aside(store)}
    assert rows["trajectories"]["row"]["payload"] == {"base64": "AP8="}
    assert "checksum" in rows["trajectories"]["why"]
    assert {"feedback", "claims"} < set(rows), "what hung on it"
    with Store.open(store) as opened:
        add(opened, rated(["a3"]))  # the id is free again


def test_a_taken_trajectory_whose_claim_is_lost_is_not_taken_again(store: Path) -> None:
    change(store, "DELETE FROM claims WHERE seq IN (1, 100)")
    repair(store)
    assert sorted(row["row"]["seq"] for row in set_aside(store) if row["table"] == "trajectories") == [1, 100]
    check_repaired(store)


@pytest.mark.parametrize(
    ("seqs", "told"), [("1", "1 trajectory has lost its claim,"), ("1, 100", "2 trajectories have lost their claims,")]
)
def test_one_is_told_as_one(store: Path, seqs: str, told: str) -> None:
    change(store, f"DELETE FROM claims WHERE seq IN ({seqs})")
    assert any(one.what.startswith(told) for one in diagnose(store).findings)


@pytest.mark.parametrize("gone", ["claims WHERE seq IN (1, 100)", "claims", "cycles WHERE cycle = 2"])
def test_without_claims_and_watermark_nothing_is_learned_again(store: Path, gone: str) -> None:
    """What can't be told to be new is not."""
    change(store, f"DELETE FROM {gone}", "DELETE FROM head")
    done = repair(store).done
    assert any("nothing must be learned twice" in line for line in done)
    with Store.open(store) as opened:
        assert collected(opened) == []
        left = {row.trajectory.id for row in opened.iterate()}
    aside = {row["row"]["id"] for row in set_aside(store) if row["table"] == "trajectories"}
    assert (len(left | aside), left & aside) == (246, set())
    assert ("d1" in left) == (gone != "claims")


def test_without_the_watermark_alone_what_is_new_stays_new(store: Path) -> None:
    change(store, "DELETE FROM head")
    repair(store)
    with Store.open(store) as opened:
        assert set(collected(opened)) == {"d0", "long", *(f"new{number}" for number in range(5))}


@pytest.mark.parametrize(("share", "has_mark"), [(0.9, True), (0.75, True), (0.5, True), (0.75, False), (0.5, False)])
def test_what_a_repair_sets_aside_though_it_is_whole_is_told_before_and_after(
    tmp_path: Path, share: float, has_mark: bool
) -> None:
    make(tmp_path, each=300)
    if not has_mark:
        change(tmp_path, "DELETE FROM head")
    os.truncate(tmp_path / DATABASE, int((tmp_path / DATABASE).stat().st_size * share))
    told = {one.where: one for one in diagnose(tmp_path).findings}["claims"]
    done = [line for line in repair(tmp_path).done if "learned twice" in line]
    aside = sum(row["table"] == "trajectories" for row in set_aside(tmp_path))
    assert told.what == f"{aside} of these trajectories have lost their claims"
    assert told.repair.startswith("sets them aside in quarantine/: what says whether they were learned is lost")
    assert [line.split(":")[0] for line in done] == [
        f"{aside} trajectories that are whole are set aside in quarantine/"
    ]


def test_a_trajectory_that_goes_with_its_claim_is_told_before_and_after(store: Path) -> None:
    change(store, "UPDATE claims SET ordinal = 99 WHERE seq = 9")
    (found,) = diagnose(store).findings
    assert found.repair == "sets it aside, and its trajectory where nothing else says whether that was learned"
    done = repair(store).done
    assert any(line.startswith("1 trajectory that is whole is set aside in quarantine/: what says") for line in done)
    assert any(line.endswith("/rows-1.jsonl: 1 claim, 1 feedback, 1 trajectory") for line in done)


def test_counts_that_are_wrong_need_nothing_set_aside(store: Path) -> None:
    before = all_of(store)
    change(
        store,
        "UPDATE sources SET quality_sum = 1.0, crc = 1",
        "UPDATE claim_groups SET size = size + 1, crc = 2",
    )
    assert {one.severity for one in diagnose(store).findings} == {"repairable"}
    repair(store)
    assert all_of(store) == before
    assert set_aside(store) == []


def test_a_lost_version_is_put_back_from_its_folder(store: Path) -> None:
    change(store, "UPDATE versions SET payload = x'00'")
    done = repair(store)
    assert sum("put back from its folder" in line for line in done.done) == 2
    with Store.open(store) as opened:
        assert [version.id for version in opened.versions()] == ["v0", "v1", "v2"]
        assert opened.current().id == "v2"
        for version in opened.versions()[1:]:
            Versions(store).verify(version)


# What is damaged in the file


def readable_ids(folder: Path) -> set[object]:
    """Of the trajectories that still lie whole in the file."""
    found = by_pages(folder / DATABASE)
    return {row["id"] for table, row, is_whole in found if table.name == "trajectories" and is_whole}


@pytest.mark.slow
def test_whatever_page_is_destroyed_all_others_are_kept(store: Path, tmp_path: Path) -> None:
    data = (store / DATABASE).read_bytes()
    before = readable_ids(store)
    lost_in_all = 0
    for page in range(len(data) // PAGE):
        folder = copy_of(store, tmp_path / str(page))
        (folder / DATABASE).write_bytes(data[: page * PAGE] + b"\xa5" * PAGE + data[(page + 1) * PAGE :])
        readable = readable_ids(folder)
        assert diagnose(folder).exit_code == 1, page
        done = repair(folder)
        assert done.exit_code == 0, (page, done)
        aside = {row["row"]["id"] for row in set_aside(folder) if row["table"] == "trajectories"}
        left = check_repaired(folder)
        assert left <= readable <= left | aside, page
        lost_in_all += len(before) - len(readable)
    assert len(before) <= lost_in_all <= len(before) + 4, "each row lies in one page, but for the one that fills some"


def test_of_a_file_that_was_cut_all_before_is_kept(store: Path, tmp_path: Path) -> None:
    data = (store / DATABASE).read_bytes()
    pages = len(data) // PAGE
    kept = []
    for cut in sorted({PAGE * at + 777 * (at % 3) for at in range(1, pages, 2)}):
        folder = copy_of(store, tmp_path / str(cut))
        (folder / DATABASE).write_bytes(data[:cut])
        for read_only in (True, False):
            with pytest.raises(StoreError), Store.open(folder, read_only=read_only) as opened:
                list(opened.iterate())
        readable = readable_ids(folder)
        if diagnose(folder).exit_code == 2:
            assert not readable
            continue
        assert repair(folder).exit_code == 0
        aside = {row["row"]["id"] for row in set_aside(folder) if row["table"] == "trajectories"}
        left = check_repaired(folder)
        assert left | aside == readable
        kept.append(len(readable))
    assert kept == sorted(kept)
    assert kept[-1] > 200


@pytest.mark.slow
@settings(max_examples=50)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_does_not_matter(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = copy_of(whole, tmp_path_factory.mktemp("flip") / "store")
    data = bytearray((folder / DATABASE).read_bytes())
    at = int(place * len(data))
    # user_version and application_id: a database of a newer schema, or of another program, is refused as such
    assume(not 60 <= at < 72)
    data[at] ^= 1 << bit
    (folder / DATABASE).write_bytes(data)
    found = diagnose(folder)
    if found.exit_code == 0:
        assert all_of(folder) == all_of(whole)
        return
    assert found.exit_code == 1
    assert repair(folder).exit_code == 0
    aside = {row["row"]["id"] for row in set_aside(folder) if row["table"] == "trajectories"}
    assert len(check_repaired(folder)) + len(aside) >= 244, "at most the one row is lost that the bit was in"


def scribbled(whole: Path, folder: Path, seed: int) -> Path:
    """A copy with 3,000 random bytes somewhere in its database."""
    rng = random.Random(seed)
    copy_of(whole, folder)
    data = bytearray((folder / DATABASE).read_bytes())
    at = rng.randrange(len(data) - 3000)
    data[at : at + 3000] = rng.randbytes(3000)
    (folder / DATABASE).write_bytes(data)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_random_bytes_anywhere_are_findings_and_never_another_error(whole: Path, tmp_path: Path, seed: int) -> None:
    folder = scribbled(whole, tmp_path / "store", seed)
    assert diagnose(folder).exit_code in (0, 1)
    done = repair(folder)
    assert done.exit_code == 0, done.findings
    check_repaired(folder)


@pytest.mark.timeout(20)
def test_an_overflow_chain_that_runs_in_a_circle_ends(store: Path) -> None:
    data = bytearray((store / DATABASE).read_bytes())
    last = len(data) // PAGE
    leaf = bytearray(PAGE)
    leaf[:10] = bytes([0x0D, 0, 0, 0, 1, 0, 16, 0, 0, 16])  # rows by number, one cell, at 16
    leaf[16:23] = b"\xa0\x80\x80\x80\x80\x00\x01"  # 2 ** 40 bytes, row 1
    least = (PAGE - 12) * 32 // 255 - 23
    kept = least + (2**40 - least) % (PAGE - 4)
    kept = kept if kept <= PAGE - 35 else least
    leaf[23 + kept : 27 + kept] = last.to_bytes(4, "big")
    data[-2 * PAGE : -PAGE] = leaf
    data[-PAGE : 4 - PAGE] = last.to_bytes(4, "big")  # an overflow page goes on in the one that it names: itself
    (store / DATABASE).write_bytes(data)
    assert list(by_pages(store / DATABASE))


def crashed(folder: Path, commits: int) -> bytes:
    """A store whose WAL holds ``commits`` transactions of ten trajectories; returns the WAL."""
    script = """
import os, sys
from sona.storage.store import Store
from tests.storage.records import add, rated
store = Store.open(sys.argv[1])
for commit in range(int(sys.argv[2])):
    add(store, rated(f"t{commit}-{number}" for number in range(10)))
os._exit(0)
"""
    Store.open(folder).close()
    run(script, folder, commits)
    return (folder / f"{DATABASE}-wal").read_bytes()


def test_what_lies_beyond_damage_in_the_wal_is_kept(tmp_path: Path) -> None:
    wal = crashed(tmp_path / "store", 12)
    frame = PAGE + 24
    for place in (32 + 9 * frame + 5000, 32 + 20 * frame + 18):
        folder = copy_of(tmp_path / "store", tmp_path / str(place))
        (folder / f"{DATABASE}-wal").write_bytes(wal[:place] + bytes([wal[place] ^ 4]) + wal[place + 1 :])
        with Store.open(copy_of(folder, tmp_path / f"{place}-plain"), read_only=True) as opened:
            seen = opened.counts().trajectories
        found = diagnose(folder)
        assert [one.where for one in found.findings] == ["store.db-wal"]
        assert repair(folder).exit_code == 0
        with Store.open(folder, read_only=True) as opened:
            left = {row.trajectory.id for row in opened.iterate()}
        assert seen < len(left)
        assert "t11-9" in left
        assert len(left) >= 110


def test_a_wal_that_was_cut_loses_what_was_cut(tmp_path: Path) -> None:
    wal = crashed(tmp_path / "store", 6)
    for part in (0.3, 0.6, 0.95):
        folder = copy_of(tmp_path / "store", tmp_path / str(part))
        (folder / f"{DATABASE}-wal").write_bytes(wal[: int(part * len(wal))])
        assert diagnose(folder).exit_code == 0, "it looks like a commit that a crash cut short"
        with Store.open(folder) as opened:
            assert opened.counts().trajectories % 10 == 0


# Versions


def test_a_damaged_version_in_force_gives_way_to_its_nearest_whole_ancestor(store: Path) -> None:
    spoil(store / "versions" / "v2" / "version.json")
    found = diagnose(store)
    assert [(one.severity, one.where) for one in found.findings] == [("damaged", "version v2, in force")]
    done = repair(store)
    assert done.exit_code == 0
    with Store.open(store) as opened:
        assert opened.current().id == "v1"
    assert not (store / "versions" / "v2").exists()
    assert len(list((store / QUARANTINE).glob("v2-*"))) == 1
    assert not list(store.glob("*.damaged-*")), "the database was in order"
    assert repair(store).done == ()


def test_a_version_in_force_whose_folder_is_gone_gives_way(store: Path) -> None:
    shutil.rmtree(store / "versions" / "v2")
    assert diagnose(store).exit_code == 1
    shutil.rmtree(store / "versions" / "v1")
    assert repair(store).exit_code == 0
    with Store.open(store) as opened:
        assert opened.current().id == "v0"


def test_a_pruned_version_is_nothing_wrong(store: Path) -> None:
    shutil.rmtree(store / "versions" / "v1")
    assert diagnose(store).findings == ()


def test_what_no_version_names_is_noted(store: Path) -> None:
    (store / "versions" / ".draft-x").mkdir()
    (store / "versions" / "v9").mkdir()
    found = diagnose(store)
    assert [one.where for one in found.findings] == ["versions/.draft-x", "versions/v9"]
    assert [one.severity for one in found.findings] == ["note", "damaged"]
    repair(store)
    assert sorted(path.name for path in (store / "versions").iterdir()) == ["v1", "v2"]
    assert [path.name.split("-")[0] for path in (store / "quarantine").glob("v*")] == ["v9"]


def test_the_journal_is_noted_only_where_records_wait_in_it(store: Path) -> None:
    with Store.open(store) as opened:
        journal = open_journal(store, opened.config)
        writer = Writer(opened, opened.config, journal)
        writer.put(Trajectory(id="waited", messages=ask("q"), response="r"))
        writer.close()
    assert (store / "journal").is_dir()
    assert diagnose(store).findings == ()
    for name, told in (("one", "1 record on its way into"), ("two", "2 records on their way into")):
        with Store.open(store) as opened:
            journal = open_journal(store, opened.config)
            assert journal.append(journal.prepare(Trajectory(id=name, messages=ask("q"), response="r")))
            journal.close()
        (found,) = diagnose(store).findings
        assert (found.severity, found.where) == ("note", "journal")
        assert found.what.startswith(told)
    assert diagnose(store).exit_code == 0


def test_an_erasure_that_was_cut_short_is_told(store: Path) -> None:
    with Store.open(store) as opened:
        opened.erasure("agent").begin()
    (found,) = diagnose(store).findings
    assert (found.severity, "sona erase" in found.what) == ("repairable", True)


# Older forms


@pytest.mark.parametrize("form", [1, 2])
def test_an_older_store_is_brought_up_and_repaired(tmp_path: Path, form: int) -> None:
    expected = unpack(form, tmp_path)
    assert [one.severity for one in diagnose(tmp_path).findings] == ["note"]
    done = repair(tmp_path)
    assert done.done[0] == f"brought from schema {form} to {schema.SCHEMA_VERSION}"
    found = all_of(tmp_path)
    assert found["stored"] == expected["stored"]
    assert found["current"] == "v0", "the golden store has no files of its versions"


@pytest.mark.parametrize("form", [1, 2, 3])
def test_the_pages_of_each_schema_are_read(tmp_path: Path, form: int) -> None:
    expected = unpack(form, tmp_path)
    data = (tmp_path / DATABASE).read_bytes()
    (tmp_path / DATABASE).write_bytes(bytes(100) + data[100:])  # its header is gone, and with it the schema's number
    with pytest.raises(StoreCorruptError, match="sona doctor"):
        Store.open(tmp_path)
    assert diagnose(tmp_path).exit_code == 1
    assert repair(tmp_path).exit_code == 0
    found = all_of(tmp_path)
    for part in ("stored", "feedback", "claims", "sources", "reports", "collected"):
        assert found[part] == expected[part]


# A repair that does not come to its end


def test_a_repair_that_fails_changes_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(store, "UPDATE trajectories SET payload = x'00' WHERE seq = 3")
    before = (store / DATABASE).read_bytes()

    def full(*_: object) -> list[str]:
        raise apsw.FullError("a test")

    monkeypatch.setattr(repair_module, "mend", full)
    with pytest.raises(StoreFullError):
        repair(store)
    assert (store / DATABASE).read_bytes() == before
    assert not (store / REBUILDING).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import sona.storage.exchange as exchange
from sona.storage.repair import repair
steps, at = 0, int(sys.argv[2])
def wrap(kind, name):
    inner = getattr(kind, name)
    def step(*args, **named):
        global steps
        for work in (lambda: None, lambda: inner(*args, **named)):
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = work()
        return result
    setattr(kind, name, step)
wrap(Path, "rename"), wrap(Path, "replace"), wrap(os, "link"), wrap(exchange, "sync_path"), wrap(Path, "unlink")
child = os.fork()
if child == 0:
    repair(sys.argv[1])
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_repair_that_was_killed_is_taken_to_its_end(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(store, each=3)
    change(store, "UPDATE trajectories SET payload = x'00' WHERE seq = 3")
    data = (store / DATABASE).read_bytes()
    refused = 0
    for at in range(1, 200, 2):
        folder = copy_of(store, tmp_path / str(at))
        status = int(run(KILLED, folder, at))
        if (folder / REBUILT).exists():
            refused += 1
            for read_only in (True, False):
                with pytest.raises(StoreCorruptError, match="--repair"):
                    Store.open(folder, read_only=read_only)
            assert "cut short" in diagnose(folder).findings[0].what
        assert repair(folder).exit_code == 0
        assert len(check_repaired(folder)) == 17
        assert (folder / f"{DATABASE}.damaged-1").read_bytes() == data
        if status == 0:
            break
    assert refused > 3


def test_each_repair_keeps_its_own_copies(store: Path) -> None:
    for number in (1, 2):
        change(store, f"UPDATE trajectories SET payload = x'00' WHERE seq = {number}")
        assert repair(store).exit_code == 0
        assert (store / f"{DATABASE}.damaged-{number}").exists()
        assert (store / QUARANTINE / f"rows-{number}.jsonl").exists()
    assert len(set_aside(store)) == 6


def test_the_error_of_a_damaged_row_names_the_doctor(store: Path) -> None:
    change(store, "UPDATE trajectories SET payload = x'00' WHERE seq = 3")
    with Store.open(store, read_only=True) as opened, pytest.raises(StoreCorruptError, match="sona doctor"):
        opened.get("a2")


def test_a_database_that_is_none_tells_what_is_left_to_do(store: Path) -> None:
    (store / DATABASE).write_bytes(b"garbage " * 1000)
    found = repair(store)
    assert (found.exit_code, found.done) == (2, ())
    assert "no row of a store in it; use a backup of this store in place of this folder" in found.findings[0].what
    assert "versions/" in found.findings[0].what
    assert (store / DATABASE).read_bytes() == b"garbage " * 1000


def test_what_was_taken_over_and_set_aside_adds_up(store: Path) -> None:
    tables = {"trajector": "trajectories", "feedback": "feedback", "claim": "claims"}
    with sqlite3.connect(store / DATABASE) as raw:
        before = {name: raw.execute(f"SELECT count(*) FROM {of}").fetchone()[0] for name, of in tables.items()}
        raw.execute("UPDATE trajectories SET payload = x'00' WHERE id = 'a3'")  # its feedback and claim go with it
    raw.close()
    kept, aside = (
        {name: int(count) for count, name in re.findall(r"(\d+) (trajector|feedback|claim)", line)}
        for line in repair(store).done
        if "taken over" in line or "set aside" in line
    )
    assert {name: aside[name] for name in tables} == dict.fromkeys(tables, 1)
    with sqlite3.connect(store / DATABASE) as raw:
        after = {name: raw.execute(f"SELECT count(*) FROM {of}").fetchone()[0] for name, of in tables.items()}
    raw.close()
    assert {name: kept[name] for name in tables} == after
    assert {name: kept[name] + aside[name] for name in tables} == before
