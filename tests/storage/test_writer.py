"""The hand-over: cheap, bounded, counted, and true about what is durable."""

from __future__ import annotations

import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sona.config import StoreConfig
from sona.errors import ClosedError, ConflictError, StoreError, StoreFullError, UnknownIdError
from sona.record_size import size_of
from sona.storage import new_trajectories
from sona.storage.backlog import Backlog
from sona.storage.journal import Batch
from sona.storage.mapped import SMALLEST_SEGMENT, MappedJournal, open_journal
from sona.storage.rows import TrajectoryRow, encode, trajectory_row
from sona.storage.store import Store
from sona.storage.writer import Writer
from sona.types import Feedback, Step, Trajectory
from tests.processes import run
from tests.storage.faulty_disk import faulty_disk
from tests.storage.records import ask, feedback, rated, trajectory

Records = Sequence[Trajectory | Feedback]


class FakeStore:
    """Keeps batches; waits while ``gate`` is closed, and raises ``error`` while it is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.batches: list[list[Trajectory | Feedback]] = []
        self.attempts = 0

    def append(self, records: Records) -> list[Exception | None]:
        self.attempts += 1
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.batches.append(list(records))
        return [None] * len(records)

    def ids(self) -> list[str]:
        return [record.id for batch in self.batches for record in batch]


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


@pytest.fixture
def open_writer() -> Iterator[Callable[..., Writer]]:
    """Writers that are closed in the end, whatever they still hold."""
    writers: list[Writer] = []

    def make(store: FakeStore | Store, **settings: Any) -> Writer:
        writers.append(Writer(store, StoreConfig(**settings)))
        return writers[-1]

    yield make
    for writer in writers:
        with suppress(StoreError):
            writer.close(timeout_s=0.2)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_records_that_come_one_after_another_are_committed_together(
    fake: FakeStore, open_writer: Callable[..., Writer]
) -> None:
    writer = open_writer(fake, linger_s=2.0)
    for number in range(10):
        writer.put(trajectory(f"t{number}"))
        time.sleep(0.002)
    assert fake.batches == []
    wait_for(lambda: len(fake.ids()) == 10)
    assert len(fake.batches) == 1


@pytest.mark.parametrize("hurry", ["flush", "close", "a full batch", "half the queue"])
def test_what_is_waited_for_does_not_linger(fake: FakeStore, open_writer: Callable[..., Writer], hurry: str) -> None:
    settings = {"a full batch": {"batch_records": 3}, "half the queue": {"queue_bytes": 12_000}}.get(hurry, {})
    writer = open_writer(fake, linger_s=60.0, **settings)
    for number in range(3):
        assert writer.put(trajectory(f"t{number}", width=200))
    began = time.monotonic()
    if hurry == "flush":
        writer.flush()
        writer.put(trajectory("later"))
        writer.flush()  # which lingers no more than the first
    elif hurry == "close":
        writer.close()
    else:
        wait_for(lambda: len(fake.ids()) == 3)
    assert time.monotonic() - began < 10
    assert fake.ids()[:3] == ["t0", "t1", "t2"]


def test_what_is_flushed_is_durable(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        writer = Writer(store)
        for record in rated("abc"):
            assert writer.put(record)
        writer.flush()
        with Store.open(tmp_path, read_only=True) as reader:
            assert reader.counts().feedback == 3
        counts = writer.counts()
        assert (counts.recorded, counts.durable, counts.pending, counts.pending_bytes) == (6, 6, 0, 0)
        writer.close()


def test_an_idle_flush_returns_at_once(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    open_writer(fake).flush(timeout_s=0)


def test_what_came_meanwhile_is_committed_together(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake, batch_records=10)
    fake.gate.clear()
    writer.put(trajectory("first"))
    wait_for(lambda: fake.attempts == 1)
    for number in range(25):
        writer.put(trajectory(str(number)))
    fake.gate.set()
    writer.flush()
    assert [len(batch) for batch in fake.batches] == [1, 10, 10, 5]
    assert fake.ids() == ["first", *map(str, range(25))]


def test_a_flush_is_not_told_of_a_commit_that_began_before_it(
    fake: FakeStore, open_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may work again since."""
    first, second, append = threading.Event(), threading.Event(), fake.append

    def fails_once(records: Records) -> list[Exception | None]:
        if fake.attempts == 0:
            fake.attempts = 1
            assert first.wait(30)
            raise StoreFullError("the disk has no room; free some")
        done = append(records)
        assert second.wait(30)
        return done

    monkeypatch.setattr(fake, "append", fails_once)
    writer = open_writer(fake)
    writer.put(trajectory("a"))
    wait_for(lambda: fake.attempts == 1)
    until = writer.asked()
    first.set()
    wait_for(lambda: fake.attempts == 2)
    assert writer.degraded is not None
    assert not writer.is_stored(until)
    second.set()
    writer.flush()
    assert writer.is_stored(until)


