"""What comes between two steps of a call: another call, or an exception."""

from __future__ import annotations

import errno
import gc
import linecache
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.config import StoreConfig
from sona.errors import ClosedError, StoreError
from sona.storage.backlog import MOST_INDEXED, Backlog
from sona.storage.journal import MemoryJournal
from sona.storage.mapped import LARGEST_BUFFER, MOST_BUFFERS, SMALLEST_SEGMENT, MappedJournal, open_journal, scanned_in
from sona.storage.rows import decode
from sona.storage.store import Store
from sona.storage.writer import Writer
from sona.types import Feedback, Trajectory
from tests.storage.records import ask, feedback, trajectory

BOUND = 1 << 20


@pytest.fixture(params=["memory", "file"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryJournal | MappedJournal]:
    made = MappedJournal(tmp_path / "journal", BOUND) if request.param == "file" else MemoryJournal(BOUND)
    yield made
    made.close()


def put(backlog: Backlog, record: Trajectory | Feedback, second: Feedback | None = None) -> bool:
    return backlog.put(backlog.prepare(record), None if second is None else backlog.prepare(second))


def at_line(number: int, act: Any, later: int | None = None, then: Any = None) -> Any:
    """A trace function that calls ``act`` before the ``number``-th line that runs in the backlog or a journal, and
    ``then`` before the ``later``-th. Not in a place where Python runs no signal handler: the one statement that ends a
    call.
    """
    seen = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if Path(frame.f_code.co_filename).name not in ("backlog.py", "journal.py", "mapped.py", "segment.py"):
            return None
        if event == "line" and "_inside = False" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            seen[0] += 1
            if seen[0] == number:
                act()
            elif seen[0] == later:
                then()
        return trace

    return trace


def lines_of(call: Any) -> int:
    seen = [0]

    def count(frame: FrameType, event: str, argument: object) -> Any:
        seen[0] += event == "line"
        return count

    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(None)
    return seen[0]


def check_counts(backlog: Backlog, journal: MemoryJournal | MappedJournal) -> None:
    waiting = journal.waiting()
    assert backlog.records == len(waiting)
    assert backlog.size == sum(backlog.prepare(record)[1] for record in waiting)
    assert all(backlog.knows(record.id) for record in waiting if isinstance(record, Trajectory))
    assert not backlog.knows("nobody")
    assert backlog._indexed == len(waiting)
    assert dict(backlog._ids) == Counter(record.id for record in waiting if isinstance(record, Trajectory))


def test_a_call_that_is_cut_short_anywhere_leaves_counts_that_are_true(
    journal: MemoryJournal | MappedJournal,
) -> None:
    backlog = Backlog(journal)
    big = Trajectory(id="big", messages=ask("q"), response="x" * (SMALLEST_SEGMENT // 3))
    steps = lines_of(lambda: put(backlog, big, feedback("big")))
    assert steps > 10

    def cut() -> None:
        raise KeyboardInterrupt

    for number in range(1, 2 * steps):
        record = Trajectory(id=f"t{number}", messages=ask("q"), response="x" * (SMALLEST_SEGMENT // 3))
        done, before = backlog.done, backlog.records
        sys.settrace(at_line(number, cut))
        try:
            put(backlog, record, feedback(record.id))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert put(backlog, trajectory(f"next{number}"))
        check_counts(backlog, journal)
        assert backlog.records in (before + 1, before + 3)  # both or none
        while (batch := backlog.take(100, BOUND)).records:
            backlog.release(batch, lambda: None)
        assert backlog.done > done
        assert (backlog.records, backlog.size, backlog._indexed, dict(backlog._ids)) == (0, 0, 0, {})


def test_a_call_in_the_midst_of_a_call_is_taken_in_by_it(journal: MemoryJournal | MappedJournal) -> None:
    """As a signal handler's, or a finaliser's that the collector runs."""
    backlog = Backlog(journal)
    steps = lines_of(lambda: put(backlog, trajectory("first")))
    for number in range(1, steps):
        inner: list[bool] = []
        sys.settrace(at_line(number, lambda: inner.append(put(backlog, trajectory(f"inner{number}")))))  # noqa: B023
        try:
            assert put(backlog, trajectory(f"outer{number}"))
        finally:
            sys.settrace(None)
        if inner:
            assert inner == [True]
            assert backlog.knows(f"inner{number}")
        backlog.take(1, 1)  # at the latest whoever is next takes it in
        check_counts(backlog, journal)
        found = {record.id for record in journal.waiting()}
        assert f"outer{number}" in found
        assert (f"inner{number}" in found) is bool(inner)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_waits_is_known_and_what_is_released_is_not(data: st.DataObject) -> None:
    backlog, waiting, names = Backlog(MemoryJournal(BOUND)), list[Trajectory | Feedback](), [f"t{n}" for n in range(4)]
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["put", "rate", "release", "ask"])):
            case "put":
                waiting.append(trajectory(data.draw(st.sampled_from(names))))  # the same id may wait twice
                assert put(backlog, waiting[-1])
            case "rate":
                waiting.append(feedback(data.draw(st.sampled_from(names))))
                assert put(backlog, waiting[-1])
            case "release":
                backlog.release(batch := backlog.take(data.draw(st.integers(0, 4)), BOUND), lambda: None)
                del waiting[: len(batch.records)]
            case "ask":
                name = data.draw(st.sampled_from(names))
                assert backlog.knows(name) is any(isinstance(one, Trajectory) and one.id == name for one in waiting)


def test_who_waits_in_a_long_queue_is_told_a_part_after_the_other() -> None:
    backlog = Backlog(MemoryJournal(1 << 30))
    total = 2 * MOST_INDEXED + 10
    for number in range(total):
        put(backlog, Trajectory(id=f"t{number}", messages="q", response="a"))
    assert backlog.knows("t5")
    assert backlog._indexed == MOST_INDEXED
    assert not backlog.knows("nobody")
    assert backlog._indexed == len(backlog._ids) == total
    backlog.release(backlog.take(total - 3, 1 << 30), lambda: None)
    assert [backlog.knows(f"t{number}") for number in range(total - 5, total)] == [False, False, True, True, True]


def test_asking_who_waits_may_be_cut_short_anywhere(journal: MemoryJournal | MappedJournal) -> None:
    backlog = Backlog(journal)
    put(backlog, trajectory("first"), feedback("first"))
    steps = lines_of(lambda: backlog.knows("first"))
    assert steps > 5
    for number in range(1, steps):
        put(backlog, trajectory(f"t{number}"))
        sys.settrace(at_line(number, interrupt))
        with suppress(KeyboardInterrupt):
            backlog.knows("first")
        sys.settrace(None)
        assert put(backlog, trajectory(f"next{number}"))
        check_counts(backlog, journal)


def test_a_signal_handler_may_ask_who_waits_in_the_midst_of_a_call(journal: MemoryJournal | MappedJournal) -> None:
    backlog = Backlog(journal)
    put(backlog, trajectory("first"), feedback("first"))
    told: list[bool] = []
    numbers = count()

    def ask_and_record() -> None:
        put(backlog, trajectory(name := f"inner{next(numbers)}"))
        told.extend([backlog.knows("first"), backlog.knows(name), not backlog.knows("nobody")])

    def record() -> None:
        put(backlog, trajectory(f"outer{next(numbers)}"))

    for call in (record, partial(backlog.knows, "first")):
        for number in range(1, lines_of(call)):
            sys.settrace(at_line(number, ask_and_record))
            call()
            sys.settrace(None)
    assert len(told) > 60
    assert all(told)
    check_counts(backlog, journal)


def test_what_lies_in_the_files_is_what_was_recorded_whatever_came_between(tmp_path: Path) -> None:
    """A call within a call that is then cut short: what is taken in twice is the same record twice, though another one
    was made in the same memory meanwhile.
    """
    records = {name: trajectory(name) for name in ("outer", "inner", "next")}
    backlog = Backlog(MappedJournal(tmp_path / "first", SMALLEST_SEGMENT))
    steps = lines_of(lambda: put(backlog, records["outer"]))
    twice = 0
    for number, (nested, cut) in enumerate(product(range(1, steps, 5), range(1, steps))):
        folder = tmp_path / str(number)
        backlog = Backlog(journal := MappedJournal(folder, SMALLEST_SEGMENT))
        nest = partial(put, backlog, records["inner"])
        sys.settrace(at_line(nested, nest, nested + cut, interrupt))
        with suppress(KeyboardInterrupt):
            put(backlog, records["outer"])
        sys.settrace(None)
        assert put(backlog, records["next"])
        (found,) = scanned_in(folder).values()  # what the next process would find, were this one killed
        there = [decode(frame.payload, Trajectory, "frame") for frame in found.frames]
        assert not found.skipped
        assert all(one == records[one.id] for one in there)
        kept = [one.id for one in journal.waiting()]
        assert set(kept) <= {one.id for one in there}
        twice += kept.count("inner") > 1
        journal.close()
    assert twice  # or no call was cut where it matters


def test_a_few_buffers_of_no_great_size_are_kept(tmp_path: Path) -> None:
    journal = MappedJournal(tmp_path / "journal", 64 * LARGEST_BUFFER)
    large = Trajectory(messages=ask("q"), response="x" * (2 * LARGEST_BUFFER))
    for record in (large, *(trajectory(f"t{number}") for number in range(2 * MOST_BUFFERS))):
        assert journal.append(journal.prepare(record))
    assert [len(buffer) < LARGEST_BUFFER for buffer in journal._buffers] == [True]
    entries = [journal.prepare(trajectory(f"u{number}")) for number in range(2 * MOST_BUFFERS)]  # as by so many threads
    for entry in entries:
        assert journal.append(entry)
    assert len(journal._buffers) == MOST_BUFFERS
    journal.close()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_flush_in_the_midst_of_a_call_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path) as store:
        writer = Writer(store, StoreConfig(), open_journal(tmp_path, StoreConfig()))
        told: list[str] = []

        def ask_all() -> None:
            for call in (writer.flush, writer.close, writer.wipe):
                with pytest.raises(StoreError, match=r"in the midst of record\(\)"):
                    call()
                told.append(call.__name__)

        append = MappedJournal.append

        def asking(journal: MappedJournal, *records: Any, **more: Any) -> bool:
            ask_all()
            return append(journal, *records, **more)

        monkeypatch.setattr(MappedJournal, "append", asking)
        assert writer.put(trajectory("a"))
        monkeypatch.undo()
        assert told == ["flush", "close", "wipe"]
        writer.flush()
        writer.close()
        assert "a" in store


def test_a_generator_left_in_a_block_may_be_closed_by_the_collector_anywhere(tmp_path: Path) -> None:
    """It ends in whatever thread the collector runs in, which may be in the midst of recording."""
    with Store.open(tmp_path) as store:
        writer = Writer(store, StoreConfig(), open_journal(tmp_path, StoreConfig()))

        class Late:
            def __init__(self, number: int) -> None:
                self.me, self.number = self, number  # a cycle: only the collector finds it

            def __del__(self) -> None:
                # Nothing on the way may set a context variable, as numpy's generator and errstate do: where the
                # collector comes in the midst of another ContextVar.set, Python 3.11 crashes.
                name = f"late{self.number}"
                assert writer.put(Trajectory(id=name, messages=ask("q"), response="r", embedding=[1.0] * 8))

        before = gc.get_threshold()
        gc.set_threshold(7)
        try:
            for number in range(400):
                Late(number)
                assert writer.put(trajectory(f"t{number}"))
        finally:
            gc.set_threshold(*before)
        gc.collect()
        writer.flush()
        writer.close()
        assert store.counts().trajectories == 800


def test_a_trajectory_and_what_came_with_it_are_one(tmp_path: Path) -> None:
    """Whatever the size of a batch: the quality of a record that is left out for its id rates no other one."""
    config = StoreConfig(batch_records=1, linger_s=0.0)
    with Store.open(tmp_path, config=config) as store:
        writer = Writer(store, config, open_journal(tmp_path, config))
        assert writer.put(Trajectory(id="a", messages=ask("q"), response="right"), feedback("a", 1.0))
        writer.flush()
        other = Feedback(id="other", trajectory_id="a", quality=0.0)
        assert writer.put(Trajectory(id="a", messages=ask("q"), response="wrong"), other)
        writer.flush()
        writer.close()
        assert store.get("a").quality == 1.0
        assert writer.counts().conflicts == 2


def test_a_wipe_waits_for_whoever_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind the frames of a file that is used again is overwritten; a frame is there from its header on."""
    backlog = Backlog(MappedJournal(tmp_path, 8 * SMALLEST_SEGMENT))
    inside = threading.Event()

    def put(name: str, share: float) -> bool:
        text = "x" * int(share * SMALLEST_SEGMENT)
        return backlog.put(backlog.prepare(Trajectory(id=name, messages=ask("q"), response=text)))

    def release() -> None:
        backlog.release(backlog.take(9, 2**30), lambda: None)
        backlog.make_room()

    def slow(payload: bytes | bytearray, value: int) -> int:
        inside.set()
        time.sleep(0.1)
        return crc32c(payload, value)

    for number in range(6):
        assert put(str(number), 0.6)
        release()
    assert put("begun", 0.4)  # in a file whose frames have reached further
    release()
    monkeypatch.setattr("sona.storage.segment.crc32c", slow)  # behind the payload, before the header
    other = threading.Thread(target=put, args=("a", 0.1))
    other.start()
    assert inside.wait(10)
    backlog.wipe()
    other.join()
    monkeypatch.undo()
    waiting = [frame for scan in scanned_in(tmp_path).values() for frame in scan.frames]
    assert len(waiting) == 1
    assert b"x" * (SMALLEST_SEGMENT // 10) in waiting[0].payload
    backlog.close()


def test_a_nested_record_is_stored_also_where_the_disk_has_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was acknowledged, so no bound and no full disk turns it away; nobody waits for ever."""
    config = StoreConfig(queue_bytes=2 * SMALLEST_SEGMENT)
    with Store.open(tmp_path) as store:
        writer = Writer(store, config, open_journal(tmp_path, config))
        big = Trajectory(id="big", messages=ask("q"), response="x" * (4 * SMALLEST_SEGMENT))
        append, inner = MappedJournal.append, list[bool]()

        def nesting(journal: MappedJournal, *records: Any, **more: Any) -> bool:
            if not inner:
                inner.append(True)
                inner[0] = writer.put(big)
            return append(journal, *records, **more)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(MappedJournal, "append", nesting)
        monkeypatch.setattr(MappedJournal, "_new", full)
        assert writer.put(trajectory("outer"))
        assert inner == [True]
        writer.flush(10)
        assert writer.pending == 0
        assert writer.put(trajectory("later"))
        writer.close()
        assert all(name in store for name in ("big", "outer", "later"))
        with pytest.raises(ClosedError):
            writer.settle()
        with pytest.raises(ClosedError):
            writer.wipe()


def nested_records(journal: MappedJournal, count: int, monkeypatch: pytest.MonkeyPatch) -> Backlog:
    """A backlog that was given so many large records in the midst of one."""
    backlog, append, inner = Backlog(journal), journal.append, list[bool]()

    def nesting(*records: Any, **more: Any) -> bool:
        while len(inner) < count:
            inner.append(True)
            name = f"inner{len(inner)}"
            inner[-1] = backlog.put(
                journal.prepare(Trajectory(id=name, messages=ask("q"), response="x" * (2 * SMALLEST_SEGMENT // 3)))
            )
        return append(*records, **more)

    monkeypatch.setattr(journal, "append", nesting)
    assert backlog.put(journal.prepare(trajectory("outer")))
    assert inner == [True] * count
    return backlog


def test_nested_records_beyond_the_bound_survive_a_kill_where_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = MappedJournal(tmp_path / "journal", 2 * SMALLEST_SEGMENT)
    assert nested_records(journal, 8, monkeypatch).survives
    found = MappedJournal(tmp_path / "journal", 2 * SMALLEST_SEGMENT).waiting()
    assert [record.id for record in found] == ["outer", *(f"inner{number + 1}" for number in range(8))]


def test_what_is_in_memory_alone_is_not_said_to_wait_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    journal = MappedJournal(tmp_path / "journal", 2 * SMALLEST_SEGMENT)
    monkeypatch.setattr(MappedJournal, "_new", full)
    backlog = nested_records(journal, 8, monkeypatch)
    before = backlog.survives
    while (batch := backlog.take(2, 1 << 20)).records:
        backlog.release(batch, lambda: None)
    assert (before, backlog.survives) == (False, True)
    assert (backlog.records, backlog.size) == (0, 0)


def test_closing_beside_a_settling_thread_ends() -> None:
    """Both take two locks."""
    with fast_switching():
        for _ in range(300):
            writer = Writer(Nothing(), StoreConfig(journal="memory"))
            settling = threading.Thread(target=settle_until_closed, args=(writer,), daemon=True)
            closing = threading.Thread(target=writer.close, daemon=True)
            settling.start()
            closing.start()
            closing.join(20)
            settling.join(20)
            assert not closing.is_alive()
            assert not settling.is_alive()


class Nothing:
    """A store that takes all."""

    def append(self, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
        return [None] * len(records)


def settle_until_closed(writer: Writer) -> None:
    with suppress(StoreError):
        while True:
            writer.settle()


@contextmanager
def fast_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
