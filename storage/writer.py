"""The hand-over from the host's threads to the store: a bounded queue, and a thread that commits what waits in it
together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from sona import forked
from sona.bell import Bell
from sona.config import StoreConfig
from sona.errors import ClosedError, ConflictError, SonaError, StoreError, StoreFullError, UnknownIdError
from sona.storage.backlog import Backlog
from sona.storage.findings import so_many
from sona.storage.journal import Batch, Journal, MemoryJournal
from sona.types import Feedback, Record, Trajectory

_log = logging.getLogger("sona.storage")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
TICK_S = 1.0
DEFAULTS = StoreConfig()
EXIT_S = 5.0
"""How long a writer that nobody closed goes on trying once the program has ended."""

# What leaves one record out, and the count that it is kept in; everything else is "invalid".
_KINDS: dict[type[Exception], str] = {ConflictError: "conflicts", UnknownIdError: "unknown"}


class WriterCounts(Record):
    """What became of the records that a writer was given."""

    recorded: int
    """Taken into the queue, or found in it."""
    recovered: int
    """Of these: left in the journal by a process that ended before it could store them."""
    durable: int
    """In the store, synced; those that were there already included."""
    rejected: int
    """Not taken: the queue was full, or the writer closed."""
    conflicts: int
    """Left out: the id has other content in the store."""
    unknown: int
    """Feedback left out: no such trajectory."""
    invalid: int
    """Left out for another reason of their own, such as an embedding of another width."""
    failed_attempts: int
    """Commits that failed, to be tried again."""
    pending: int
    """In the queue now: ``recorded == durable + conflicts + unknown + invalid + pending``."""
    pending_bytes: int
    last_error: str | None = None
    """The newest of either kind."""


@dataclass(frozen=True)
class Until:
    """What a flush waits for."""

    target: int
    """Records that are stored then."""
    attempts: int
    """Commits that had begun before: how they end says nothing of what the disk does now."""
    timeout_s: float | None
    began: float = field(default_factory=time.monotonic)

    @property
    def pause_s(self) -> float:
        """How long to wait before looking again; 0 or less where its time is over."""
        return 1.0 if self.timeout_s is None else min(self.began + self.timeout_s - time.monotonic(), 1.0)


class _Appends(Protocol):
    def append(self, records: Sequence[Trajectory | Feedback]) -> Sequence[Exception | None]: ...


class Writer:
    """Takes records at the cost of a queue, and stores them behind the caller's back, as many in one commit as have
    come meanwhile.

    While the store can't be written to (a full disk) it keeps the queue, says :attr:`degraded`, and tries again, first
    after 0.05 s, then after twice as long each time up to 5 s. What belongs to one record alone is counted, and logged
    once a kind.
    """

    def __init__(self, store: _Appends, config: StoreConfig = DEFAULTS, journal: Journal | None = None) -> None:
        # No more than 29 attributes: of an object with more, Python 3.11 looks up each by its name.
        self._store = store
        self._config = config
        self._journal: Journal = MemoryJournal(config.queue_bytes) if journal is None else journal
        self._backlog = Backlog(self._journal)
        self._prepare = self._backlog.prepare
        self._lock = self._backlog.lock
        self._waiters: list[Callable[[], object]] = []
        self._bell = Bell()
        self._asleep = self._lingers = False
        self._retry = Bell()
        self._wanted = 0
        self._enough, self._enough_bytes = config.batch_records, min(config.batch_bytes, config.queue_bytes // 2)
        self._durable = self._attempts = self._failed_at = 0
        self._counts = dict.fromkeys(("conflicts", "unknown", "invalid", "failed_attempts"), 0)
        self._counts["recovered"] = self._backlog.records
        self._logged: set[type[Exception]] = set()
        self.on_left_out: Callable[[Trajectory | Feedback, Exception], None] | None = None
        """Told of each record that is left out, in the writer's thread; must neither wait nor raise."""
        self.on_tick: Callable[[], None] | None = None
        """Called in the writer's thread about every :data:`TICK_S` seconds, more seldom while a commit takes longer or
        fails; must not wait."""
        self._next_tick = 0.0
        self._last_s = time.monotonic()
        self._missing: str | None = None
        self._last_error: str | None = None
        self._error: Exception | None = None
        self._stop_at: float | None = None
        self._was_closed = False
        self._thread = threading.Thread(target=self._run, name="sona-writer", daemon=False)
        forked.watch(self)
        self._thread.start()

    def put(self, record: Trajectory | Feedback, feedback: Feedback | None = None) -> bool:
        """Hand over ``record``, with the ``feedback`` that came with it: both or none, and stored or left out together.
        False where they were rejected: the queue is full, or closed. Waits for no disk.

        A signal handler, or a finaliser that the collector runs, may call it in the midst of another call.

        Raises:
            InvalidInputError: the journal can't keep it: it has no stored form.
        """
        prepare = self._prepare
        taken = self._backlog.put(prepare(record), None if feedback is None else prepare(feedback))
        if self._asleep or (
            self._lingers and (len(self._journal.queue) >= self._enough or self._journal.size >= self._enough_bytes)
        ):  # _is_full(), in its place
            self._wake()
        return taken

    def knows(self, trajectory_id: str) -> bool:
        """Whether a trajectory of this id waits to be stored."""
        return self._backlog.knows(trajectory_id)

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything that was put before is durable, or was left out and counted.

        Raises:
            StoreError: what keeps it from being stored (StoreFullError and others); it is kept, and tried again.
                Also when ``timeout_s`` has passed, and where it is called in the midst of :meth:`put`.
            ClosedError: the writer was closed before it could store all.
        """
        until, bell = self.asked(timeout_s), Bell()
        with self.waiting(bell.ring):
            while not self.is_stored(until):
                bell.wait(max(until.pause_s, 0.0))

    @property
    def is_inside(self) -> bool:
        """See :attr:`Backlog.is_inside`."""
        return self._backlog.is_inside

    def check_outside(self, what: str) -> None:
        """StoreError where ``what`` would wait for what its own thread is to do, or is in the midst of."""
        if threading.current_thread() is self._thread:
            raise StoreError(
                f"{what}: called in the writer's own thread, as a handler of the log is, and it would wait for itself; "
                "call it in another thread"
            )
        self._backlog.check_outside(what)

    def asked(self, timeout_s: float | None = None) -> Until:
        """Ask for everything that was put before to be stored now; see :meth:`is_stored`."""
        with self._lock:
            self.check_outside("flush")
            until = Until(self._backlog.recorded, self._attempts, timeout_s)
            self._wanted = max(self._wanted, until.target)
            self._retry.ring()  # a flush does not wait for the end of a pause
        return until

    def is_stored(self, until: Until) -> bool:
        """Whether all is durable, or was left out, that was asked for. Raises as :meth:`flush`."""
        with self._lock:
            if self._backlog.done >= until.target:
                return True
            if self._failed_at > until.attempts and self._error is not None:
                raise _again(self._error)
            if not self._thread.is_alive():
                raise ClosedError(f"flush: {self._waiting()}, and nothing is stored any more; {self._fate}")
            if until.pause_s <= 0:
                raise StoreError(f"flush: {self._waiting()} after {until.timeout_s} s; wait longer, or see `degraded`")
        return False

    @contextmanager
    def waiting(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have ``wake`` called, in the writer's thread, whenever :meth:`is_stored` may have changed; it must neither
        wait nor raise.
        """
        try:
            with self._lock:
                self._waiters.append(wake)
            yield
        finally:
            with self._lock:
                self._waiters = [other for other in self._waiters if other is not wake]

    def _waiting(self) -> str:
        records = self._backlog.records
        why = f" ({self._error})" if self._error is not None else ""
        return f"{so_many(records, 'record is', 'records are')} not durable{why}"

    @property
    def _fate(self) -> str:
        """Of what still waits when the process ends."""
        return (
            "they wait in the journal for the next start"
            if self._backlog.survives
            else "they are not kept for the next start"
        )

    @property
    def pending(self) -> int:
        """How many records wait."""
        return self._backlog.records

    @property
    def last_s(self) -> float:
        """When a record last came or waited, by the monotonic clock. The thread notes it: for a caller a clock is more
        lines of code and memory that no cache holds (ADR 6).
        """
        return time.monotonic() if self._backlog.records else self._last_s

    @property
    def degraded(self) -> str | None:
        """Why nothing can be stored just now, why the disk turns records away, or why a kill would take what is
        recorded; None while all is well.
        """
        return self.trouble or self._missing

    @property
    def trouble(self) -> str | None:
        """What the disk has to do with records being rejected; None where more come than it takes, and no more."""
        error = self._error
        return self._backlog.trouble if error is None else f"{type(error).__name__}: {error}"

    def counts(self) -> WriterCounts:
        """What became of the records so far."""
        with self._lock:
            return WriterCounts(
                recorded=self._backlog.recorded,
                durable=self._durable,
                rejected=self._backlog.rejected,
                pending=self._backlog.records,
                pending_bytes=self._backlog.size,
                last_error=self._last_error,
                **self._counts,
            )

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing more, store what waits, and end the thread; a second call does nothing.

        Where nothing can be stored it is tried for ``timeout_s`` seconds, None: ``store.close_timeout_s``.

        Raises:
            StoreError: something could not be stored in time; it says how much, and why. With a journal on disk the
                next process stores it; else it is lost with this one.
        """
        with self._lock:
            self.check_outside("close")
            if self._was_closed:
                return
            self._was_closed = self._backlog.closed = True
            timeout_s = self._config.close_timeout_s if timeout_s is None else timeout_s
            self._stop_at = time.monotonic() + timeout_s
            self._wake()
        if self._error is not None and timeout_s:
            _log.warning(
                "closing waits for up to %g s (store.close_timeout_s), as %s; after that %s",
                timeout_s,
                self._waiting(),
                self._fate,
            )
        self._retry.ring()
        try:
            self._thread.join(timeout_s + 0.1)
        except BaseException:  # whoever presses Ctrl-C once more waits no longer, and the program's end neither
            self._stop_at = time.monotonic()
            self._retry.ring()
            raise
        self._tell()
        with self._lock:
            waiting = self._waiting() if self._backlog.records else None
        if not self._thread.is_alive():
            self._backlog.close()  # not under the lock: settle() takes both, in the other order
        if waiting is not None:
            raise StoreError(f"close: {waiting} after {timeout_s} s; {self._fate}")

    def settle(self) -> None:
        """Flush; and what is durable is never taken up again from the journal, not even after a power cut, which may
        leave it as it was half a minute before. Call it before rows are deleted: raises as :meth:`flush`.
        """
        self.flush()
        self._backlog.sync()

    def wipe(self) -> None:
        """See :meth:`Backlog.wipe`; flush first."""
        with self._lock:
            self.check_outside("wipe")
        self._backlog.wipe()

    def forked(self) -> None:
        """In a forked child, where the thread does not run: everything is rejected."""
        self._was_closed = True
        self._backlog.forked()
        self._lock = self._backlog.lock

    # The thread

    def _run(self) -> None:
        try:
            self._go_on()
        except BaseException as error:  # nothing is known to raise here; if something does, it is told to all who ask
            self._backlog.closed = True
            self._note_failure(error if isinstance(error, Exception) else StoreError(f"the writer's thread: {error!r}"))

    def _go_on(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._overdue():
            self._tick()
            if self._backlog.records:
                self._linger()
            batch = self._backlog.take(self._config.batch_records, self._config.batch_bytes)
            if batch.records:
                self._last_s = time.monotonic()
            if not batch.records:
                if (
                    self._backlog.closed and not self._backlog.records
                ):  # in this order: nothing comes in once it is closed
                    return
                self._backlog.make_room()
                self._sleep()
            elif self._write(batch):
                pause_s = FIRST_PAUSE_S
            else:
                self._retry.wait(pause_s)
                self._retry.silence()
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _sleep(self) -> None:
        """Until something is put, the writer is closed, or it is time for the next tick."""
        with self._lock:
            if self._backlog.records or self._backlog.closed:
                return
            self._asleep = True
        if not self._bell.wait(TICK_S):
            with self._lock:
                self._asleep = False
                self._bell.silence()  # it may have rung just now

    def _linger(self) -> None:
        """Let more come before a commit, which costs the disk a sync, and the callers the interpreter for a while."""
        with self._lock:
            if self._is_due():
                return
            self._lingers = True
            self._retry.silence()
        self._retry.wait(self._config.linger_s)
        self._lingers = False

    def _is_due(self) -> bool:
        """Whether the next commit has enough, or somebody waits for it. Under the lock."""
        return self._backlog.closed or self._error is not None or self._backlog.done < self._wanted or self._is_full()

    def _is_full(self) -> bool:
        return len(self._journal.queue) >= self._enough or self._journal.size >= self._enough_bytes

    def _wake(self) -> None:
        """See that the writer goes on, if it waits for what has come."""
        if self._asleep:
            self._asleep = False
            self._bell.ring()
        elif self._lingers:
            self._lingers = False
            self._retry.ring()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._backlog.closed or now < self._next_tick:
            return
        self._next_tick = now + TICK_S
        missing = self._backlog.missing
        if missing is not None and self._missing is None:
            _log.error("%s", missing)
        self._missing = missing  # once it is in the log
        if self.on_tick is None:
            return
        try:
            self.on_tick()
        except Exception:  # the thread lives on
            _log.exception("what is done every %g s failed", TICK_S)

    def _overdue(self) -> bool:
        """Whether to give up; also sees to it that a forgotten close() does not keep the program from ending."""
        if not threading.main_thread().is_alive() and not self._backlog.closed:
            with self._lock:
                self._backlog.closed = True
                self._stop_at = time.monotonic() + EXIT_S
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def _write(self, batch: Batch) -> bool:
        self._retry.silence()
        self._attempts += 1
        try:
            results = self._store.append(batch.records)
            self._tell_of(batch, results)
            self._backlog.release(batch, partial(self._settle, results))
        except Exception as error:  # whatever it is, the queue is kept and the thread lives on
            self._note_failure(error)
            return False
        self._tell()
        return True

    def _tell_of(self, batch: Batch, results: Sequence[Exception | None]) -> None:
        """What became of it: before anybody can see it, and under no lock, as a log's handler may wait, or record."""
        for record, result in zip(batch.records, results, strict=True):
            if result is None:
                continue
            if self.on_left_out is not None:
                self.on_left_out(record, result)
            if type(result) not in self._logged:
                self._logged.add(type(result))
                what = "a record was left out (later ones of this kind are only counted): %s"
                _log.warning(what, result, exc_info=result.__cause__)
        if self._error is not None:
            _log.warning("storing again, after: %s", self._error)

    def _settle(self, results: Sequence[Exception | None]) -> None:
        self._error = None
        for result in results:
            if result is None:
                self._durable += 1
            else:
                self._counts[_KINDS.get(type(result), "invalid")] += 1
                self._last_error = f"{type(result).__name__}: {result}"

    def _tell(self) -> None:
        """Whoever waits for a flush."""
        with self._lock:
            waiters = tuple(self._waiters)
        for wake in waiters:
            wake()

    def _note_failure(self, error: Exception) -> None:
        if self._error is None:
            known = isinstance(error, StoreError)
            what = "the disk is full" if isinstance(error, StoreFullError) else "nothing can be stored"
            kept = so_many(self.pending, "record is", "records are")
            _log.error("%s; %s kept and tried again: %s", what, kept, error, exc_info=not known)
        with self._lock:
            self._counts["failed_attempts"] += 1
            self._failed_at = self._attempts
            self._error = error
            self._last_error = f"{type(error).__name__}: {error}"
        self._tell()


def _again(error: Exception) -> Exception:
    """A copy to raise in another thread, so that tracebacks don't grow on one object."""
    if isinstance(error, SonaError):
        copy: Exception = type(error)(*error.args)
    else:
        copy = StoreError(f"storing failed: {type(error).__name__}: {error}")
    copy.__cause__ = error
    return copy
