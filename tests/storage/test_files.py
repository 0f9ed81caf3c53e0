"""The store's files: what is made, what is refused, and who may write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

import sona
from sona.config import StoreConfig
from sona.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
)
from sona.storage import schema
from sona.storage.connection import store_error
from sona.storage.doctor import diagnose
from sona.storage.draft import make_folder
from sona.storage.lock import owner_of
from sona.storage.repair import repair
from sona.storage.retention import Limits
from sona.storage.store import DATABASE, LOCK, Store
from sona.storage.training_folder import TrainedBase, TrainingFolder
from sona.storage.versions import Versions
from tests.processes import first_line, kill, run, start
from tests.storage.faulty_disk import faulty_disk
from tests.storage.golden.make import SINCE_SCHEMA_3, contents, unpack
from tests.storage.learned import publish
from tests.storage.records import add, feedback, rated, run_cycle, trajectory


# Opening
def test_a_disk_that_has_no_room_for_what_readers_share_is_told_as_full(tmp_path: Path) -> None:
    """The first thing to fail where a store is opened on a full disk."""
    error = apsw.IOError("disk I/O error")
    error.extendedresult = apsw.SQLITE_IOERR_SHMSIZE  # type: ignore[attr-defined]
    assert isinstance(store_error(error, tmp_path), StoreFullError)


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with sona.open_sync("~/agent"):
        pass
    assert (tmp_path / "home" / "agent" / "store.db").is_file()
    assert not (tmp_path / "~").exists()


def test_a_store_is_a_folder_of_four(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep" / "store") as store:
        assert {"store.db", "store.lock", "versions"} <= {path.name for path in store.path.iterdir()}
    assert {path.name for path in store.path.iterdir()} == {"blobs", "store.db", "store.lock", "versions"}


AS_NOBODY = """
import os, sys
from sona.errors import StoreReadOnlyError
from sona.storage.store import Store
if os.geteuid() == 0:  # who may write anywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Store.open(sys.argv[1])
except StoreReadOnlyError as error:
    print(os.path.basename(str(error).split(":")[0]))
"""


@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal"])
def test_a_file_that_may_not_be_written_to_is_told_at_the_start(name: str) -> None:
    """Else records would be acknowledged that nothing stores."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        path = Path(folder) / "store"
        with Store.open(path) as store:
            add(store, rated("ab"))
            shutil.copytree(path, path.with_name("killed"))  # with its log
        path = path.with_name("killed")
        for place in (Path(folder), path, *path.rglob("*")):
            place.chmod(0o777 if place.is_dir() else 0o666)
        (path / name).chmod(0o444)
        assert run(AS_NOBODY, path) == name


@pytest.mark.parametrize("gone", ["deleted", "moved", "replaced"])
def test_a_store_that_is_taken_away_while_it_is_open_is_told(tmp_path: Path, gone: str) -> None:
    with Store.open(tmp_path / "store") as store:
        add(store, rated("a"))
        if gone == "deleted":
            shutil.rmtree(store.path)
        else:
            store.path.rename(tmp_path / "elsewhere")
        if gone == "replaced":
            shutil.copytree(tmp_path / "elsewhere", store.path)
        with pytest.raises(StoreError, match="moved, deleted or replaced"):
            store.append([trajectory("b")])
        if gone == "moved":
            (tmp_path / "elsewhere").rename(store.path)
            add(store, [trajectory("b")])
    if gone == "moved":
        with Store.open(tmp_path / "store", read_only=True) as store:
            assert [row.trajectory.id for row in store.iterate()] == ["a", "b"]


