"""Large batches lie in files beside the database, and nothing else differs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import apsw
import pytest
from msgspec.structs import force_setattr, replace

from sona.config import StoreConfig
from sona.errors import (
    ConflictError,
    InvalidInputError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)
from sona.storage import blobs as blobs_module
from sona.storage.blob_files import BlobFile, pack_place, place_of
from sona.storage.blobs import read_blobs
from sona.storage.connection import open_reader
from sona.storage.doctor import diagnose
from sona.storage.layout import BLOBS, DATABASE
from sona.storage.repair import repair
from sona.storage.retention import Limits
from sona.storage.store import Store
from sona.types import Trajectory
from tests.storage.golden.make import contents, fill, unpack
from tests.storage.records import add, feedback, rated, run_cycle, trajectory

IN_BLOBS = StoreConfig(blob_batch_bytes=0, blob_file_bytes=4096)
TEXT = "the secret of this answer"


def told(name: str, text: str = TEXT, source: str = "agent") -> Trajectory:
    return replace(trajectory(name, source=source), response=f"{text} {name} " * 20)


def files(folder: Path) -> list[Path]:
    return sorted((folder / BLOBS).glob("*.blob"))


def holds(folder: Path, text: str) -> list[str]:
    """The files that hold ``text``."""
    return [path.name for path in sorted(folder.rglob("*")) if path.is_file() and text.encode() in path.read_bytes()]


def keep(newest: int) -> Limits:
    return Limits(days=0.0, trajectories=newest, per_source=0, unlearned=False)


def table(folder: Path) -> list[tuple[int, int, int]]:
    """Of each file how long it is, how much is in use, how much overwritten."""
    with closing(open_reader(folder / DATABASE)) as connection:
        return [(row.size, row.live, row.wiped) for row in read_blobs(connection)]


def test_a_store_holds_the_same_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for name, config in (("rows", StoreConfig()), ("blobs", IN_BLOBS)):
        with Store.open(tmp_path / name, config=config) as store:
            fill(store)
            found.append(contents(store))
        with Store.open(tmp_path / name, read_only=True) as store:
            found.append(contents(store))
    for one in found:  # which tell when it was
        assert one.pop("arrivals")
        assert one.pop("candidates")
    assert found[0] == found[1] == found[2] == found[3]
    assert not files(tmp_path / "rows")
    assert files(tmp_path / "blobs")
    assert diagnose(tmp_path / "blobs").findings == diagnose(tmp_path / "rows").findings


def test_a_large_batch_goes_into_a_file_and_a_small_one_into_rows(tmp_path: Path) -> None:
    config = StoreConfig(blob_batch_bytes=50_000)
    with Store.open(tmp_path, config=config) as store:
        add(store, [told("small")])
        assert not files(tmp_path)
        many = [told(f"large-{number}") for number in range(100)]
        add(store, many)
        assert [row.trajectory for row in store.iterate()] == [told("small"), *many]
    (file,) = files(tmp_path)
    assert holds(tmp_path, "large-99 ") == [file.name], "and nowhere else"
    size = file.stat().st_size
    assert table(tmp_path) == [(size, size, 0)]


def test_files_follow_each_other_and_each_batch_is_in_one(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        for number in range(30):
            add(store, [told(f"{number}-{place}") for place in range(3)])
        sizes = [path.stat().st_size for path in files(tmp_path)]
        assert len(sizes) > 5
        assert all(4096 <= size < 4096 + 3000 for size in sizes[:-1])
        assert [row.trajectory.id for row in store.iterate()][-1] == "29-2"


def test_what_is_sent_again_makes_no_file_longer(tmp_path: Path) -> None:
    batch = [told(f"{number}") for number in range(20)]
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, batch)
        before = [path.stat().st_size for path in files(tmp_path)]
        add(store, batch)
        assert [path.stat().st_size for path in files(tmp_path)] == before
        assert store.counts().trajectories == 20


def test_what_is_known_amid_new_ones_is_stored_once_and_counted_as_unused(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("a"), told("b")])
        other = replace(told("b"), response="other")
        results = store.append([told("c"), told("a"), other, told("d"), told("d"), told("e")])
        assert [type(result) for result in results] == [type(None), type(None), ConflictError, *[type(None)] * 3]
        assert [row.trajectory for row in store.iterate()] == [told(name) for name in "abcde"]
        store.prune()
    sizes = table(tmp_path)
    assert all(live + wiped == size for size, live, wiped in sizes)
    assert sum(wiped for *_, wiped in sizes) > 0
    assert diagnose(tmp_path).findings == ()


def test_one_without_a_stored_form_amid_others_leaves_no_byte(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(6)]
    batch = [told(name) for name in names]
    for place in (2, 5):
        force_setattr(batch[place], "response", "x" * 500 + "\ud800")
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        results = store.append(batch)
        assert [type(result) for result in results] == [
            InvalidInputError if at in (2, 5) else type(None) for at in range(6)
        ]
        for place in (0, 1, 3, 4):
            assert store.get(names[place]).trajectory == batch[place]
        assert store.counts().trajectories == 4
    (size, live, wiped) = table(tmp_path)[-1]
    assert size == live == files(tmp_path)[-1].stat().st_size
    assert not wiped
    assert not holds(tmp_path, "x" * 500)


def test_what_comes_twice_in_a_batch_is_read_once_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = BlobFile.write

    def slow(file: BlobFile, data: bytes | bytearray, start: int) -> None:
        time.sleep(0.1)
        write(file, data, start)

    monkeypatch.setattr(BlobFile, "write", slow)
    batch = [told("new"), told("twice"), told("twice"), told("twice", "something else"), told("last")]
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        results = store.append(batch)
        assert [type(result) for result in results] == [type(None), type(None), type(None), ConflictError, type(None)]


def test_what_was_pruned_is_overwritten_and_its_room_given_back(tmp_path: Path) -> None:
    config = StoreConfig(blob_batch_bytes=0, blob_file_bytes=1 << 20)
    with Store.open(tmp_path, config=config) as store:
        for part in range(4):
            add(store, [told(f"{part}-{number}", text=TEXT * 40) for number in range(100)])
        before = store.sizes().blobs
        done = store.prune(keep(150))
        assert done.trajectories == 250
        assert next(store.iterate()).trajectory.id == "2-50"
        assert store.sizes().blobs < 0.5 * before < 2 * done.freed_bytes
    assert holds(tmp_path, f"{TEXT} 0-1 ") == holds(tmp_path, f"{TEXT} 2-49 ") == []
    assert holds(tmp_path, f"{TEXT} 2-50 ") == [files(tmp_path)[0].name], "the files before it are gone"
    assert diagnose(tmp_path).findings == ()


def test_a_file_of_which_nothing_is_left_goes_but_its_number_is_not_given_again(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        for number in range(12):
            add(store, [told(f"{number}")])
        last = files(tmp_path)[-1].name
        store.prune(Limits(days=1.0, trajectories=0, per_source=0, unlearned=False))
        assert store.counts().trajectories == 0
        assert [path.name for path in files(tmp_path)] == [last]
        for number in range(12):
            add(store, [told(f"new {number}")])
        assert files(tmp_path)[0].name == last
        assert store.counts().trajectories == 12
    assert holds(tmp_path, f"{TEXT} 1") == []


def test_what_a_reader_still_sees_is_overwritten_when_it_has_ended(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store, Store.open(tmp_path, read_only=True) as reader:
        add(store, [told(f"{number}") for number in range(10)])
        with reader._snapshot() as connection:
            first = connection.execute("SELECT seq FROM trajectories WHERE id = '0'").get
            store.prune(keep(3))
            seen = connection.execute("SELECT content(payload) FROM trajectories WHERE seq = ?", (first,)).get
            assert TEXT.encode() in seen
            assert holds(tmp_path, f"{TEXT} 0 ")
        store.prune(keep(3))
        assert not holds(tmp_path, f"{TEXT} 0 ")
        assert [row.trajectory.id for row in reader.iterate()] == ["7", "8", "9"]


def test_erasure_waits_for_readers_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.storage.erasure.READERS_S", 0.05)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("mine", source="me"), told("yours", source="you"), feedback("mine")])
        run_cycle(store)
        with store._readers.gate.shared(), pytest.raises(StoreLockedError, match="reader still sees"):
            erase(store, "me")
        erase(store, "me")
        assert not holds(tmp_path, f"{TEXT} mine")
        assert [row.trajectory for row in store.iterate()] == [told("yours", source="you")]
    assert diagnose(tmp_path).findings == ()


class FailingFile(BlobFile):
    """A blob file whose next syncs fail, each with the next error."""

    errors: ClassVar[list[int]] = []

    def sync(self) -> None:
        if self.errors:
            raise OSError(self.errors.pop(), "the disk")
        super().sync()


def test_a_batch_that_could_not_be_written_leaves_nothing_and_may_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "BlobFile", FailingFile)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("before")])
        before = table(tmp_path)
        monkeypatch.setattr(FailingFile, "errors", [28, 28])
        for _ in range(2):
            with pytest.raises(StoreFullError, match="no room is left"):
                store.append([told("a"), told("b")])
        assert table(tmp_path) == before
        add(store, [told("c")])
        assert [row.trajectory.id for row in store.iterate()] == ["before", "c"]
        monkeypatch.setattr(FailingFile, "errors", [28])
        with pytest.raises(StoreFullError):
            store.append([told(f"lost {number}") for number in range(10)])
    assert holds(tmp_path, f"{TEXT} lost")
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("d")])
        assert [row.trajectory.id for row in store.iterate()] == ["before", "c", "d"]
        store.prune()
        assert not holds(tmp_path, f"{TEXT} lost")
        assert [row.trajectory for row in store.iterate()] == [told(name) for name in ("before", "c", "d")]
    assert diagnose(tmp_path).findings == ()


def test_how_a_batch_that_was_given_up_ended_is_not_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails, and before that is known something else does."""
    monkeypatch.setattr(blobs_module, "BlobFile", FailingFile)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("a")])
        monkeypatch.setattr(FailingFile, "errors", [28])
        with monkeypatch.context() as broken:
            broken.setattr("sona.storage.insert.count_arrivals", _full)
            with pytest.raises(StoreFullError):
                store.append([told("b")])
        add(store, [feedback("a")])


