"""The journal on disk: what waits in it outlives the process."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from crc32c import crc32c

from sona.config import StoreConfig
from sona.errors import StoreCorruptError, StoreError
from sona.storage.connection import store_error
from sona.storage.journal import Batch, Entry, Journal, MemoryJournal, oldest, size_of
from sona.storage.rows import decode, encode
from sona.storage.segment import FIRST, HEADER_BYTES, Frame, Remains, Segment, scan
from sona.types import Feedback, Trajectory

log = logging.getLogger("sona.storage")

FOLDER = "journal"
LARGEST_SEGMENT = 4 * 1024 * 1024
SMALLEST_SEGMENT = 64 * 1024
SPARE = 2
"""Segments kept ready, so that recording seldom waits for one to be made."""
_KINDS: tuple[type[Trajectory] | type[Feedback], ...] = (Trajectory, Feedback)


def open_journal(store: Path, config: StoreConfig) -> Journal:
    """The journal of the store in folder ``store``, as ``config`` wants it. The caller holds the store's lock.

    Raises:
        StoreCorruptError: see :class:`MappedJournal`.
        StoreFullError, StoreReadOnlyError, StoreError: its folder can't be used.
    """
    if config.journal == "memory":
        if waiting := waiting_in(store):
            raise StoreError(
                f"{store / FOLDER}: {waiting} records wait in it; open the store once with store.journal = 'file', and "
                "they are stored"
            )
        return MemoryJournal(config.queue_bytes)
    try:
        return MappedJournal(store / FOLDER, config.queue_bytes)
    except OSError as error:
        raise store_error(error, store / FOLDER) from error


def waiting_in(store: Path) -> int:
    """How many records the journal of the store in folder ``store`` holds: for the process that writes to it now, or
    for the next one.
    """
    count = 0
    for path in (store / FOLDER).glob("*.seg"):
        with suppress(FileNotFoundError):  # done with meanwhile
            count += len(scan(path.read_bytes()).frames)
    return count


# The record, its size, the file that it lies in, and where its frame ends there. No class, as an Entry is none.
_Waiting = tuple[Trajectory | Feedback, int, Segment | Remains, int]


class MappedJournal:
    """A queue in memory whose records also lie in mapped files: the next process goes on with those of a killed one.

    Appending costs one copy and no system call. From then on the record survives the death of the process; a power cut
    only when it is in the store.
    """

    survives = True

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        """Take up what lies in ``folder``, which is made if there is none.

        Raises:
            StoreCorruptError: a record is whole and can't be read: a newer sona wrote it.
            OSError: the folder can't be used, or the disk has no room for a segment.
        """
        self._folder, self._bound = folder, bound_bytes
        self._segment_bytes = max(SMALLEST_SEGMENT, min(LARGEST_SEGMENT, bound_bytes // 8))
        self._most = -(-bound_bytes // self._segment_bytes) + SPARE
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._size = self._epoch = self._made = self._last_file = 0
        self._spare: deque[Segment] = deque()
        self._idle: list[Segment | Remains] = []
        """To be removed by the next release."""
        self.trouble: str | None = None
        """Why the disk turned the last record away that was; None where it was the bound, or none was."""
        folder.mkdir(exist_ok=True)
        self._recover()
        self._active = self._begun(self._make(self._segment_bytes))

    @property
    def records(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def size(self) -> int:
        """About how many bytes of memory they take."""
        return self._size

    def waiting(self) -> list[Trajectory | Feedback]:
        """All that waits, the oldest first."""
        with self._lock:
            return [record for record, *_ in self._waiting]

    def prepare(self, record: Trajectory | Feedback) -> Entry:
        """``record`` with its stored form; InvalidInputError where it has none."""
        payload = encode(record)
        return record, size_of(record, payload), payload, crc32c(payload)

    def append(self, entry: Entry) -> bool:
        """Keep ``entry``; False where the bound would be exceeded, or the disk has no room for another segment."""
        record, size, payload, crc = entry
        with self._lock:
            if self._size + size > self._bound:
                self.trouble = None
                return False
            segment = self._active
            if not segment.fits(len(payload)):
                following = self._following(len(payload))
                if following is None:
                    return False
                self._active = following
                if not segment.waiting:  # no release will come by it any more
                    self._idle += self._retired(segment)
                segment = following
            end = segment.append(0 if type(record) is Trajectory else 1, payload, crc)
            self._size += size
            self._waiting.append((record, size, segment, end))
        return True

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, but at least one where any waits."""
        with self._lock:
            return oldest(((record, size) for record, size, *_ in self._waiting), max_records, max_bytes)

    def release(self, batch: Batch) -> None:
        """Let go of what was taken last."""
        done: list[Segment | Remains] = []
        with self._lock:
            ends: dict[Segment | Remains, int] = {}
            for _ in batch.records:
                _, _, home, end = self._waiting.popleft()
                home.waiting -= 1
                ends[home] = end
            self._size -= batch.size
            for home, end in ends.items():
                home.mark(end)
                if not home.waiting:
                    done += self._retired(home)
            done += self._idle
            self._idle = []
        self._remove(done)

    def make_room(self) -> None:
        """Have a segment ready before one is needed."""
        while len(self._spare) < SPARE and self._made < self._most:
            try:
                segment = self._make(self._segment_bytes)
            except OSError:  # the disk has no room now; append tries again when it has to
                return
            with self._lock:
                self._spare.append(segment)

    def wipe(self) -> None:
        """Leave nothing readable of what was released; segments that hold what waits are wiped when it is released."""
        with self._lock:
            for segment in [*self._spare, *self._idle]:
                segment.wipe()
            for _, _, home, _ in self._waiting:
                home.reusable = False
            if not self._active.waiting:
                self._active.wipe()
                self._begun(self._active)
            elif (following := self._following(0)) is not None:
                self._active = following

    def close(self) -> None:
        """Let go of the files. They are deleted where nothing waits in them."""
        with self._lock:
            needed = {home for _, _, home, _ in self._waiting}
            for home in needed:
                home.close()
            for home in {self._active, *self._spare, *self._idle} - needed:
                home.remove()
            self._spare.clear()
            self._idle = []

    def _retired(self, home: Segment | Remains) -> list[Segment | Remains]:
        """What to remove, where nothing in ``home`` is needed any more. Under the lock."""
        if isinstance(home, Segment) and home.reusable and home.size == self._segment_bytes:
            if home is self._active:
                self._begun(home)  # its pages are in the caches
                return []
            if len(self._spare) < SPARE:
                self._spare.append(home)
                return []
        if home is self._active:
            following = self._following(0)
            if following is None:  # better used on than none: what was to be wiped is
                home.wipe()
                home.reusable = True
                self._begun(home)
                return []
            self._active = following
        return [home]

    def _remove(self, homes: list[Segment | Remains]) -> None:
        """Outside the lock: it takes a system call or three."""
        for home in homes:
            home.remove()
            self._made -= isinstance(home, Segment)

    def _following(self, payload_bytes: int) -> Segment | None:
        """The segment to go on in, with room for a frame; None where there is none. Under the lock."""
        if FIRST + HEADER_BYTES + payload_bytes <= self._segment_bytes:
            if self._spare:
                return self._begun(self._spare.popleft())
            if self._made >= self._most:
                self.trouble = None
                return None
        try:
            return self._begun(self._make(max(self._segment_bytes, Segment.bytes_for(payload_bytes))))
        except OSError as error:
            self.trouble = f"the journal can't grow: {error}"
            return None

    def _make(self, size: int) -> Segment:
        self._last_file += 1
        segment = Segment(self._folder / f"{self._last_file:08d}.seg", size)
        self._made += 1
        return segment

    def _begun(self, segment: Segment) -> Segment:
        self._epoch += 1
        segment.begin(self._epoch)
        return segment

    def _recover(self) -> None:
        """Take up what an earlier process left, in the order in which it was recorded."""
        # Not from 0: what lies in a file by chance must not look like an epoch of it.
        latest = int.from_bytes(os.urandom(4), "little") << 24
        found = {path: scan(path.read_bytes()) for path in self._folder.glob("*.seg")}
        for path, (epoch, frames, skipped) in sorted(found.items(), key=lambda item: item[1].epoch):
            remains = Remains(path)
            for place, frame in enumerate(frames):
                record = _read(frame, f"{path}: record {place + 1}")
                remains.waiting += 1
                size = size_of(record, frame.payload)
                self._size += size
                self._waiting.append((record, size, remains, frame.end))
            if skipped:
                log.error("%s: %d damaged bytes lie between its records, and hold none that can be read", path, skipped)
            if not frames:
                remains.remove()
            latest = max(latest, epoch)
            self._last_file = max(self._last_file, int(path.stem)) if path.stem.isdigit() else self._last_file
        self._epoch = latest
        if self._waiting:
            log.warning("%d records of a process that ended before they were stored are taken up", len(self._waiting))


def _read(frame: Frame, where: str) -> Trajectory | Feedback:
    try:
        return decode(frame.payload, _KINDS[frame.kind], where)
    except StoreCorruptError as error:
        raise StoreCorruptError(
            f"{where} is whole, and can't be read ({error.__cause__}); open the store with the sona that wrote it, or "
            "move this file away, and what it holds is not stored"
        ) from error
