"""What waits to be stored: taken in from any thread, signal handler or finaliser, and handed to the writer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sona.errors import ClosedError, StoreError
from sona.held import is_held_here
from sona.storage.journal import Batch, Entry, Journal
from sona.types import Trajectory

MOST_INDEXED = 4000
"""Ids that are counted in one go: whoever records meanwhile waits for it, a millisecond."""


class Backlog:
    """A journal behind a lock, and what is counted of it.

    Two things may come between any two steps of :meth:`put`, in its own thread, which can't wait for itself:

    - **another call**: a signal handler records, or the collector closes a generator that was left in the midst of a
      trajectory's block. It leaves its record in :attr:`_deferred`, which whoever is inside takes in before it leaves.
    - **an exception**: a Ctrl-C, or a time limit made of a signal. What was half done then is found by :attr:`_whole`,
      and counted anew by the next one in. So there is one truth, the journal's queue, and all counts follow from it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.lock = threading.RLock()
        """Of one process's threads; reentrant, so that :attr:`_inside` can tell a call within a call."""
        self._files = threading.Lock()
        """Whoever has it finds no file on its way out."""
        self._inside = False
        self._whole = False  # counted by the first one in
        self._deferred: deque[tuple[Entry, Entry | None]] = deque()
        self._ids: dict[str, int] = {}
        """Of the trajectories among the first :attr:`_indexed` that wait: as far as somebody asked. Of most nobody ever
        does, and a large table is looked into where no cache holds it (ADR 6)."""
        self._indexed = 0
        self.closed = False
        """Whether nothing is taken any more."""
        self.rejected = 0
        """Calls that were turned away."""
        self.done = 0
        """Records that were released."""
        self._let_go = False
        self.prepare = journal.prepare
        """A record made ready for :meth:`put`; InvalidInputError where it has no stored form."""
        with self._section():
            pass

    def put(self, entry: Entry, second: Entry | None = None) -> bool:
        """Keep ``entry``, and the ``second`` right behind it: both or none. False where there is no room, or it is
        closed.
        """
        with self.lock:
            if self._inside:
                if not self.closed:
                    self._deferred.append((entry, second))
                return not self.closed
            try:
                self._inside = True
                if not self._whole:
                    self._recount()
                self._whole = False
                taken = not self.closed and self._journal.append(entry, second)
                if not taken:
                    self.rejected += 1
                if self._deferred:
                    self._take_in_deferred()
                self._whole = True
                return taken
            finally:
                self._inside = False

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, see :func:`sona.storage.journal.oldest`. They stay until they are
        released.
        """
        with self._section():
            return self._journal.take(max_records, max_bytes)

    def release(self, batch: Batch, settled: Callable[[], object]) -> None:
        """Let go of what was taken last, and call ``settled`` before anybody can see that it is gone."""
        with self._files:
            with self._section():
                left = self._journal.release(batch)
                self.done += len(batch.records)
                self._forget(batch)
                settled()
            self._journal.discard(left)  # takes system calls, which no caller of put() waits for

    def make_room(self) -> None:
        """Whatever makes the next calls quick, when there is time for it."""
        while self._journal.wants_room:
            room = self._journal.make()
            if room is None:
                return
            with self._section():
                self._journal.add(room)

    def sync(self) -> None:
        """What was released is never taken up again, not even after a power cut."""
        with self._files:
            with self._section():
                self._check_held()
                files = self._journal.files()
            self._journal.sync(files)  # waits for the disk, and no caller of put() waits for that

    def wipe(self) -> None:
        """Leave nothing readable of what was released, not even after a power cut."""
        with self._files:
            with self._section():
                self._check_held()
                self._journal.blank()
                files = self._journal.files()
            self._journal.sync(files, whole=True)

    def close(self) -> None:
        """See :meth:`sona.storage.journal.Journal.close`."""
        with self._files, self._section():
            self._let_go = True
            self._journal.close()

    @property
    def records(self) -> int:
        """How many wait."""
        return len(self._journal.queue) + len(self._deferred)

    @property
    def size(self) -> int:
        """About how many bytes of memory they take."""
        return self._journal.size

    @property
    def recorded(self) -> int:
        """How many were taken so far, those that were found included. Exact under the lock."""
        return self.done + self.records

    @property
    def trouble(self) -> str | None:
        """Why the disk turned the last one away; None where it was the bound, or none was."""
        return self._journal.trouble

    @property
    def survives(self) -> bool:
        """Whether what waits outlives the process."""
        return self._journal.survives

    @property
    def missing(self) -> str | None:
        """See :attr:`sona.storage.journal.Journal.missing`. For the thread that releases: no other removes a file."""
        return self._journal.missing

    def knows(self, trajectory_id: str) -> bool:
        """Whether a trajectory of this id waits."""
        try:
            last = self._journal.queue[-1][0]
        except IndexError:
            last = None
        if type(last) is Trajectory and last.id == trajectory_id:  # it is, where a record is rated at once
            return True
        while (known := self._look_for(trajectory_id)) is None:
            time.sleep(0)  # whoever waits to record does so now
        return known

    def _look_for(self, trajectory_id: str) -> bool | None:
        """Whether it waits, as far as can be told without keeping others from recording for long; None: ask again."""
        with self.lock:
            if self._inside:
                return self._finds(trajectory_id)
            try:
                self._inside = True
                if not self._whole:
                    self._recount()
                self._whole = False
                if self._deferred:
                    self._take_in_deferred()
                waiting, ids = len(self._journal.queue), self._ids
                stop = min(waiting, self._indexed + MOST_INDEXED)
                for record in self._journal.between(self._indexed, stop):
                    if type(record) is Trajectory:
                        ids[record.id] = ids.get(record.id, 0) + 1
                self._indexed = stop
                self._whole = True
                return True if trajectory_id in ids else False if stop == waiting else None
            finally:
                self._inside = False

    def _finds(self, trajectory_id: str) -> bool:
        """As :meth:`knows`, for a call within a call, which may be at any point of it."""
        if trajectory_id in self._ids:  # or just released, and in the store
            return True
        waiting = [*(entry[0] for entry, _ in tuple(self._deferred)), *reversed(self._journal.waiting())]
        return any(type(one) is Trajectory and one.id == trajectory_id for one in waiting)

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread has the lock: it asks in a signal handler, or a finaliser."""
        return is_held_here(self.lock)

    def check_outside(self, what: str) -> None:
        """StoreError where the calling thread, which has the lock, is in the midst of another call here: what it would
        wait for can't come.
        """
        if self._inside:
            raise StoreError(f"{what}: called in the midst of record(), by a signal handler or a finaliser; let it end")

    def forked(self) -> None:
        """In a forked child, where the lock may be one that a lost thread held: everything is rejected."""
        self.closed = True
        self.lock, self._files = threading.RLock(), threading.Lock()
        self._inside = False

    def _check_held(self) -> None:
        if self._let_go:
            raise ClosedError("the journal was let go of: the writer is closed")

    @contextmanager
    def _section(self) -> Iterator[None]:
        with self.lock:
            self.check_outside("store")
            try:
                self._inside = True
                if not self._whole:
                    self._recount()
                self._whole = False
                yield
                if self._deferred:
                    self._take_in_deferred()
                self._whole = True
            finally:
                self._inside = False

    def _take_in_deferred(self) -> None:
        """They were acknowledged, so they go in, whatever bound or disk say."""
        while self._deferred:
            entry, second = self._deferred[0]
            self._journal.append(entry, second, beyond=True)
            self._deferred.popleft()  # after it: twice in the journal is once in the store

    def _recount(self) -> None:
        self._journal.recount()
        self._ids, self._indexed = {}, 0

    def _forget(self, batch: Batch) -> None:
        for record in batch.records[: self._indexed]:
            if type(record) is Trajectory:
                if (left := self._ids[record.id] - 1) > 0:
                    self._ids[record.id] = left
                else:
                    del self._ids[record.id]
        self._indexed = max(0, self._indexed - len(batch.records))
