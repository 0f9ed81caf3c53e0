"""The trajectories of a batch on their way into the table: whole, or with their payloads in a blob file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import apsw

from sona.storage.blob_files import Place, pack_place
from sona.storage.blobs import Blobs, free
from sona.storage.rows import TrajectoryRow, Value, encode_onto, trajectory_row, whole_row
from sona.types import Trajectory


class NewTrajectories(Protocol):
    """Some trajectories, by their places in a batch: added, then begun, then inserted."""

    @property
    def records(self) -> Mapping[int, Trajectory]:
        """What was added."""

    @property
    def rows(self) -> dict[int, TrajectoryRow]:
        """With the payloads themselves; all of them once :meth:`values` came to its end."""

    def add(self, place: int, record: Trajectory) -> None:
        """One more; InvalidInputError, and nothing is added, where it has no stored form."""

    def begin(self, after_seq: int) -> None:
        """They will have later ones. Raises as :meth:`Blobs.put`."""

    def values(self) -> Iterable[tuple[Value, ...]]:
        """What goes into the table."""

    def free(self, place: int) -> None:
        """That one turned out to be there already: no row names what was put for it."""


class InRows:
    """Each goes into its row whole."""

    def __init__(self) -> None:
        self.records: dict[int, Trajectory] = {}
        self.rows: dict[int, TrajectoryRow] = {}

    def add(self, place: int, record: Trajectory) -> None:
        """See :class:`NewTrajectories`."""
        self.rows[place] = trajectory_row(record)
        self.records[place] = record

    def begin(self, after_seq: int) -> None:
        """Nothing."""

    def values(self) -> Iterable[tuple[Value, ...]]:
        """The rows."""
        return self.rows.values()

    def free(self, place: int) -> None:
        """Nothing: it is in no row."""


class InFile:
    """Their payloads go into a blob file, in one piece, which is written while the rows are made and go in."""

    def __init__(self, connection: apsw.Connection, blobs: Blobs) -> None:
        self._connection, self._blobs = connection, blobs
        self._data = bytearray()
        self._ends: dict[int, int] = {}
        self._at: Place | None = None
        self.records: dict[int, Trajectory] = {}
        self.rows: dict[int, TrajectoryRow] = {}

    def add(self, place: int, record: Trajectory) -> None:
        """See :class:`NewTrajectories`."""
        encode_onto(record, self._data)
        self.records[place] = record
        self._ends[place] = len(self._data)

    def begin(self, after_seq: int) -> None:
        """The disk begins to work."""
        self._at = self._blobs.put(self._connection, self._data, after_seq)

    def values(self) -> Iterator[tuple[Value, ...]]:
        """Rows with places, made one by one: SQLite lets the disk's thread come between them."""
        assert self._at is not None
        file, at, _ = self._at
        payloads, start = memoryview(self._data).toreadonly(), 0
        for (place, end), record in zip(self._ends.items(), self.records.values(), strict=True):
            row = self.rows[place] = whole_row(record, payloads[start:end])
            id, source, created_ns, embedding, _, crc = row
            yield id, source, created_ns, embedding, pack_place(file, at + start, end - start), crc
            start = end

    def free(self, place: int) -> None:
        """Its bytes in the file are in nobody's use."""
        assert self._at is not None
        free(self._connection, {self._at.file: len(self.rows[place].payload)})
