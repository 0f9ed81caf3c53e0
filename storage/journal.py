"""Where records wait between being recorded and being durable."""

from __future__ import annotations

import threading
from collections import deque
from sys import getsizeof
from typing import NamedTuple, Protocol

from sona.types import Feedback, Trajectory

# What the objects of a record take beside their texts and bytes (test_size_of_is_about_what_a_record_takes).
_RECORD_BYTES = 300
_PART_BYTES = 350


def size_of(record: Trajectory | Feedback) -> int:
    """About the bytes that ``record`` takes in memory, told without encoding it."""
    if isinstance(record, Feedback):
        return _RECORD_BYTES + getsizeof(record.comment)
    parts = len(record.messages) + len(record.steps) + len(record.metadata) + len(record.recalled)
    size = _RECORD_BYTES + _PART_BYTES * parts + getsizeof(record.response)
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


class Batch(NamedTuple):
    """The oldest records of a journal, still in it."""

    records: list[Trajectory | Feedback]
    size: int
    """In bytes, as it was given with them."""


class Journal(Protocol):
    """A bounded queue of records. Any thread appends; one thread takes and releases."""

    @property
    def records(self) -> int:
        """How many wait."""

    @property
    def size(self) -> int:
        """How many bytes they were said to have."""

    def append(self, record: Trajectory | Feedback, size: int) -> bool:
        """Keep ``record``; False, and nothing is kept, where the bound would be exceeded."""

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, but at least one where any waits. They stay until they are
        released.
        """

    def release(self, batch: Batch) -> None:
        """Let go of what was taken last: it is durable, or was refused for good."""


class MemoryJournal:
    """A queue in memory: what waits in it dies with the process."""

    def __init__(self, bound_bytes: int) -> None:
        self._bound = bound_bytes
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Trajectory | Feedback, int]] = deque()
        self._size = 0

    @property
    def records(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def size(self) -> int:
        """How many bytes they were said to have."""
        return self._size

    def append(self, record: Trajectory | Feedback, size: int) -> bool:
        """Keep ``record``; False where the bound would be exceeded."""
        with self._lock:
            if self._size + size > self._bound:
                return False
            self._size += size
            self._waiting.append((record, size))
        return True

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """The oldest records within both bounds, but at least one where any waits."""
        records: list[Trajectory | Feedback] = []
        total = 0
        with self._lock:
            for record, size in self._waiting:
                if records and (len(records) >= max_records or total + size > max_bytes):
                    break
                records.append(record)
                total += size
        return Batch(records, total)

    def release(self, batch: Batch) -> None:
        """Let go of what was taken last."""
        with self._lock:
            for _ in batch.records:
                self._waiting.popleft()
            self._size -= batch.size
