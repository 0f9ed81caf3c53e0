"""What waits: in order, bounded, and on disk still there when the process is not."""

from __future__ import annotations

import gzip
import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from sys import byteorder
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.config import StoreConfig
from sona.errors import ConflictError, StoreCorruptError, StoreError
from sona.storage import segment
from sona.storage.backlog import Backlog
from sona.storage.doctor import diagnose
from sona.storage.journal import Batch, File, Journal, MemoryJournal
from sona.storage.mapped import SMALLEST_SEGMENT, MappedJournal, open_journal, scanned_in, waiting_in
from sona.storage.repair import repair
from sona.storage.rows import encode
from sona.storage.segment import FIRST, HEADER_BYTES, Segment, scan
from sona.storage.store import Store
from sona.storage.writer import Writer
from sona.types import Feedback, Trajectory
from tests.processes import run
from tests.storage.golden.journal import golden, waiting
from tests.storage.records import ask, feedback, trajectory

BOUND = 1 << 20
Make = Callable[[int], Journal]


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Journal] = []

    def new(bound: int) -> Journal:
        made.append(MappedJournal(tmp_path / "journal", bound) if request.param == "file" else MemoryJournal(bound))
        return made[-1]

    yield new
    for journal in made:
        journal.close()


def put(journal: Journal, *records: Trajectory | Feedback) -> list[bool]:
    return [journal.append(journal.prepare(record)) for record in records]


def drain(journal: Journal) -> list[Trajectory | Feedback]:
    found: list[Trajectory | Feedback] = []
    while (batch := journal.take(7, 1 << 30)).records:
        found += batch.records
        journal.discard(journal.release(batch))
    return found


def make_room(journal: Journal) -> None:
    while journal.wants_room and (room := journal.make()) is not None:
        journal.add(room)


def abandon(journal: MappedJournal) -> None:
    """As a kill leaves it: nothing is closed, and nothing deleted."""


def test_records_come_back_in_order_and_stay_until_they_are_released(make: Make) -> None:
    journal = make(BOUND)
    records: list[Trajectory | Feedback] = [trajectory("a"), feedback("a"), trajectory("b", width=8), feedback("b")]
    size = sum(journal.prepare(record)[1] for record in records)
    assert put(journal, *records) == [True] * 4
    batch = journal.take(2, BOUND)
    assert (batch.records, journal.take(2, BOUND)) == (records[:2], batch)
    assert (len(journal.queue), journal.size, journal.waiting()) == (4, size, records)
    journal.discard(journal.release(batch))
    assert journal.take(10, 1).records == records[2:]  # a trajectory and the feedback behind it stay together
    assert drain(journal) == records[2:]
    assert (len(journal.queue), journal.size, journal.take(10, BOUND)) == (0, 0, Batch([], 0))


def test_what_is_beyond_the_bound_is_refused_and_fits_later(make: Make) -> None:
    journal = make(5000)
    one = trajectory("a")
    fit = 5000 // journal.prepare(one)[1]
    assert put(journal, *[one] * (fit + 1)) == [True] * fit + [False]
    drain(journal)
    assert put(journal, one) == [True]


def test_a_queue_may_be_longer_than_many_segments(make: Make) -> None:
    journal = make(64 * SMALLEST_SEGMENT)
    records = [Trajectory(id=str(place), messages=ask("q"), response="x" * 9000) for place in range(300)]
    for _ in range(3):  # the segments go round
        make_room(journal)
        assert all(put(journal, *records))
        assert drain(journal) == records


@pytest.mark.parametrize("bound", [SMALLEST_SEGMENT, 900_001, 2_500_000, 10_000_004, 33_554_431])
def test_any_bound_makes_files_of_whole_pages(tmp_path: Path, bound: int) -> None:
    journal = MappedJournal(tmp_path / "journal", bound)
    assert put(journal, trajectory("a")) == [True]
    assert {path.stat().st_size % 4096 for path in (tmp_path / "journal").iterdir()} == {0}
    journal.close()


