"""The journal on disk: what waits in it outlives the process."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from sona.config import StoreConfig
from sona.errors import StoreCorruptError, StoreError
from sona.record_size import size_of
from sona.storage.connection import store_error
from sona.storage.findings import so_many
from sona.storage.journal import Batch, Entry, File, Journal, Leftover, MemoryJournal, oldest, part
from sona.storage.layout import QUARANTINE
from sona.storage.rows import UNENCODABLE, decode, encoder, without_form
from sona.storage.segment import (
    FIRST,
    HEADER_BYTES,
    UNNAMED,
    Frame,
    Nowhere,
    Remains,
    Scan,
    Segment,
    frame_end,
    scan,
    whole_pages,
)
from sona.storage.syncing import sync_path
from sona.types import Feedback, Trajectory

log = logging.getLogger("sona.storage")

FOLDER = "journal"
LARGEST_SEGMENT = 4 * 1024 * 1024
SMALLEST_SEGMENT = 64 * 1024
LARGEST_BUFFER = 64 * 1024
"""A larger one is not kept for the next record: few are so large."""
MOST_BUFFERS = 8
"""More threads than that seldom record at one moment."""
SPARE = 2
"""Segments kept ready, so that recording seldom waits for one to be made."""
_KINDS: tuple[type[Trajectory] | type[Feedback], ...] = (Trajectory, Feedback)


def open_journal(store: Path, config: StoreConfig) -> Journal:
    """The journal of the store in folder ``store``, as ``config`` wants it. The caller holds the store's lock.

    Raises:
        StoreCorruptError: see :class:`MappedJournal`.
        StoreFullError, StoreReadOnlyError, StoreError: its folder can't be used.
    """
    in_memory = config.journal == "memory"
    if in_memory and (waiting := waiting_in(store)):
        raise StoreError(
            f"{store / FOLDER}: {so_many(waiting, 'record waits', 'records wait')} in it; open the store once with "
            "store.journal = 'file', and what waits is stored"
        )
    try:
        if in_memory:
            _clear(store / FOLDER, config)
            return MemoryJournal(config.queue_bytes)
        return MappedJournal(store / FOLDER, config.queue_bytes)
    except OSError as error:
        raise store_error(error, store / FOLDER) from error


def _clear(folder: Path, config: StoreConfig) -> None:
    """Remove, for good, what an earlier process left: no erasure would reach it, and no pruning sync it."""
    if any(folder.glob("*.seg")):
        MappedJournal(folder, config.queue_bytes).close()
    if folder.exists():
        sync_path(folder)


def waiting_in(store: Path) -> int:
    """How many records the journal of the store in folder ``store`` holds: for the process that writes to it now, or
    for the next one.
    """
    return sum(len(found.frames) for found in scanned_in(store / FOLDER).values())


def scanned_in(folder: Path) -> dict[Path, Scan]:
    """What the files in a journal's folder hold."""
    found = {}
    for path in sorted(folder.glob("*.seg")):
        with suppress(FileNotFoundError):  # done with meanwhile
            found[path] = scan(path.read_bytes())
    return found


def told_of_damage(path: Path, found: Scan) -> str:
    """What is wrong with a file of the journal, in which more was ``found`` than frames."""
    return (
        f"{path}: {found.skipped} bytes in it should be records and can't be read, {len(found.frames)} whole ones wait "
        "in it. Such bytes come of damage, or of a power cut, which takes what was recorded and not yet durable"
    )


def _kept(path: Path) -> Path:
    """A name for a damaged file, of its own."""
    folder = path.parent.parent / QUARANTINE
    names = (f"{FOLDER}-{path.stem}{'-' * bool(number)}{number or ''}{path.suffix}" for number in count())
    return next(folder / name for name in names if not (folder / name).exists())


# The record, its size, the file that it lies in, and where its frame ends there. No class, as an Entry is none.
_Waiting = tuple[Trajectory | Feedback, int, File, int]