def _full(*_: object) -> None:
    raise apsw.FullError("no room")


def test_a_backup_has_its_own_copies_as_of_its_moment(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", config=IN_BLOBS) as store:
        add(store, [told(f"{number}") for number in range(20)])
        add(store, [told("last")])
        store.backup(tmp_path / "copy")
        add(store, [told("later")])
        expected = [told(f"{number}") for number in range(20)] + [told("last")]
        store.prune(keep(1))
    assert all(path.stat().st_nlink == 1 for path in files(tmp_path / "copy"))
    with Store.open(tmp_path / "copy", config=IN_BLOBS) as copy:
        assert [row.trajectory for row in copy.iterate()] == expected
        add(copy, [told("new")])
        assert copy.get("new").trajectory == told("new")
    assert diagnose(tmp_path / "copy").findings == ()


def spoil(folder: Path, how: Callable[[Path], object]) -> Path:
    path = files(folder)[1]
    how(path)
    return path


@pytest.mark.parametrize(
    "how",
    [Path.unlink, lambda path: os.truncate(path, 100), lambda path: path.write_bytes(bytes(path.stat().st_size))],
    ids=["missing", "short", "zeros"],
)
def test_a_damaged_file_costs_its_own_rows_and_a_repair_sets_them_aside(
    tmp_path: Path, how: Callable[[Path], object]
) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        for number in range(10):
            add(store, [told(f"{number}-{place}") for place in range(4)])
    path = spoil(tmp_path, how)
    with Store.open(tmp_path) as store:
        with pytest.raises(StoreCorruptError, match="sona doctor"):
            list(store.iterate())
        assert store.get("0-0").trajectory == told("0-0")
    found = diagnose(tmp_path)
    assert found.exit_code == 1
    if not path.exists() or path.stat().st_size == 100:
        assert f"{BLOBS}/{path.name}" in [one.where for one in found.findings]
    assert repair(tmp_path).exit_code == 0
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        left = [row.trajectory for row in store.iterate()]
        assert 20 < len(left) < 40
        assert all(one == told(one.id) for one in left)
        add(store, [told("new")])
        store.prune()
        assert [row.trajectory for row in store.iterate()] == [*left, told("new")]
    assert [one for one in diagnose(tmp_path).findings if one.severity != "note"] == []


@contextmanager
def changed(folder: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(folder / DATABASE))
    yield connection
    connection.close()


@pytest.mark.parametrize("sql", ["UPDATE blobs SET live = live - 1", "DELETE FROM blobs", "UPDATE blobs SET crc = 1"])
def test_what_is_counted_of_files_is_counted_anew(tmp_path: Path, sql: str) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told(f"{number}") for number in range(10)])
        add(store, rated(["r"]))
        expected = [row.trajectory for row in store.iterate()]
        before = table(tmp_path)
    with changed(tmp_path) as connection:
        connection.execute(sql)
    assert diagnose(tmp_path).exit_code == 1
    assert repair(tmp_path).exit_code == 0
    assert table(tmp_path) == before
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        assert [row.trajectory for row in store.iterate()] == expected
        add(store, [told("new")])
        assert store.get("new").trajectory == told("new")