def test_a_flush_whose_time_ends_between_two_looks_at_the_clock_says_so(
    fake: FakeStore, open_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = iter([0.1, -0.1, -0.1])
    monkeypatch.setattr("sona.storage.writer.Until.pause_s", property(lambda _: next(pauses)))
    writer = open_writer(fake)
    fake.gate.clear()
    writer.put(trajectory("a"))
    with pytest.raises(StoreError, match="wait longer"):
        writer.flush(timeout_s=0.1)
    fake.gate.set()


def test_a_batch_is_bounded_in_bytes(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    big = [Trajectory(id=str(number), messages=ask("q"), response="x" * 3000) for number in range(4)]
    writer = open_writer(fake, batch_bytes=2 * size_of(big[0]))
    fake.gate.clear()
    writer.put(trajectory("first"))
    wait_for(lambda: fake.attempts == 1)
    for record in [*big, Trajectory(id="huge", messages=ask("q"), response="x" * 9000)]:
        writer.put(record)
    fake.gate.set()
    writer.flush()
    assert [len(batch) for batch in fake.batches] == [1, 2, 2, 1]


def test_closing_tries_as_long_as_the_settings_say_and_tells_so_at_once(
    fake: FakeStore, open_writer: Callable[..., Writer], caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_writer(fake, close_timeout_s=0.2)
    fake.error = StoreFullError("the disk has no room; free some")
    writer.put(trajectory("a"))
    wait_for(lambda: writer.degraded is not None)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"1 record is not durable \(the disk has no room.*after 0\.2 s"):
        writer.close()
    assert time.monotonic() - began < 5.0
    assert "closing waits for up to 0.2 s (store.close_timeout_s), as 1 record is not durable" in caplog.text


def test_whoever_presses_ctrl_c_while_it_closes_waits_no_longer(
    fake: FakeStore, open_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the end of the program, which waits for the thread."""

    def interrupted(thread: threading.Thread, timeout_s: float | None = None) -> None:
        raise KeyboardInterrupt

    writer = open_writer(fake, close_timeout_s=60.0)
    fake.error = StoreFullError("the disk has no room; free some")
    writer.put(trajectory("a"))
    wait_for(lambda: writer.degraded is not None)
    [thread] = [one for one in threading.enumerate() if one.name == "sona-writer"]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    thread.join(10.0)
    assert not thread.is_alive()


def test_beyond_the_bound_records_are_rejected_and_counted(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake, queue_bytes=20_000)
    fake.gate.clear()
    taken = [writer.put(trajectory(str(number))) for number in range(50)]
    counts = writer.counts()
    assert 0 < counts.recorded == sum(taken) < 50
    assert counts.rejected == 50 - counts.recorded
    assert counts.pending_bytes <= 20_000
    assert taken == sorted(taken, reverse=True)
    fake.gate.set()
    writer.flush()
    assert fake.ids() == [str(number) for number in range(50) if taken[number]]
    assert writer.put(trajectory("again"))


def test_put_does_not_wait_for_the_disk(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    fake.gate.clear()
    records = [trajectory(str(number)) for number in range(200)]
    began = time.perf_counter()
    for record in records:
        writer.put(record)
    assert time.perf_counter() - began < 1.0  # it would be for ever
    assert writer.pending == 200
    fake.gate.set()


def test_a_trajectory_is_known_until_it_is_in_the_store(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    fake.gate.clear()
    writer.put(trajectory("a"))
    writer.put(trajectory("a"))
    assert writer.knows("a")
    assert not writer.knows("b")
    fake.gate.set()
    writer.flush()
    assert not writer.knows("a")


def test_a_writer_has_no_more_attributes_than_are_found_without_their_names(
    fake: FakeStore, open_writer: Callable[..., Writer]
) -> None:
    """A tenth of a call, which no other test would see."""
    assert len(vars(open_writer(fake))) <= 29


def test_it_tells_when_a_record_last_came_or_waited(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    opened = writer.last_s
    fake.gate.clear()
    writer.put(trajectory("a"))
    put = time.monotonic()
    time.sleep(0.05)
    assert writer.last_s >= put + 0.05  # it waits still
    fake.gate.set()
    writer.flush()
    last = writer.last_s
    time.sleep(0.05)
    assert opened < last == writer.last_s < time.monotonic() - 0.05


def test_a_record_that_comes_just_before_a_batch_is_taken_is_noted(
    fake: FakeStore, open_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(fake)
    take, put = Backlog.take, list[float]()

    def late(backlog: Backlog, *bounds: int) -> Batch:
        if not put:
            writer.put(trajectory("late"))
            put.append(time.monotonic())
        return take(backlog, *bounds)

    monkeypatch.setattr(Backlog, "take", late)
    while not put or writer.pending:
        time.sleep(0.01)
    assert writer.last_s >= put[0] - 0.01


def test_what_concerns_one_record_is_counted_and_logged_once_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path) as store, caplog.at_level(logging.WARNING, "sona.storage"):
        writer = Writer(store)
        writer.put(trajectory("a"))
        for number in range(3):
            writer.put(Trajectory(id="a", messages=ask(f"other {number}"), response="r"))
            writer.put(feedback("ghost", id=str(number)))
        writer.put(trajectory("wide", width=3))
        writer.put(trajectory("b"))
        writer.flush()
        counts = writer.counts()
        assert (counts.recorded, counts.durable) == (9, 2)
        assert (counts.conflicts, counts.unknown, counts.invalid) == (3, 3, 1)
        assert counts.last_error is not None
        assert counts.last_error.startswith("DimensionMismatchError")
        assert len(caplog.records) == 3
        assert writer.degraded is None
        writer.close()


def test_a_record_that_fails_every_time_does_not_hold_up_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(record: Trajectory) -> TrajectoryRow:
        if record.id == "poison":
            raise OverflowError("too large")
        return trajectory_row(record)

    monkeypatch.setattr(new_trajectories, "trajectory_row", stumble)
    with Store.open(tmp_path) as store, caplog.at_level(logging.WARNING, "sona.storage"):
        writer = Writer(store)
        for record in [*rated("ab"), trajectory("poison"), *rated("cd")]:
            assert writer.put(record)
        writer.flush(timeout_s=10)
        counts = writer.counts()
        assert (counts.durable, counts.invalid, counts.pending, counts.failed_attempts) == (8, 1, 0, 0)
        assert [row.trajectory.id for row in store.iterate()] == list("abcd")
        writer.close()
    (told,) = caplog.records
    assert "poison" in told.getMessage()
    assert told.exc_info is not None  # a bug in here, as likely as not: it has to be found


def test_a_full_disk_keeps_the_queue_and_is_recovered_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store, caplog.at_level(logging.WARNING, "sona.storage"):
        writer = Writer(store)
        disk.full = True
        records = rated(f"t{number}" for number in range(300))
        for record in records:
            assert writer.put(record)
        with pytest.raises(StoreFullError, match="free space"):
            writer.flush()
        assert "StoreFullError" in str(writer.degraded)
        assert writer.pending == 600
        assert writer.counts().failed_attempts >= 1
        disk.full = False
        writer.flush()
        assert writer.degraded is None
        assert store.counts().feedback == 300
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        writer.close()


def test_a_log_is_written_before_the_state_and_holds_up_nobody(
    fake: FakeStore, open_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler may wait, for a disk or for a thread of the host's that records."""
    append = fake.append
    seen: list[tuple[str, bool, int]] = []
    held_up: list[str] = []

    def leaves_out(records: Records) -> list[Exception | None]:
        append(records)
        return [ConflictError("the id is taken") if record.id == "taken" else None for record in records]

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage()[:9], writer.degraded is None, writer.counts().conflicts))
            with pytest.raises(StoreError, match="called in the writer's own thread"):
                writer.flush()
            other = threading.Thread(target=writer.put, args=(trajectory(f"late {len(seen)}"),), daemon=True)
            other.start()
            other.join(5)
            held_up.extend([record.getMessage()] if other.is_alive() else [])

    monkeypatch.setattr(fake, "append", leaves_out)
    handler, log = Handler(), logging.getLogger("sona.storage")
    log.addHandler(handler)
    try:
        writer = open_writer(fake)
        fake.error = StoreFullError("the disk has no room; free some")
        writer.put(trajectory("a"))
        wait_for(lambda: writer.degraded is not None)
        fake.error = None
        writer.flush()
        writer.put(trajectory("taken"))
        writer.flush()
    finally:
        log.removeHandler(handler)
    assert held_up == []
    assert seen == [("the disk ", True, 0), ("storing a", False, 0), ("a record ", True, 0)]
    assert (writer.degraded, writer.counts().conflicts) == (None, 1)


def test_a_journal_that_was_deleted_under_the_writer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kill would take what is recorded from then on."""
    with Store.open(tmp_path) as store:
        journal = MappedJournal(tmp_path / "journal", StoreConfig().queue_bytes)
        writer = Writer(store, journal=journal)
        assert writer.degraded is None
        in_use = journal._active.path
        in_use.rename(in_use.with_suffix(".old"))
        in_use.write_bytes(in_use.with_suffix(".old").read_bytes())  # another file of the same name and content
        wait_for(lambda: writer.degraded is not None)
        assert "moved, deleted or replaced" in str(writer.degraded)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        in_use.with_suffix(".old").rename(in_use)
        wait_for(lambda: writer.degraded is None)
        writer.close()


def test_what_waits_in_files_that_are_gone_is_not_said_to_wait_for_the_next_start(tmp_path: Path) -> None:
    with faulty_disk() as disk, Store.open(tmp_path) as store:
        writer = Writer(store, journal=open_journal(tmp_path, StoreConfig()))
        disk.full = True
        assert writer.put(trajectory("a"))
        for path in (tmp_path / "journal").glob("*.seg"):
            path.unlink()
        with pytest.raises(StoreError, match="they are not kept for the next start"):
            writer.close(0.1)


def test_a_journal_that_can_not_grow_is_told_until_it_can(tmp_path: Path, fake: FakeStore) -> None:
    config = StoreConfig(queue_bytes=8 * SMALLEST_SEGMENT)
    writer = Writer(fake, config, MappedJournal(tmp_path / "journal", config.queue_bytes))
    fake.gate.clear()  # what waits keeps its files
    (tmp_path / "journal").rename(tmp_path / "elsewhere")
    large = [Trajectory(messages=ask("q"), response="x" * (SMALLEST_SEGMENT * 3 // 4)) for _ in range(6)]
    taken = [writer.put(record) for record in large]
    assert not taken[-1]
    assert "can't grow" in str(writer.degraded)
    (tmp_path / "elsewhere").rename(tmp_path / "journal")
    fake.gate.set()
    writer.flush()
    wait_for(lambda: writer.degraded is None)
    assert writer.put(large[-1])
    writer.close()
    assert fake.ids() == [record.id for record, was in zip([*large, large[-1]], [*taken, True], strict=True) if was]


def test_every_flush_tries_at_once(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    fake.error = StoreFullError("full")
    writer.put(trajectory("a"))
    began = time.monotonic()
    for _ in range(20):  # by its own pauses it would take minutes
        with pytest.raises(StoreFullError):
            writer.flush()
    fake.error = None
    writer.flush()
    assert time.monotonic() - began < 10
    assert fake.ids() == ["a"]


def test_an_error_nobody_thought_of_does_not_end_the_thread(
    fake: FakeStore, open_writer: Callable[..., Writer], caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_writer(fake)
    fake.error = ZeroDivisionError("a bug")
    writer.put(trajectory("a"))
    with pytest.raises(StoreError, match="a bug"):
        writer.flush()
    fake.error = None
    writer.flush()
    assert fake.ids() == ["a"]
    assert caplog.records[0].exc_info is not None


def test_flush_says_when_time_is_up(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    fake.gate.clear()
    writer.put(trajectory("a"))
    with pytest.raises(StoreError, match=r"1 record is not durable"):
        writer.flush(timeout_s=0.05)
    fake.gate.set()
    writer.flush()


def test_several_threads_put_and_flush(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Store.open(tmp_path) as store:
        writer = Writer(store, StoreConfig(batch_records=7))

        def work(name: str) -> None:
            try:
                for number in range(30):
                    assert writer.put(trajectory(f"{name}{number}"))
                    assert writer.put(feedback(f"{name}{number}"))
                    if number % 5 == 0:
                        writer.flush()
                        assert store.get(f"{name}{number}").quality == 0.5
            except BaseException as error:  # noqa: BLE001, RUF100
                errors.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcde"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.close()
        assert errors == []
        assert store.counts().feedback == 150
        assert writer.counts().durable == 300


def test_closing_stores_all_that_was_accepted_while_others_put(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        writer = Writer(store)
        accepted: list[str] = []
        lock = threading.Lock()

        def work(name: str) -> None:
            for number in range(100_000):
                if not writer.put(trajectory(f"{name}{number}", width=None)):
                    return
                with lock:
                    accepted.append(f"{name}{number}")

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        wait_for(lambda: writer.counts().durable > 50)
        writer.close()
        for thread in threads:
            thread.join()
        assert sorted(row.trajectory.id for row in store.iterate()) == sorted(accepted)
        assert writer.counts().rejected == 3


def test_a_closed_writer_rejects(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    writer.close()
    writer.close()
    assert not writer.put(trajectory("a"))
    assert writer.counts().rejected == 1
    writer.flush()


def test_close_says_what_it_could_not_store(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    writer = open_writer(fake)
    fake.error = StoreFullError("the disk is full")
    for name in "abc":
        writer.put(trajectory(name))
    with pytest.raises(StoreError, match="3 records are not durable"):
        writer.close(timeout_s=0.2)
    with pytest.raises(ClosedError):
        writer.flush()


def test_a_writer_that_nobody_closed_stores_and_lets_the_program_end(tmp_path: Path) -> None:
    run(
        """
import sys
from sona.storage.store import Store
from sona.storage.writer import Writer
from tests.storage.records import rated
writer = Writer(Store.open(sys.argv[1]))
for record in rated(str(number) for number in range(100)):
    writer.put(record)
""",
        tmp_path,
    )
    with Store.open(tmp_path) as store:
        assert store.counts().feedback == 100


@pytest.mark.parametrize("stored", [False, True])
def test_size_of_is_about_what_a_record_takes(stored: bool) -> None:
    def measured(make: Callable[[int], Trajectory | Feedback]) -> tuple[float, float]:
        make(200)  # what is made once, is
        tracemalloc.start()
        records = [make(number) for number in range(200)]
        taken = tracemalloc.get_traced_memory()[0] / len(records)
        tracemalloc.stop()
        return taken, sum(size_of(record, encode(record) if stored else None) for record in records) / len(records)

    for make in (
        lambda number: trajectory(f"t{number}", width=384),
        lambda number: trajectory(f"t{number}", width=None),
        lambda number: Trajectory(messages=ask(f"é{number}" * 900), response=f"я{number}" * 900),
        lambda number: Trajectory(messages=ask("q" * 9000 + f"😀{number}"), response="a" * 9000 + f"😀{number}"),
        lambda number: Trajectory(
            messages=ask("q"), response="a", steps=[Step(name="x", content="a" * 9000 + f"😀{number}")]
        ),
        lambda number: Feedback(trajectory_id=f"t{number}", quality=1.0, comment="a" * 9000 + f"😀{number}"),
        lambda number: feedback(f"t{number}"),
    ):
        taken, said = measured(make)
        assert 0.8 * taken < said < 3.5 * taken


def test_errors_of_one_record_are_those_of_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        results = store.append([trajectory("a"), Trajectory(id="a", messages=ask("x"), response="y"), feedback("b")])
    assert [type(result) for result in results] == [type(None), ConflictError, UnknownIdError]


def test_a_writer_whose_thread_ended_says_so(fake: FakeStore, open_writer: Callable[..., Writer]) -> None:
    """Nothing is known to end it; whatever does, nobody waits for it for ever."""
    writer = open_writer(fake, linger_s=0.0)
    writer.put(trajectory("a"))
    writer.flush()

    def broken() -> None:
        raise MemoryError("no more threads")

    writer._sleep = broken  # type: ignore[method-assign]
    writer._bell.ring()
    writer._thread.join(10)
    assert not writer._thread.is_alive()
    assert writer.degraded == "MemoryError: no more threads"
    assert not writer.put(trajectory("b"))
    writer._backlog.closed = False
    assert writer.put(trajectory("b"))  # as one that had come in just before
    with pytest.raises(ClosedError, match=r"1 record is not durable .* nothing is stored any more"):
        writer.flush()