class MappedJournal:
    """A queue in memory whose records also lie in mapped files: the next process goes on with those of a killed one.

    Appending costs one copy and no system call. From then on the record survives the death of the process; a power cut
    only when it is in the store. But for one that came in the midst of another one's recording (a signal handler's) and
    found a disk without room: it was acknowledged, and is in memory alone until the database has it.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        """Take up what lies in ``folder``, which is made if there is none.

        Raises:
            StoreCorruptError: a record is whole and can't be read: a newer sona wrote it.
            OSError: the folder can't be used, or the disk has no room for a segment.
        """
        self._folder, self._bound = folder, bound_bytes
        self._segment_bytes = whole_pages(max(SMALLEST_SEGMENT, min(LARGEST_SEGMENT, bound_bytes // 8)))
        self._most = -(-bound_bytes // self._segment_bytes) + SPARE
        self.queue: deque[_Waiting] = deque()
        """What waits, the oldest first."""
        self.size = 0
        """About how many bytes of memory that takes."""
        self._epoch = 0
        self._files = count(1)
        self._segments: set[Segment] = set()
        """All that were made and not given up."""
        self._spare: deque[Segment] = deque()
        self._nowhere = Nowhere()
        self._idle: list[File] = []
        """To be removed by the next release."""
        self._encode = encoder.encode_into  # in place of what is in a buffer, which is then as long as it takes
        self._buffers: list[bytearray] = []
        """To make stored forms in: each belongs to whoever took it out, until its bytes are in a file."""
        self.trouble: str | None = None
        """Why the disk turned the last record away that was; None where it was the bound, or none was."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._recover()
        self._active = self._begun(self._new(self._segment_bytes))

    @property
    def survives(self) -> bool:
        """Whether all that waits in it outlives the process."""
        homes: list[File] = [one for one in tuple(self._segments) if one.waiting]
        with suppress(IndexError):
            homes.append(self.queue[0][2])  # what was found at the start is the oldest
        return not self._nowhere.waiting and all(home.is_there() for home in homes)

    @property
    def missing(self) -> str | None:
        """What is wrong where what is recorded now would not outlive the process: a file that was moved, deleted or
        replaced.
        """
        active = self._active
        if active.is_there():
            return None
        return (
            f"{active.path}: this file of the journal was moved, deleted or replaced; what is recorded is lost if the "
            "process is killed before it is in the database: close the store and open it again"
        )

    def waiting(self) -> list[Trajectory | Feedback]:
        """All that waits, the oldest first."""
        return [record for record, *_ in self.queue]

    def between(self, start: int, stop: int) -> list[Trajectory | Feedback]:
        """A part of all that waits."""
        return part(self.queue, start, stop)

    def prepare(self, record: Trajectory | Feedback) -> Entry:
        """``record`` with its stored form; InvalidInputError where it has none."""
        try:
            payload = self._buffers.pop()
        except IndexError:
            payload = bytearray()
        encode = self._encode
        try:
            encode(record, payload)
        except UNENCODABLE as error:
            raise without_form(record, error) from None
        return record, size_of(record, payload), payload

    def append(self, entry: Entry, second: Entry | None = None, beyond: bool = False) -> bool:
        """Keep both; False where the bound would be exceeded, or the disk has no room for another segment."""
        record, own, payload = entry
        size, length = own, len(payload)
        if second is not None:
            size += second[1]
            length = frame_end(0, length) + len(second[2])
        if self.size + size > self._bound and not beyond:
            self.trouble = None
            return False
        segment = self._active
        if segment.end + HEADER_BYTES + length > segment.size:
            following = self._following(length, beyond=beyond)
            if following is None:
                if beyond:
                    self._keep_in_memory(entry, second)
                return beyond
            self._active = following
            if not segment.waiting:  # no release will come by it any more
                self._idle += self._retired(segment)
            segment = following
        # In a straight line, because hosts count the microseconds: a call into code that no cache holds is one or two.
        first = (record, own, segment, segment.append(type(record) is not Trajectory, payload))
        if second is None:
            self.queue.append(first)  # from here on it is in
        else:
            record, own, after = second
            self.queue.extend([first, (record, own, segment, segment.append(True, after))])
        self.size += size
        # Memory of before is nearer than new memory: a tenth of a cold call (ADR 6). What goes beyond the bounds may be
        # appended once more, by whoever was cut short behind this, so its bytes stay its own.
        if not beyond and len(payload) <= LARGEST_BUFFER and len(self._buffers) < MOST_BUFFERS:
            self._buffers.append(payload)
        return True

    def _keep_in_memory(self, *entries: Entry | None) -> None:
        """Until the database has them; where the process is killed before, they are lost."""
        kept = [entry for entry in entries if entry is not None]
        self.queue.extend([(record, size, self._nowhere, 0) for record, size, *_ in kept])
        self._nowhere.waiting += len(kept)
        self.size += sum(size for _, size, *_ in kept)

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds."""
        return oldest(((record, size) for record, size, *_ in self.queue), max_records, max_bytes)

    def release(self, batch: Batch) -> Sequence[Leftover]:
        """Let go of what was taken last."""
        ends: dict[File, int] = {}
        for _ in batch.records:
            _, _, home, end = self.queue.popleft()
            home.waiting -= 1
            ends[home] = end
        self.size -= batch.size
        left: list[Leftover] = []
        for home, end in ends.items():
            if isinstance(home, Segment):
                home.mark(end)
            else:
                home.released = end
                if home.waiting:
                    left.append((home, end))
            if not home.waiting:
                self._idle += self._retired(home)
        left += [(home, None) for home in self._idle]
        self._segments -= set(self._idle)
        self._idle = []
        return left

    def discard(self, left: Sequence[Leftover]) -> None:
        """Mark as done with, or remove."""
        for home, end in left:
            if end is None:
                home.remove()
            else:
                home.mark(end)

    @property
    def wants_room(self) -> bool:
        """Whether a segment should be ready before one is needed."""
        return len(self._spare) < SPARE and len(self._segments) < self._most

    def make(self) -> Segment | None:
        """A segment; None where the disk has no room now: append tries again when it has to."""
        try:
            made = self._made(self._segment_bytes)
        except OSError:
            return None
        self.trouble = None  # there is room again
        return made

    def add(self, room: Segment) -> None:
        """One more that is ready."""
        self._segments.add(room)
        self._spare.append(room)

    def recount(self) -> None:
        """Count anew what waits, and find a segment that was lost on its way from one place to another."""
        homes: set[File] = {*self._segments, *(home for _, _, home, _ in self.queue)}
        for home in homes:
            home.waiting = 0
        self.size = 0
        for _, size, home, _ in self.queue:
            home.waiting += 1
            self.size += size
        kept = {self._active, *self._spare, *self._idle}
        self._idle += [one for one in self._segments if not one.waiting and one not in kept]

    def files(self) -> Sequence[File]:
        """All that there are now."""
        return tuple(self._homes())

    def blank(self) -> None:
        """Leave nothing readable of what was released, in any file."""
        try:
            for home in self._homes():
                home.blank()
        except OSError as error:
            raise store_error(error, self._folder) from error

    def sync(self, files: Sequence[File], *, whole: bool = False) -> None:
        """What was released is never taken up again, whatever becomes of the machine from now on."""
        try:
            for home in files:
                home.sync(whole=whole)
            sync_path(self._folder)  # of what was removed before, too
        except OSError as error:
            raise store_error(error, self._folder) from error

    def close(self) -> None:
        """Let go of the files. They are deleted where nothing waits in them."""
        needed = {home for _, _, home, _ in self.queue}
        for home in needed:
            home.close()
        for home in self._homes() - needed:
            home.remove()
        self._spare.clear()
        self._idle = []

    def _homes(self) -> set[File]:
        return {self._active, *self._spare, *self._idle, *(home for _, _, home, _ in self.queue)}

    def _retired(self, home: File) -> list[File]:
        """What to remove, where nothing in ``home`` is needed any more."""
        if isinstance(home, Segment):
            self.trouble = None  # there is room again
            if home is self._active:
                self._begun(home)  # its pages are in the caches
                return []
            if home.size == self._segment_bytes and len(self._spare) < SPARE:
                self._spare.append(home)
                return []
        return [home]

    def _following(self, payload_bytes: int, *, beyond: bool) -> Segment | None:
        """The segment to go on in, with room for a frame; None where there is none. ``beyond`` their number too."""
        if FIRST + HEADER_BYTES + payload_bytes <= self._segment_bytes:
            if self._spare:
                return self._begun(self._spare.popleft())
            if len(self._segments) >= self._most and not beyond:
                self.trouble = None
                return None
        try:
            made = self._new(max(self._segment_bytes, Segment.bytes_for(payload_bytes)))
        except OSError as error:
            self.trouble = f"the journal can't grow: {error}"
            return None
        self.trouble = None
        return self._begun(made)

    def _new(self, size: int) -> Segment:
        segment = self._made(size)
        self._segments.add(segment)
        return segment

    def _made(self, size: int) -> Segment:
        return Segment(self._folder / f"{next(self._files):08d}.seg", size)  # next() is one step, for any thread

    def _begun(self, segment: Segment) -> Segment:
        self._epoch += 1
        segment.begin(self._epoch)
        return segment

    def _recover(self) -> None:
        """Take up what an earlier process left, in the order in which it was recorded."""
        # Not from 0: what lies in a file by chance must not look like an epoch of it.
        latest = int.from_bytes(os.urandom(4), "little") << 24
        for path in self._folder.glob(f"*{UNNAMED}"):
            path.unlink()
        found = scanned_in(self._folder)
        for path, scanned in sorted(found.items(), key=lambda item: item[1].epoch):
            kept = _kept(path)
            remains = Remains(path, scanned, kept)
            for place, frame in enumerate(scanned.frames):
                record = _read(frame, f"{path}: record {place + 1}")
                remains.waiting += 1
                size = size_of(record, frame.payload)
                self.size += size
                self.queue.append((record, size, remains, frame.end))
            if scanned.skipped:
                log.error("%s; it will be kept as %s", told_of_damage(path, scanned), kept)
            if not scanned.frames:
                remains.remove()
            latest = max(latest, scanned.epoch)
        names = [int(path.stem) for path in found if path.stem.isdigit()]
        self._files = count(max(names, default=0) + 1)
        self._epoch = latest
        if self.queue:
            records = so_many(len(self.queue), "record", "records")
            log.warning("taken up from a process that ended before it was stored: %s", records)


def _read(frame: Frame, where: str) -> Trajectory | Feedback:
    try:
        return decode(frame.payload, _KINDS[frame.kind], where)
    except StoreCorruptError as error:
        raise StoreCorruptError(
            f"{where} is whole, and can't be read ({error.__cause__}); open the store with the sona that wrote it, or "
            "move this file away, and what it holds is not stored"
        ) from error
