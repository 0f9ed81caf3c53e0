"""Where records wait between being recorded and being durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from sona.record_size import size_of
from sona.storage.segment import Nowhere, Remains, Segment
from sona.types import Feedback, Trajectory

Entry = tuple[Trajectory | Feedback, int, bytearray]
"""A record made ready to be kept: itself, about the bytes that it takes in memory, and its stored form, where the
journal keeps one. Once it is appended, the form's memory may be used for the next one. Not a class: one more costs
0.2 us."""

Room = Segment
"""What a journal makes ahead of time."""
File = Segment | Remains | Nowhere
"""One that records of a journal lie in."""
Leftover = tuple[File, int | None]
"""A file of a journal: to be marked as done with up to a place in it, or, None, to be removed."""


class Batch(NamedTuple):
    """The oldest records of a journal, still in it."""

    records: list[Trajectory | Feedback]
    size: int
    """In bytes, as it was given with them."""


class Journal(Protocol):
    """A bounded queue of records. One thread at a time is in it, see :class:`sona.storage.backlog.Backlog`; only
    :meth:`prepare`, :meth:`make`, :meth:`discard` and :meth:`sync` may run beside another call; no file is discarded,
    and the journal is not closed, while it is synced.

    An exception may cut any call short. What was appended then is in the queue as a whole or not at all, and
    :meth:`recount` mends the rest.
    """

    @property
    def survives(self) -> bool:
        """Whether all that waits in it outlives the process."""

    @property
    def missing(self) -> str | None:
        """What is wrong where what is recorded now would not outlive the process, though it should; else None."""

    @property
    def queue(self) -> deque[Any]:
        """What waits, the oldest first: tuples that begin with the record; the same object always. Not a count: whoever
        records looks at it each time, and a property's code costs a microsecond or two where no cache holds it (ADR 6).
        Nor is `size`.
        """

    @property
    def size(self) -> int:
        """About how many bytes of memory they take."""

    @property
    def trouble(self) -> str | None:
        """Why the disk turned the last record away that was; None where it was the bound, or none was."""

    def waiting(self) -> list[Trajectory | Feedback]:
        """All that waits, the oldest first."""

    def between(self, start: int, stop: int) -> list[Trajectory | Feedback]:
        """Of all that waits the ``start``-th to the one before the ``stop``-th; a few are quick near either end."""

    def prepare(self, record: Trajectory | Feedback) -> Entry:
        """``record`` made ready for :meth:`append`; InvalidInputError where it has no stored form."""

    def append(self, entry: Entry, second: Entry | None = None, beyond: bool = False) -> bool:
        """Keep ``entry``, and the ``second`` right behind it; False, and nothing is kept, where the bound would be
        exceeded, or the disk has no room. What goes ``beyond`` both is kept always, in memory alone if need be. An
        entry is appended once, as its memory is used again; what goes ``beyond`` may be appended twice.
        """

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, see :func:`oldest`. They stay until they are released."""

    def release(self, batch: Batch) -> Sequence[Leftover]:
        """Let go of what was taken last: it is durable, or was refused for good. Returns what to :meth:`discard`."""

    def discard(self, left: Sequence[Leftover]) -> None:
        """Do away with files that nothing waits in any more."""

    @property
    def wants_room(self) -> bool:
        """Whether to :meth:`make` and :meth:`add` something, when there is time."""

    def make(self) -> Room | None:
        """Something that makes the next appends quick; None where the disk has no room for it."""

    def add(self, room: Room) -> None:
        """Use what was made."""

    def recount(self) -> None:
        """Count anew what waits, from the queue itself."""

    def files(self) -> Sequence[File]:
        """All that there are now."""

    def blank(self) -> None:
        """Leave nothing readable of what was released; after a power cut, not before all files are synced whole."""

    def sync(self, files: Sequence[File], *, whole: bool = False) -> None:
        """What was released is never taken up again, not even after a power cut: called before rows are deleted.
        ``whole``: nor readable, where it was overwritten. Raises StoreError, of the disk.
        """

    def close(self) -> None:
        """Nothing is appended any more. What still waits stays where it outlives the process."""


FEW = 32
_NO_FORM = bytearray()


class MemoryJournal:
    """A queue in memory: what waits in it dies with the process."""

    survives = wants_room = False
    trouble = missing = None

    def __init__(self, bound_bytes: int) -> None:
        self._bound = bound_bytes
        self.queue: deque[Entry] = deque()
        """What waits, the oldest first."""
        self.size = 0
        """About how many bytes of memory that takes."""

    def waiting(self) -> list[Trajectory | Feedback]:
        """All that waits, the oldest first."""
        return [record for record, *_ in self.queue]

    def between(self, start: int, stop: int) -> list[Trajectory | Feedback]:
        """A part of all that waits."""
        return part(self.queue, start, stop)

    def prepare(self, record: Trajectory | Feedback) -> Entry:
        """``record`` with its size."""
        return record, size_of(record), _NO_FORM

    def append(self, entry: Entry, second: Entry | None = None, beyond: bool = False) -> bool:
        """Keep both; False where the bound would be exceeded."""
        size = entry[1] if second is None else entry[1] + second[1]
        if self.size + size > self._bound and not beyond:
            return False
        self.queue.extend((entry,) if second is None else (entry, second))
        self.size += size
        return True

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds."""
        return oldest(((record, size) for record, size, *_ in self.queue), max_records, max_bytes)

    def release(self, batch: Batch) -> Sequence[Leftover]:
        """Let go of what was taken last."""
        for _ in batch.records:
            self.queue.popleft()
        self.size -= batch.size
        return ()

    def discard(self, left: Sequence[Leftover]) -> None:
        """Nothing."""

    def make(self) -> Room | None:
        """Nothing."""

    def add(self, room: Room) -> None:
        """Nothing."""

    def recount(self) -> None:
        """Count anew what waits."""
        self.size = sum(size for _, size, *_ in self.queue)

    def files(self) -> Sequence[File]:
        """None."""
        return ()

    def blank(self) -> None:
        """Nothing: memory is given back."""

    def sync(self, files: Sequence[File], *, whole: bool = False) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def part(queue: deque[Any], start: int, stop: int) -> list[Trajectory | Feedback]:
    """The records of a part of a queue."""
    if stop - start > FEW:
        return [entry[0] for entry in islice(queue, start, stop)]
    return [queue[place][0] for place in range(start, stop)]  # quick near either end, where an iterator comes from one


def oldest(waiting: Iterable[tuple[Trajectory | Feedback, int]], max_records: int, max_bytes: int) -> Batch:
    """The first of ``waiting``, each with its size, within both bounds, but at least one where there is any; and where
    the last of them is a trajectory, the feedback for it right behind it: what came as one call is stored or left out
    as one.
    """
    records: list[Trajectory | Feedback] = []
    total = 0
    for record, size in waiting:
        if records and (len(records) >= max_records or total + size > max_bytes):
            last = records[-1]
            if isinstance(record, Feedback) and isinstance(last, Trajectory) and record.trajectory_id == last.id:
                records.append(record)
                total += size
            break
        records.append(record)
        total += size
    return Batch(records, total)