def test_rows_of_a_damaged_database_keep_what_lies_in_files(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        for number in range(50):
            add(store, [told(f"{number}"), feedback(f"{number}")])
        expected = [row.trajectory for row in store.iterate()]
    data = bytearray((tmp_path / DATABASE).read_bytes())
    data[16384 + 200 : 16384 + 400] = bytes(200)  # of the page after the first, so that SQLite does not read it whole
    root = data.find(b"CREATE TABLE head")
    data[root : root + 6] = b"BROKEN"
    (tmp_path / DATABASE).write_bytes(data)
    assert diagnose(tmp_path).exit_code == 1
    repair(tmp_path)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        assert [row.trajectory for row in store.iterate()] == expected


def erase(store: Store, source: str) -> None:
    erasure = store.erasure(source)
    erasure.check_known()
    erasure.begin()
    erasure.delete_rows()
    erasure.forget()
    erasure.scrub()
    erasure.end()


def test_a_file_that_nothing_names_is_told_and_let_be_but_by_an_erasure(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("a"), told("b", source="other")])
    (tmp_path / BLOBS / "00000002.blob").write_bytes(b"left by a crash")
    (found,) = diagnose(tmp_path).findings
    assert (found.severity, found.where) == ("note", f"{BLOBS}/00000002.blob")
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        for number in range(9):
            add(store, [told(f"more {number}")])
        store.prune()
        assert [path.name for path in files(tmp_path)][:3] == [f"0000000{number}.blob" for number in (1, 2, 3)]
        assert holds(tmp_path, "left by a crash")
        erase(store, "other")
        assert not holds(tmp_path, "left by a crash")
        assert [row.trajectory for row in store.iterate()] == [told("a"), *[told(f"more {n}") for n in range(9)]]
    assert diagnose(tmp_path).findings == ()