def test_the_settings_of_the_database_are_those_decided(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        pass
    with sqlite3.connect(tmp_path / DATABASE) as raw:
        found = {
            name: raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "auto_vacuum", "journal_mode")
        }
        numbers = {name: raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")}
    raw.close()
    assert found == {"page_size": 16384, "auto_vacuum": 2, "journal_mode": "wal"}
    assert numbers == {"application_id": schema.APPLICATION_ID, "user_version": schema.SCHEMA_VERSION}


def test_each_commit_is_synced_once(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:
        disk.synced.clear()
        add(store, rated("abc"))
        assert disk.synced == [f"{DATABASE}-wal"]


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.7"])
def test_an_old_sqlite_is_refused(version: str) -> None:
    with pytest.raises(StoreVersionError, match="pip install"):
        schema.check_library(version)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    raw = sqlite3.connect(tmp_path / DATABASE)
    raw.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    raw.close()
    for read_only in (False, True):
        with pytest.raises(StoreVersionError, match="update sona"):
            Store.open(tmp_path, read_only=read_only)


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / DATABASE)
    raw.execute("CREATE TABLE theirs (x)")
    raw.close()
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(StoreCorruptError, match="another program"):
        Store.open(tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = b"not a database, but long enough to be looked at as one. " * 400
    (tmp_path / DATABASE).write_bytes(text)
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match="no store"):
            Store.open(tmp_path, read_only=read_only)
    assert (tmp_path / DATABASE).read_bytes() == text


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        Store.open(tmp_path / "file")


def test_a_reader_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        Store.open(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()


def test_any_name_of_a_folder_will_do(tmp_path: Path) -> None:
    path = tmp_path / "we?ird#%20 näme&mode=rw"
    with Store.open(path) as store, Store.open(path, read_only=True) as reader:
        add(store, rated("a"))
        assert reader.counts().trajectories == 1
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_creation_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    with Store.open(tmp_path) as store:
        assert store.current().id == "v0"


# One writer
def test_a_second_writer_in_this_process_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path), pytest.raises(StoreLockedError, match=rf"this process .*pid {os.getpid()}"):
        Store.open(tmp_path)
    Store.open(tmp_path).close()


def test_a_second_writer_process_is_refused_with_the_firsts_pid(tmp_path: Path) -> None:
    other = start(
        """
import sys, time
from sona.storage.store import Store
store = Store.open(sys.argv[1])
print("open", flush=True)
time.sleep(60)
""",
        tmp_path,
    )
    try:
        assert first_line(other) == "open"
        with pytest.raises(StoreLockedError, match=rf"another process .*pid {other.pid}"):
            Store.open(tmp_path)
        with Store.open(tmp_path, read_only=True) as reader:
            assert reader.current().id == "v0"
    finally:
        kill(other)
    Store.open(tmp_path).close()  # a killed writer leaves no lock behind


def test_a_refused_writer_leaves_the_owners_pid(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        for _ in range(2):
            with pytest.raises(StoreLockedError):
                Store.open(tmp_path)
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_forked_child_finds_the_store_closed_and_harms_nothing(tmp_path: Path) -> None:
    output = run(
        """
import gc, os, sys
from sona.errors import ClosedError, StoreLockedError
from sona.storage.store import Store
from sona.storage.writer import Writer
from tests.storage.records import add, trajectory
store = Store.open(sys.argv[1])
add(store, [trajectory("before")])
writer = Writer(store)
writer.put(trajectory("queued"))
child = os.fork()
if child == 0:
    try:
        store.append([trajectory("child")])
    except ClosedError:
        pass
    else:
        os._exit(1)
    if writer.put(trajectory("child")) or writer.counts().rejected != 1:
        os._exit(2)
    writer.close()
    store.close()
    del store, writer
    gc.collect()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
try:
    Store.open(sys.argv[1])
except StoreLockedError:
    print("still locked")
add(store, [trajectory("after")])
writer.close()
print(sorted(row.trajectory.id for row in store.iterate()))
store.close()
""",
        tmp_path,
    )
    assert output.splitlines() == ["still locked", "['after', 'before', 'queued']"]
    with Store.open(tmp_path) as store:
        assert store.counts().trajectories == 3


def test_nothing_but_sqlite_opens_the_database(tmp_path: Path) -> None:
    """A second descriptor, once closed, would drop the locks that SQLite holds."""
    script = """
import sys
from sona.storage.store import Store
Store.open(sys.argv[1]).close()  # which makes it, empty, before SQLite has it
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from tests.storage.records import trajectory
with Store.open(sys.argv[1]) as store, Store.open(sys.argv[1], read_only=True) as reader:
    store.append([trajectory("a")])
    reader.counts()
    reader.get("a")
ours = [path for path in opened if path.startswith(sys.argv[1])]
print(any(path.endswith("store.lock") for path in ours), any("store.db" in path for path in ours))
"""
    assert run(script, tmp_path) == "True False"


# The form on disk


@pytest.mark.parametrize("form", [1, 2, 3, 4])
def test_a_store_of_each_schema_is_read(tmp_path: Path, form: int) -> None:
    expected = unpack(form, tmp_path)
    if form < schema.SCHEMA_VERSION:
        with pytest.raises(StoreVersionError, match="open it once for writing"):
            Store.open(tmp_path, read_only=True)
        Store.open(tmp_path).close()
    with Store.open(tmp_path, read_only=True) as store:
        assert contents(store) == expected
    with Store.open(tmp_path) as store:
        assert contents(store) == expected
        add(store, [trajectory("another"), feedback("another")])
        cycle = store.next_cycle()
        run_cycle(store, publish=True, groups={"another": ("s9", "p9")})
        assert store.current().id == f"v{cycle}"
        rows = store.sample("train", 3, np.random.default_rng(0), skills=["s9"], balanced=True)
        assert [row.trajectory.id for row in rows] == ["another"] * 3


@pytest.mark.parametrize("form", [1, 2, 3, 4])
def test_a_seed_draws_from_an_old_store_what_it_always_drew(tmp_path: Path, form: int) -> None:
    unpack(form, tmp_path)
    with Store.open(tmp_path) as store:  # written down from the code that made schema 1
        for version, train, held_out in (("v3", "ddadbbbadaab", "ccc"), ("v0", "ddadaddadaaa", "")):
            store.set_current(version)
            drawn = store.sample("train", 12, np.random.default_rng(5))
            assert "".join(row.trajectory.id for row in drawn) == train
            drawn = store.sample("held_out", 3, np.random.default_rng(5))
            assert "".join(row.trajectory.id for row in drawn) == held_out


def test_a_store_of_schema_3_knows_what_was_learned_from_and_deleted(tmp_path: Path) -> None:
    held = unpack(3, tmp_path)
    assert all(held[table] for table in SINCE_SCHEMA_3), "else the file shows nothing of these tables"
    with Store.open(tmp_path) as store:
        run_cycle(store, publish=True)
        erasure = store.erasure("past")
        erasure.begin()
        assert erasure.forget() == (store.current().id,)


def test_each_schema_has_its_golden_store(tmp_path: Path) -> None:
    for form in range(1, schema.SCHEMA_VERSION + 1):
        unpack(form, tmp_path)


def test_old_claims_are_of_no_skill_and_no_pattern(tmp_path: Path) -> None:
    unpack(1, tmp_path)
    with Store.open(tmp_path) as store:
        assert {(claim.skill, claim.pattern) for cycle in range(1, 6) for claim in store.claims(cycle)} == {("", "")}
        assert store.replayable("train", skills=[""]) == store.replayable("train") == 3
        rows = store.sample("train", 60, np.random.default_rng(0), skills=[""], balanced=True)
        assert {row.trajectory.id for row in rows} == {"a", "b", "d"}


def test_a_migration_does_not_pass_damage_as_whole(tmp_path: Path) -> None:
    unpack(1, tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as raw:
        raw.execute("UPDATE claims SET prompt_ids = x'01000000' WHERE cycle = 2")
    raw.close()
    with Store.open(tmp_path) as store:
        assert len(store.claims(1)) == 2
        for use in (lambda: store.claims(2), lambda: store.sample("train", 30, np.random.default_rng(0))):
            with pytest.raises(StoreCorruptError, match=r"claim 0 \(train\) of cycle 2 is damaged"):
                use()


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = unpack(1, tmp_path)

    def fail(connection: apsw.Connection) -> None:
        raise apsw.FullError("a test")

    first, second, *later = schema.MIGRATIONS
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (first, second._replace(then=fail), *later))
        with pytest.raises(StoreFullError):
            Store.open(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
        assert "skill" not in raw.execute("SELECT sql FROM sqlite_schema WHERE name = 'claims'").fetchone()[0]
    raw.close()
    with Store.open(tmp_path) as store:
        assert contents(store) == expected


def test_a_new_store_is_this_users_alone(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_whoever_looks_for_the_writer_keeps_none_from_starting(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            owner_of(tmp_path / LOCK)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(60):
            Store.open(tmp_path).close()
    finally:
        done.set()
        watcher.join()


def test_a_lost_database_takes_no_version_with_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        publish(store)
    versions = tmp_path / "store" / "versions"
    losses: list[Callable[[Path], object]] = [lambda file: file.write_bytes(b""), Path.unlink]
    for lose in losses:
        lose(tmp_path / "store" / DATABASE)
        for read_only in (False, True):
            with pytest.raises(StoreCorruptError, match=r"the database is (empty|missing), with versions v1 beside it"):
                Store.open(tmp_path / "store", read_only=read_only)
        assert [one.severity for one in diagnose(tmp_path / "store").findings] == ["fatal"]
        assert [path.name for path in versions.iterdir()] == ["v1"]


@pytest.mark.parametrize("lose", [lambda file: file.write_bytes(b""), Path.unlink])
def test_a_lost_database_is_refused_beside_its_log(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    """SQLite removes the log of an empty database: as a killed writer leaves it, it may hold all there is."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        shutil.copytree(tmp_path / "store", tmp_path / "lost")
    database, log = tmp_path / "lost" / DATABASE, tmp_path / "lost" / f"{DATABASE}-wal"
    lose(database)
    held = log.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match=f"with its log {log.name} beside it"):
            Store.open(tmp_path / "lost", read_only=read_only)
    assert [one.severity for one in diagnose(tmp_path / "lost").findings] == ["fatal"]
    assert held
    assert log.read_bytes() == held


def test_a_lost_database_is_replaced_by_all_of_a_backup(tmp_path: Path) -> None:
    """Not by its database alone: the room of deleted records in blob files is written again."""
    config = StoreConfig(blob_batch_bytes=1)
    with Store.open(tmp_path / "store", config=config) as store:
        add(store, rated(f"a{number}" for number in range(20)))
        store.backup(tmp_path / "copy")
        store.prune(Limits.of(StoreConfig(keep_trajectories=1)))
        add(store, rated(f"b{number}" for number in range(20)))
    (tmp_path / "store" / DATABASE).unlink()
    with pytest.raises(StoreCorruptError, match="use a backup of this store in place of this folder"):
        Store.open(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "copy").rename(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        assert len(list(store.iterate())) == 20


def test_versions_that_the_database_does_not_know_are_moved_and_not_removed(tmp_path: Path) -> None:
    """As where an older database was put back."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        publish(store)
    older = (tmp_path / "store" / DATABASE).read_bytes()
    with Store.open(tmp_path / "store") as store:
        for name in ("cd", "ef"):
            add(store, rated(name))
            publish(store)
    (tmp_path / "store" / DATABASE).write_bytes(older)
    found = {one.where: one for one in diagnose(tmp_path / "store").findings}
    assert found["versions/v2"].severity == "note"  # as a crash leaves it
    assert found["versions/v3"].severity == "damaged"
    assert "older than its folders" in found["versions/v3"].what
    assert found["versions/v3"].repair == "moves it there now"
    with Store.open(tmp_path / "store") as store:
        moved = Versions(store.path).clean({version.id for version in store.versions()})
    assert moved == ["v2", "v3"]
    aside = sorted(path.name.split("-")[0] for path in (tmp_path / "store" / "quarantine").iterdir())
    assert aside == ["v2", "v3"]
    assert sorted(path.name for path in (tmp_path / "store" / "versions").iterdir()) == ["v1"]


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """By which others may read what is not made private."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("existing", [False, True])
def test_what_people_said_is_its_owner_s_alone(tmp_path: Path, existing: bool, usual_umask: None) -> None:
    if existing:
        (tmp_path / "store").mkdir(mode=0o755)
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        store.backup(tmp_path / "copy")
        inner = [tmp_path / "store" / name for name in ("versions", "blobs")]
        files = [*(tmp_path / "store").glob(f"{DATABASE}*"), tmp_path / "copy" / DATABASE]
        assert {path.stat().st_mode & 0o777 for path in inner} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_every_folder_and_record_of_a_store_is_its_owner_s_alone(tmp_path: Path, usual_umask: None) -> None:
    with Store.open(tmp_path / "store", config=StoreConfig(blob_batch_bytes=1)) as store:
        add(store, rated("ab"))
        publish(store)
        store.backup(tmp_path / "copy")
        Versions(store.path).put("v1", "bank.msgpack", b"new")
        paths = [*(tmp_path / "store").rglob("*"), *(tmp_path / "copy").rglob("*")]
        assert {path.name for path in paths} >= {"adapter_model.safetensors", "bank.msgpack", "00000001.blob", LOCK}
        # A model server of another user may read an adapter by a link elsewhere; a version has its folder for that.
        inner = [path for path in paths if "v1" not in path.parent.parts]
        assert [str(path) for path in inner if path.stat().st_mode & 0o077] == []


def test_a_repair_leaves_what_people_said_its_owner_s_alone(tmp_path: Path, usual_umask: None) -> None:
    """In a folder that others may look into."""
    (tmp_path / "store").mkdir(mode=0o755)
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
    with sqlite3.connect(tmp_path / "store" / DATABASE) as raw:
        raw.execute("UPDATE trajectories SET payload = x'00' WHERE id = 'a'")
    raw.close()
    assert repair(tmp_path / "store").exit_code == 0
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {DATABASE, f"{DATABASE}.damaged-1", "rows-1.jsonl"}
    assert [str(path) for path in files if path.stat().st_mode & 0o077] == []


def test_a_database_that_is_shared_is_shared_after_a_repair(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "store" / DATABASE).chmod(0o640)
    with sqlite3.connect(tmp_path / "store" / DATABASE) as raw:
        raw.execute("DELETE FROM head")
    raw.close()
    assert repair(tmp_path / "store").exit_code == 0
    assert (tmp_path / "store" / DATABASE).stat().st_mode & 0o777 == 0o640


def test_what_training_keeps_is_its_owner_s_alone(tmp_path: Path, usual_umask: None) -> None:
    Store.open(tmp_path / "store").close()
    training = TrainingFolder(tmp_path / "store")
    training.begin(TrainedBase(model="m", fingerprint="f"))
    make_folder(training.base_files)
    (training.base_files / "config.json").write_text("{}")  # of the base model, which is nobody's secret
    with Store.open(tmp_path / "store") as store:
        store.backup(tmp_path / "copy")
    for folder in ("store", "copy"):
        paths = [tmp_path / folder, *(tmp_path / folder).rglob("*")]
        assert {path.name for path in paths} >= {"training", "base", "base.json"}
        assert [str(path) for path in paths if path.stat().st_mode & 0o077 and path.name != "config.json"] == []


def test_an_empty_database_is_not_told_to_be_opened_for_writing(tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    with pytest.raises(
        StoreError, match="empty; a start that was cut short left it so, or its records are lost"
    ) as told:
        Store.open(tmp_path, read_only=True)
    assert "for writing" not in str(told.value)
    with Store.open(tmp_path) as store:
        assert store.counts().trajectories == 0
