"""Where records wait between being recorded and being durable."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from sys import getsizeof
from typing import NamedTuple, Protocol

from sona.types import Feedback, Trajectory

# What the objects of a record take beside their texts and bytes (test_size_of_is_about_what_a_record_takes).
_RECORD_BYTES = 500
_PART_BYTES = 350


def size_of(record: Trajectory | Feedback, payload: bytes | None = None) -> int:
    """About the bytes that ``record`` takes in memory; told at once where its stored form is at hand."""
    parts = 0
    if isinstance(record, Trajectory):
        parts = len(record.messages) + len(record.steps) + len(record.metadata) + len(record.recalled)
    size = _RECORD_BYTES + _PART_BYTES * parts
    return size + (len(payload) if payload is not None else _content_bytes(record))


def _content_bytes(record: Trajectory | Feedback) -> int:
    if isinstance(record, Feedback):
        return getsizeof(record.comment)
    size = getsizeof(record.response)
    for packed in (record.embedding, record.prompt_ids, record.response_ids):
        if packed is not None:
            size += len(packed)
    for message in record.messages:
        size += getsizeof(message.content)
        for call in message.tool_calls:
            size += _PART_BYTES + getsizeof(call.arguments)
    for step in record.steps:
        size += getsizeof(step.content)
    for value in record.metadata.values():
        size += getsizeof(value)
    return size


Entry = tuple[Trajectory | Feedback, int, bytes, int]
"""A record made ready to be kept: itself, about the bytes that it takes in memory, its stored form and the CRC-32C of
that, where the journal keeps one. Not a class: one more costs 0.2 us."""


class Batch(NamedTuple):
    """The oldest records of a journal, still in it."""

    records: list[Trajectory | Feedback]
    size: int
    """In bytes, as it was given with them."""


class Journal(Protocol):
    """A bounded queue of records. Any thread appends; one thread takes and releases."""

    @property
    def survives(self) -> bool:
        """Whether what waits in it outlives the process."""

    @property
    def records(self) -> int:
        """How many wait."""

    @property
    def size(self) -> int:
        """About how many bytes of memory they take."""

    @property
    def trouble(self) -> str | None:
        """Why the disk turned the last record away that was; None where it was the bound, or none was."""

    def waiting(self) -> list[Trajectory | Feedback]:
        """All that waits, the oldest first."""

    def prepare(self, record: Trajectory | Feedback) -> Entry:
        """``record`` made ready for :meth:`append`; InvalidInputError where it has no stored form."""

    def append(self, entry: Entry) -> bool:
        """Keep ``entry``; False, and nothing is kept, where the bound would be exceeded."""

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, but at least one where any waits. They stay until they are
        released.
        """

    def release(self, batch: Batch) -> None:
        """Let go of what was taken last: it is durable, or was refused for good."""

    def make_room(self) -> None:
        """Called by the thread that releases, when it has time: whatever makes the next appends quick."""

    def wipe(self) -> None:
        """Leave nothing readable of what was released."""

    def close(self) -> None:
        """Nothing is appended any more. What still waits stays where it outlives the process."""


class MemoryJournal:
    """A queue in memory: what waits in it dies with the process."""

    survives = False
    trouble = None

    def __init__(self, bound_bytes: int) -> None:
        self._bound = bound_bytes
        self._lock = threading.Lock()
        self._waiting: deque[Entry] = deque()
        self._size = 0

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
        """``record`` with its size."""
        return record, size_of(record), b"", 0

    def append(self, entry: Entry) -> bool:
        """Keep ``entry``; False where the bound would be exceeded."""
        with self._lock:
            size = entry[1]
            if self._size + size > self._bound:
                return False
            self._size += size
            self._waiting.append(entry)
        return True

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, but at least one where any waits."""
        with self._lock:
            return oldest(((record, size) for record, size, *_ in self._waiting), max_records, max_bytes)

    def release(self, batch: Batch) -> None:
        """Let go of what was taken last."""
        with self._lock:
            for _ in batch.records:
                self._waiting.popleft()
            self._size -= batch.size

    def make_room(self) -> None:
        """Nothing."""

    def wipe(self) -> None:
        """Nothing: memory is given back."""

    def close(self) -> None:
        """Nothing."""


def oldest(waiting: Iterable[tuple[Trajectory | Feedback, int]], max_records: int, max_bytes: int) -> Batch:
    """The first of ``waiting``, each with its size, within both bounds, but at least one where there is any."""
    records: list[Trajectory | Feedback] = []
    total = 0
    for record, size in islice(waiting, max(max_records, 1)):
        if records and total + size > max_bytes:
            break
        records.append(record)
        total += size
    return Batch(records, total)