def test_a_lost_database_costs_no_file(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("a")])
    before = files(tmp_path)[0].read_bytes()
    (tmp_path / DATABASE).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreCorruptError, match="the database is missing, with 1 blob file of records beside it"):
        Store.open(tmp_path, config=IN_BLOBS)
    (tmp_path / "elsewhere").rename(tmp_path / DATABASE)
    assert files(tmp_path)[0].read_bytes() == before
    with Store.open(tmp_path) as store:
        assert [row.trajectory for row in store.iterate()] == [told("a")]


def test_where_all_files_are_missing_a_repair_does_nothing_until_it_is_told_that_they_are_lost(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("a"), told("b")])
    (tmp_path / BLOBS).rename(tmp_path / "away")
    for done in (diagnose(tmp_path), repair(tmp_path)):
        assert done.exit_code == 2
        assert "put the folder back" in str(done.findings)
    (tmp_path / BLOBS).mkdir()
    (tmp_path / BLOBS / "00000001.blob").touch()
    assert repair(tmp_path).exit_code == 0
    with Store.open(tmp_path) as store:
        assert store.counts().trajectories == 0


def test_a_thread_that_cannot_be_started_leaves_nothing_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        with monkeypatch.context() as limited:
            limited.setattr("threading.Thread.start", _no_more_threads)
            add(store, [told("mine", source="me")])
        erase(store, "me")
        add(store, [told("yours")])
        assert not holds(tmp_path, f"{TEXT} mine")
        assert [row.trajectory for row in store.iterate()] == [told("yours")]