def test_a_record_larger_than_a_segment_is_kept(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    big = Trajectory(id="big", messages=ask("q"), response="x" * (5 * SMALLEST_SEGMENT))
    assert put(journal, trajectory("a"), big, trajectory("b")) == [True] * 3
    abandon(journal)
    again = MappedJournal(tmp_path / "journal", BOUND)
    assert [record.id for record in drain(again)] == ["a", "big", "b"]
    again.close()
    assert list((tmp_path / "journal").iterdir()) == []


def test_what_waited_is_taken_up_and_what_was_released_is_not(tmp_path: Path) -> None:
    first = MappedJournal(tmp_path / "journal", 64 * SMALLEST_SEGMENT)
    records = [Trajectory(id=str(place), messages=ask("q"), response="x" * 9000) for place in range(100)]
    assert all(put(first, *records[:60]))
    first.discard(first.release(first.take(25, 1 << 30)))
    assert all(put(first, *records[60:]))
    abandon(first)
    second = MappedJournal(tmp_path / "journal", 64 * SMALLEST_SEGMENT)
    assert second.waiting() == records[25:]
    assert put(second, trajectory("new")) == [True]
    abandon(second)
    third = MappedJournal(tmp_path / "journal", 64 * SMALLEST_SEGMENT)
    assert third.waiting() == [*records[25:], trajectory("new")]
    assert drain(third) == [*records[25:], trajectory("new")]
    third.close()
    assert not MappedJournal(tmp_path / "journal", BOUND).queue


def test_a_kill_leaves_nothing_that_looks_like_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = MappedJournal(tmp_path / "journal", 64 * SMALLEST_SEGMENT)
    put(journal, trajectory("a"))
    make_room(journal)  # segments that were never begun
    abandon(journal)
    with caplog.at_level(logging.ERROR, "sona.storage"):
        assert MappedJournal(tmp_path / "journal", BOUND).waiting() == [trajectory("a")]
    assert caplog.text == ""


def test_what_was_released_from_the_only_segment_is_not_taken_up(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    for name in "abc":
        put(journal, trajectory(name), trajectory(name * 2))
        journal.discard(journal.release(journal.take(1 if name == "c" else 2, BOUND)))
    abandon(journal)
    assert MappedJournal(tmp_path / "journal", BOUND).waiting() == [trajectory("cc")]


def test_wiped_journals_hold_no_text_that_was_released(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    secret = Trajectory(id="s", messages=ask("my password is swordfish"), response="noted")
    put(journal, secret)
    drain(journal)
    put(journal, trajectory("waits"))
    journal.discard(journal.release(journal.take(0, 0)))
    put(journal, secret, trajectory("waits"))
    journal.discard(journal.release(journal.take(1, BOUND)))
    journal.blank()  # also of the segment in which a record waits
    assert journal.waiting() == [trajectory("waits")]
    drain(journal)
    assert not any(b"swordfish" in path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert put(journal, trajectory("after")) == [True]
    assert drain(journal) == [trajectory("after")]


def test_a_newer_record_is_told_and_stays(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    segment = Segment(tmp_path / "journal" / "00000001.seg", SMALLEST_SEGMENT)
    segment.begin(5)
    payload = b"\x81\xa3new\x01"
    segment.append(False, payload)
    with pytest.raises(StoreCorruptError, match="move this file away"):
        MappedJournal(tmp_path / "journal", BOUND)
    assert (tmp_path / "journal" / "00000001.seg").exists()


def test_a_full_disk_rejects_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = MappedJournal(tmp_path / "journal", 64 * SMALLEST_SEGMENT)
    record = Trajectory(id="a", messages=ask("q"), response="x" * 9000)
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr("os.posix_fallocate", refuse)
        make_room(journal)
        taken = put(journal, *[record] * 100)
        assert taken == [True] * sum(taken) + [False] * (100 - sum(taken))
        assert 0 < sum(taken) < 100
    assert put(journal, record) == [True]
    assert len(drain(journal)) == sum(taken) + 1


# Damage


def written(folder: Path, count: int) -> tuple[bytes, list[Trajectory | Feedback]]:
    """A segment's bytes, and what lies in it."""
    journal = MappedJournal(folder, BOUND)
    records: list[Trajectory | Feedback] = []
    for place in range(count):
        records.append(trajectory(f"t{place}", width=4) if place % 3 else feedback(f"t{place}"))
    put(journal, trajectory("released"), *records)
    journal.discard(journal.release(journal.take(1, BOUND)))
    (path,) = folder.glob("*.seg")
    data = path.read_bytes()
    path.unlink()
    return data, records


def taken_up(folder: Path, data: bytes) -> list[Trajectory | Feedback]:
    path = folder / "00000009.seg"
    path.write_bytes(data)
    journal = MappedJournal(folder, BOUND)
    found = journal.waiting()
    drain(journal)
    journal.close()
    return found


def test_each_form_has_its_golden_file() -> None:
    assert [path.name[:8].encode() for path in golden()] == [b"SONAJRN1", segment.MAGIC]


@pytest.mark.parametrize("packed", golden(), ids=lambda path: path.name)
def test_what_a_former_sona_left_is_taken_up(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal" / "00000001.seg"
    path.parent.mkdir()
    path.write_bytes(data := gzip.decompress(packed.read_bytes()))
    journal = MappedJournal(path.parent, BOUND)
    assert journal.waiting() == waiting()
    journal.close()
    start = FIRST
    for frame in scan(data).frames:
        payload = range(start + HEADER_BYTES, start + HEADER_BYTES + len(frame.payload))
        for at in range(start, frame.end):
            found = scan(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            matters = (
                start + 8 <= at < payload.stop
            )  # a flipped epoch is mended, and behind the payload nothing is read
            assert (len(found.frames), found.skipped > 0) == ((2, True) if matters else (3, False))
        start = frame.end
    headless = bytes(FIRST // 2) + data[FIRST // 2 :]
    assert scan(headless).frames == scan(data).frames


@pytest.mark.parametrize(("before", "now"), [(5, 6), (1 << 40, (1 << 40) + (1 << 32))])
def test_no_frame_of_another_epoch_passes(tmp_path: Path, before: int, now: int) -> None:
    """Though all that it says of itself is right, and the file's tail reaches over it."""
    segment = Segment(path := tmp_path / "one.seg", SMALLEST_SEGMENT)
    segment.begin(before)
    end = segment.append(False, bytearray(encode(trajectory("a"))))
    data = bytearray(path.read_bytes())
    assert [frame.end for frame in scan(bytes(data)).frames] == [end]
    segment.begin(now)
    data[:32] = path.read_bytes()[:32]
    data[64:72] = now.to_bytes(8, byteorder)
    assert not scan(bytes(data)).frames
    assert scan(bytes(data)).skipped == end - 64
    segment.close()


def test_a_segment_cut_anywhere_gives_what_is_whole_before_the_cut_and_tells_of_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, records = written(tmp_path / "journal", 6)
    ends = [frame.end for frame in scan(data).frames]
    for cut in range(0, ends[-1] + 8, 3):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "sona.storage"):
            found = taken_up(tmp_path / "journal", data[:cut])
        assert (len(found) < len(records)) is ("can't be read" in caplog.text)
        whole = sum(end - 7 <= cut for end in ends)  # up to 7 bytes of padding belong to no record
        assert len(found) <= len(records)
        if cut >= FIRST:
            assert found[-1:] != [trajectory("released")]
            assert records[: len(found)] == found
            assert len(found) >= sum(end <= cut for end in ends)
            assert len(found) <= whole


def test_every_flipped_byte_costs_one_record_at_most_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, records = written(tmp_path / "journal", 5)
    known = {record.id: record for record in [*records, trajectory("released")]}
    end = scan(data).frames[-1].end
    rng = random.Random(3)
    for place in range(end):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        caplog.clear()
        with caplog.at_level(logging.ERROR, "sona.storage"):
            found = taken_up(tmp_path / "journal", bytes(flipped))
        assert all(record == known[record.id] for record in found)  # nothing damaged passes as whole
        lost = [record for record in records if record not in found]
        assert len(lost) <= 1
        assert bool(lost) is ("can't be read" in caplog.text)


def test_a_damaged_start_costs_what_lies_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, records = written(tmp_path / "journal", 12)
    frames = scan(data).frames
    for cut in (64, 80, 512, 1024):
        with caplog.at_level(logging.ERROR, "sona.storage"):
            found = taken_up(tmp_path / "journal", bytes(cut) + data[cut:])
        sound = [
            record
            for record, frame in zip(records, frames, strict=True)
            if frame.end - 8 - HEADER_BYTES - len(frame.payload) >= cut
        ]
        assert [record for record in found if record.id != "released"][-len(sound) :] == sound
        assert "can't be read" in caplog.text or cut == 64  # which holds no record
        caplog.clear()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_behind_a_segment_are_no_record(data: st.DataObject) -> None:
    junk = data.draw(st.binary(max_size=400))
    found = scan(bytes(FIRST) + junk)
    assert found.frames == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("prk"), st.integers(1, 5)), max_size=30))
def test_a_journal_is_a_queue_across_restarts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """put, release and kill in any order, against a list."""
    folder = tmp_path_factory.mktemp("queue") / "journal"
    journal = MappedJournal(folder, BOUND)
    model: list[Trajectory | Feedback] = []
    number = 0
    for step, count in steps:
        if step == "p":
            for _ in range(count):
                number += 1
                record = Trajectory(id=str(number), messages=ask("q"), response="x" * 997 * (number % 40))
                record = record if number % 2 else feedback(str(number))  # type: ignore[assignment]
                assert put(journal, record) == [True]
                model.append(record)
        elif step == "r":
            journal.discard(journal.release(journal.take(count, 1 << 30)))
            del model[:count]
        else:
            abandon(journal)
            journal = MappedJournal(folder, BOUND)
        assert journal.waiting() == model
    journal.close()


# With the writer and the store


def test_close_says_that_the_rest_waits_and_the_next_start_stores_it(tmp_path: Path) -> None:
    script = """
import sys
from sona.errors import StoreError, StoreFullError
from sona.storage.mapped import open_journal
from sona.config import StoreConfig
from sona.storage.store import Store
from sona.storage.writer import Writer
from tests.storage.golden.journal import golden, waiting
from tests.storage.records import trajectory
store = Store.open(sys.argv[1])
def full(records): raise StoreFullError("full")
store.append = full
writer = Writer(store, journal=open_journal(store.path, StoreConfig()))
writer.put(trajectory("a"))
try:
    writer.close(timeout_s=0.1)
except StoreError as error:
    print(error)
"""
    assert "wait in the journal for the next start" in run(script, tmp_path)
    with Store.open(tmp_path) as store:
        writer = Writer(store, journal=MappedJournal(tmp_path / "journal", BOUND))
        writer.flush()
        counts = writer.counts()
        assert (counts.recovered, counts.recorded, counts.durable) == (1, 1, 1)
        writer.close()
        assert store.get("a").trajectory == trajectory("a")
        assert list((tmp_path / "journal").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(StoreError, match="journal"):
        open_journal(tmp_path, StoreConfig())
    assert isinstance(open_journal(tmp_path, StoreConfig(journal="memory")), MemoryJournal)


def test_a_frame_is_whole_or_absent() -> None:
    assert HEADER_BYTES % 8 == 0
    assert FIRST % 8 == 0


@pytest.mark.parametrize("bound", [1 << 22, 1 << 24])
def test_large_records_cost_no_segment_for_good(tmp_path: Path, bound: int) -> None:
    journal = MappedJournal(tmp_path / "journal", bound)
    large = Trajectory(id="large", messages=ask("q"), response="swordfish " * (bound // 70))
    for _ in range(25):
        assert put(journal, large) == [True]  # into an empty queue: what is active then waits for nothing
        make_room(journal)
        drain(journal)
    assert put(journal, *[trajectory(str(place)) for place in range(40)]) == [True] * 40
    drain(journal)
    assert len(list((tmp_path / "journal").iterdir())) <= journal._most
    journal.blank()
    assert not any(b"swordfish" in path.read_bytes() for path in (tmp_path / "journal").iterdir())
    journal.close()
    assert list((tmp_path / "journal").iterdir()) == []


def test_memory_in_place_of_files_forgets_nothing(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    put(journal, trajectory("a"))
    abandon(journal)
    assert waiting_in(tmp_path) == 1
    with pytest.raises(StoreError, match="1 record waits"):
        open_journal(tmp_path, StoreConfig(journal="memory"))


def test_feedback_that_came_with_a_left_out_trajectory_is_left_out(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        other = Trajectory(id="a", messages=ask("other"), response="bad")
        assert store.append([trajectory("a"), feedback("a")]) == [None, None]
        results = store.append([other, Feedback(trajectory_id="a", quality=0.0)])
        assert [type(result) for result in results] == [ConflictError, ConflictError]
        assert store.get("a").quality == 0.5


def left_behind(store: Path, count: int) -> Path:
    """The one file of a journal in which ``count`` records wait, as a kill leaves it."""
    Store.open(store).close()
    journal = MappedJournal(store / "journal", BOUND)
    put(journal, *(trajectory(f"t{number}") for number in range(count)))
    (file,) = (path for path in (store / "journal").glob("*.seg") if scan(path.read_bytes()).frames)
    return file


@pytest.mark.parametrize(
    "damage", ["noise over the start", "end of the last zeroed", "cut off", "none of ours", "zeros"]
)
def test_a_damaged_file_is_told_of_and_kept(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    file = left_behind(tmp_path, 3)
    data = file.read_bytes()
    frames = scan(data).frames
    spoilt = {
        "noise over the start": random.Random(0).randbytes(frames[0].end) + data[frames[0].end :],
        "end of the last zeroed": data[: frames[1].end] + bytes(len(data) - frames[1].end),
        "cut off": data[: frames[1].end],
        "none of ours": b"my precious notes" * 1000,
        "zeros": bytes(len(data)),  # as 4 KiB of them leave it, where one small record waits
    }[damage]
    whole = 0 if damage in ("none of ours", "zeros") else 2
    file.write_bytes(spoilt)
    (found,) = (one for one in diagnose(tmp_path).findings if one.severity == "damaged")
    assert found.where == f"journal/{file.name}"
    assert f"{whole} whole ones wait" in found.what
    with caplog.at_level(logging.ERROR, "sona.storage"), Store.open(tmp_path) as store:
        writer = Writer(store, StoreConfig(), open_journal(tmp_path, StoreConfig()))
        assert f"bytes in it should be records and can't be read, {whole} whole ones wait in it" in caplog.text
        writer.flush()
        writer.close()
        assert store.counts().trajectories == whole
    assert (tmp_path / "quarantine" / f"journal-{file.name}").read_bytes()[FIRST:] == spoilt[FIRST:]
    assert [(one.severity, one.where) for one in diagnose(tmp_path).findings] == [("note", "quarantine")]


def test_a_repair_takes_up_what_a_damaged_file_has(tmp_path: Path) -> None:
    file = spoilt_behind(tmp_path)
    assert diagnose(tmp_path).exit_code == 1
    found = repair(tmp_path)
    assert found.done == (f"journal/{file.name}: 3 records taken up; the file is kept in quarantine",)
    assert [(one.severity, one.where) for one in found.findings] == [("note", "quarantine")]
    assert repair(tmp_path).done == ()
    with Store.open(tmp_path, read_only=True) as store:
        assert store.counts().trajectories == 3


def test_damaged_files_of_one_name_are_all_kept(tmp_path: Path) -> None:
    for number in range(3):
        file = left_behind(tmp_path / "store", 1)
        file.rename(file.with_name("00000009.seg"))
        file.with_name("00000009.seg").write_bytes(b"%d" % number * 1000)
        open_journal(tmp_path / "store", StoreConfig()).close()
    names = sorted(path.name for path in (tmp_path / "store" / "quarantine").iterdir())
    assert names == ["journal-00000009-1.seg", "journal-00000009-2.seg", "journal-00000009.seg"]


def test_a_killed_journal_is_not_called_damaged_wherever_it_was(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", SMALLEST_SEGMENT)
    for number in range(40):
        put(journal, trajectory(f"t{number}"))
        if number % 3 == 0:
            journal.discard(journal.release(journal.take(1 + number % 5, BOUND)))
        for path in (tmp_path / "journal").glob("*.seg"):
            assert scan(path.read_bytes()).skipped == 0
    journal.close()


def test_a_killed_process_leaves_nothing_that_is_called_damaged(tmp_path: Path) -> None:
    """Not even segments that were ready, and one that was not: it has no name yet."""
    journal = MappedJournal(tmp_path / "journal", BOUND)
    make_room(journal)
    put(journal, trajectory("a"))
    abandon(journal)
    (tmp_path / "journal" / "00000009.new").write_bytes(bytes(100))
    found = scanned_in(tmp_path / "journal")
    assert sorted((one.skipped, len(one.frames)) for one in found.values()) == [(0, 0), (0, 0), (0, 1)]
    following = MappedJournal(tmp_path / "journal", BOUND)
    assert [record.id for record in drain(following)] == ["a"]
    following.close()
    assert list((tmp_path / "journal").iterdir()) == []
    assert not (tmp_path / "quarantine").exists()


def spoilt_behind(folder: Path) -> Path:
    """The one file of a journal whose second record of four is damaged."""
    file = left_behind(folder, 4)
    data = bytearray(file.read_bytes())
    data[scan(bytes(data)).frames[1].end - 16] ^= 1
    file.write_bytes(data)
    return file


def test_a_damaged_file_is_kept_although_a_kill_came_between(tmp_path: Path) -> None:
    file = spoilt_behind(tmp_path)
    journal = MappedJournal(tmp_path / "journal", BOUND)
    journal.discard(journal.release(journal.take(2, BOUND)))  # the damage lies before what still waits
    abandon(journal)
    assert scan(file.read_bytes()).skipped > 0
    open_journal(tmp_path, StoreConfig()).close()  # which lets go of nothing that waits
    following = MappedJournal(tmp_path / "journal", BOUND)
    drain(following)
    assert (tmp_path / "quarantine" / f"journal-{file.name}").is_file()
    following.close()


def test_where_a_damaged_file_can_t_be_moved_it_gives_back_nothing(tmp_path: Path) -> None:
    file = spoilt_behind(tmp_path)
    (tmp_path / "quarantine").write_text("in the way")
    journal = MappedJournal(tmp_path / "journal", BOUND)
    assert len(drain(journal)) == 3
    journal.close()
    assert scan(file.read_bytes()).frames == []


@pytest.mark.parametrize("whole", [False, True])
def test_records_come_in_while_the_disk_syncs(tmp_path: Path, whole: bool) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    backlog = Backlog(journal)
    entry = backlog.prepare(trajectory("a"))
    taken: list[bool] = []

    def syncing(files: Sequence[File], *, whole: bool = False) -> None:
        caller = threading.Thread(target=lambda: taken.append(backlog.put(entry)), daemon=True)
        caller.start()
        caller.join(5.0)
        assert taken == [True]

    with patch.object(journal, "sync", syncing):
        backlog.wipe() if whole else backlog.sync()
    backlog.close()


def test_a_journal_in_memory_leaves_nothing_of_a_killed_one(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    journal = MappedJournal(tmp_path / "journal", BOUND)
    put(journal, Trajectory(id="s", messages=ask("SECRET"), response="x"))
    drain(journal)
    abandon(journal)
    assert any(b"SECRET" in path.read_bytes() for path in (tmp_path / "journal").iterdir())
    open_journal(tmp_path, StoreConfig(journal="memory"))
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_wipe_leaves_what_waits_and_nothing_else(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", BOUND)
    for life in range(3):  # so that frames of earlier epochs lie about
        put(journal, *(Trajectory(id=f"{life}-{n}", messages=ask("SECRET"), response="x" * 500) for n in range(40)))
        drain(journal)
    put(journal, *(Trajectory(id=f"s{n}", messages=ask("SECRET"), response="x") for n in range(5)))
    put(journal, trajectory("waits"))
    journal.discard(journal.release(journal.take(5, BOUND)))
    journal.blank()
    files = {path: path.read_bytes() for path in (tmp_path / "journal").glob("*.seg")}
    assert not any(b"SECRET" in data for data in files.values())
    # However old the mark is that a power cut leaves: what was released is not there to be taken up.
    for path, data in files.items():
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / path.name).write_bytes(data[:32] + bytes(12) + data[44:])
    assert [record.id for record in MappedJournal(tmp_path / "old", BOUND).waiting()] == ["waits"]
    assert [record.id for record in journal.waiting()] == ["waits"]
    put(journal, trajectory("later"))
    assert [record.id for record in drain(journal)] == ["waits", "later"]
    journal.close()


def test_remains_are_wiped_but_for_what_waits(tmp_path: Path) -> None:
    first = MappedJournal(tmp_path / "journal", BOUND)
    put(first, *(Trajectory(id=f"s{n}", messages=ask("SECRET"), response="x") for n in range(5)), trajectory("waits"))
    second = MappedJournal(tmp_path / "journal", BOUND)
    batch = second.take(5, BOUND)
    left = second.release(batch)
    second.blank()  # also before what it left was seen to
    second.discard(left)
    assert not any(b"SECRET" in path.read_bytes() for path in (tmp_path / "journal").glob("*.seg"))
    assert [record.id for record in MappedJournal(tmp_path / "journal", BOUND).waiting()] == ["waits"]


def test_a_kill_while_a_file_is_removed_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = left_behind(tmp_path, 5)
    monkeypatch.setattr(segment, "_delete", lambda path: None)  # killed just before
    journal = MappedJournal(tmp_path / "journal", BOUND)
    journal.discard(journal.release(journal.take(5, BOUND)))
    assert (scan(file.read_bytes()).frames, scan(file.read_bytes()).skipped) == ([], 0)