def _no_more_threads(thread: object) -> None:
    raise RuntimeError("can't start new thread")


def test_what_a_long_batch_that_failed_has_left_is_gone_after_an_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file that it was in is not the last one any more."""
    monkeypatch.setattr(blobs_module, "BlobFile", FailingFile)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told("other", source="other")])
        monkeypatch.setattr(FailingFile, "errors", [5])
        with pytest.raises(StoreError):
            store.append([told(f"lost {number}", source="other") for number in range(50)])
        for number in range(12):
            add(store, [told(f"{number}")])
        assert len(files(tmp_path)) > 1
        erase(store, "other")
    assert not holds(tmp_path, f"{TEXT} lost")
    assert not holds(tmp_path, f"{TEXT} other")
    assert diagnose(tmp_path).findings == ()


def test_a_file_that_was_begun_in_vain_is_removed_and_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "BlobFile", FailingFile)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        monkeypatch.setattr(FailingFile, "errors", [28])
        with pytest.raises(StoreFullError):
            store.append([told("lost")])
        store._wiping.run(1.0, everywhere=True)
        assert files(tmp_path) == []
        add(store, [told("a")])
        assert store.get("a").trajectory == told("a")
    assert diagnose(tmp_path).findings == ()


def test_a_doctor_beside_retention_finds_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        add(store, [told(f"first {number}") for number in range(50)])
        found: list[tuple[int, bytes]] = []

        def look() -> None:
            command = [sys.executable, "-m", "sona", "doctor", "--store", str(tmp_path)]
            for _ in range(3):
                done = subprocess.run(command, check=False, capture_output=True)
                found.append((done.returncode, done.stdout + done.stderr))

        doctor = threading.Thread(target=look)
        doctor.start()
        number = 0
        while doctor.is_alive():
            add(store, [told(f"{number}")])
            store.prune(keep(30))
            number += 1
        doctor.join()
    assert [code for code, _ in found] == [0] * 3, found


def test_room_that_was_given_back_is_not_taken_again(tmp_path: Path) -> None:
    config = StoreConfig(blob_batch_bytes=0, blob_file_bytes=1 << 30)
    with Store.open(tmp_path / "store", config=config) as store:
        for part in range(8):
            add(store, [told(f"{part}-{number}", text=TEXT * 40) for number in range(20)])
        (file,) = files(store.path)
        store.prune(keep(21))
        used = file.stat().st_blocks
        assert used * 512 < file.stat().st_size / 4
        copy = Path(store.backup(tmp_path / "copy").path) / BLOBS / file.name
        assert copy.stat().st_size == file.stat().st_size
        assert copy.stat().st_blocks <= used + 8
        store.prune(keep(20))
        assert file.stat().st_blocks <= used
        assert len(list(store.iterate())) == 20


def test_an_older_store_takes_large_batches_once_it_is_brought_up(tmp_path: Path) -> None:
    unpack(1, tmp_path)
    with Store.open(tmp_path, config=IN_BLOBS) as store:
        before = [row.trajectory for row in store.iterate()]
        add(store, [told("new")])
        assert [row.trajectory for row in store.iterate()] == [*before, told("new")]
        store.prune(keep(1))
        assert [row.trajectory for row in store.iterate()] == [told("new")]
    assert [one.where for one in diagnose(tmp_path).findings] == ["version v2, in force"], "which never had files"


AT_THE_END = """
import sys
from sona.config import StoreConfig
from sona.storage.store import Store
from sona.storage.writer import Writer
from tests.storage.records import rated
store = Store.open(sys.argv[1], config=StoreConfig(blob_batch_bytes=0))
writer = Writer(store)
assert all(writer.put(record) for record in rated(str(number) for number in range(300)))
"""


def test_a_writer_that_nobody_closed_stores_as_the_program_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_THE_END, str(tmp_path)]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    with Store.open(tmp_path) as store:
        assert store.counts().trajectories == 300
    assert files(tmp_path)


def test_a_place_is_no_content() -> None:
    assert place_of(pack_place(3, 1 << 31, 5)) == (3, 1 << 31, 5)
    for value in (None, 13, "\xc1" * 13, bytes(13), b"\xc1" * 12, b"\x82\xa1a"):
        assert place_of(value) is None
