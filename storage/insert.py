"""Storing a batch: each record goes in, is there already, or is left out with a reason that concerns it alone."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from sona.errors import ConflictError, DimensionMismatchError, InvalidInputError, StoreCorruptError, UnknownIdError
from sona.storage.head import read_head, write_head
from sona.storage.rows import FeedbackRow, TrajectoryRow, feedback_row, read_feedback, read_trajectory, trajectory_row
from sona.storage.sources import Totals, read_totals, write_totals
from sona.types import Feedback, Trajectory

_PER_RECORD = (ConflictError, DimensionMismatchError, InvalidInputError, StoreCorruptError, UnknownIdError)

_INSERT_TRAJECTORY = """
INSERT INTO trajectories (id, source, created_ns, embedding, payload, crc) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING RETURNING seq
"""
_SAME_TRAJECTORY = "SELECT id, source, created_ns, embedding, payload, crc FROM trajectories WHERE id = ?"

_INSERT_FEEDBACK = """
INSERT INTO feedback (id, trajectory, quality, payload, crc) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING RETURNING seq
"""
_SAME_FEEDBACK = "SELECT id, trajectory, quality, payload, crc FROM feedback WHERE id = ?"

_RATED_TRAJECTORY = """
SELECT t.seq, t.source, (SELECT f.quality FROM feedback f WHERE f.trajectory = t.seq ORDER BY f.seq DESC LIMIT 1)
FROM trajectories t
WHERE t.id = ?
"""


def insert(connection: apsw.Connection, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
    """Store ``records`` in the transaction under way; for each None, or the error that left it out.

    Storing the same again changes nothing, so a batch whose fate is unknown can be given once more.
    """
    batch = _Batch(connection)
    results = [batch.add(record) for record in records]
    batch.finish()
    return results


class _Batch:
    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._head = self._head_before = read_head(connection)
        self._totals: dict[str, Totals] = {}

    def add(self, record: Trajectory | Feedback) -> Exception | None:
        try:
            if isinstance(record, Trajectory):
                self._add_trajectory(record)
            elif isinstance(record, Feedback):
                self._add_feedback(record)
            else:
                raise InvalidInputError(f"{type(record).__name__}: a Trajectory or a Feedback is allowed")
        except _PER_RECORD as error:
            return error
        return None

    def finish(self) -> None:
        for totals in self._totals.values():
            write_totals(self._connection, totals)
        if self._head != self._head_before:
            write_head(self._connection, self._head)

    def _add_trajectory(self, record: Trajectory) -> None:
        self._check_width(record)
        row = trajectory_row(record)
        if self._connection.execute(_INSERT_TRAJECTORY, row).get is None:
            stored = TrajectoryRow(*self._connection.execute(_SAME_TRAJECTORY, (record.id,)).get)
            # Other bytes may be the same content: a mapping in another order, 1 for 1.0.
            if stored != row and read_trajectory(stored) != record:
                raise ConflictError(f"trajectory {record.id!r}: the id is taken by other content; give each its own id")
            return
        if record.embedding is not None:
            self._head = self._head._replace(width=len(record.embedding) // 4)
        self._totals_of(record.source).add_trajectory(record)

    def _check_width(self, record: Trajectory) -> None:
        if record.embedding is None or self._head.width in (None, len(record.embedding) // 4):
            return
        raise DimensionMismatchError(
            f"trajectory {record.id!r}: an embedding of {len(record.embedding) // 4} numbers, this store's have "
            f"{self._head.width}; embed with the same model, or open a new store"
        )

    def _add_feedback(self, record: Feedback) -> None:
        rated = self._connection.execute(_RATED_TRAJECTORY, (_plain_id(record.trajectory_id),)).get
        if rated is None:
            raise UnknownIdError(
                f"feedback {record.id!r}: no trajectory {record.trajectory_id!r}; record it before its feedback"
            )
        seq, source, before = rated
        row = feedback_row(record, seq)
        if self._connection.execute(_INSERT_FEEDBACK, row).get is None:
            stored = FeedbackRow(*self._connection.execute(_SAME_FEEDBACK, (record.id,)).get)
            if stored != row and read_feedback(stored) != record:
                raise ConflictError(f"feedback {record.id!r}: the id is taken by other content; give each its own id")
            return
        self._totals_of(source).add_feedback(row.quality, before)

    def _totals_of(self, source: str) -> Totals:
        if source not in self._totals:
            self._totals[source] = read_totals(self._connection, source)
        return self._totals[source]


def _plain_id(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"trajectory_id: half of a surrogate pair at {error.start}; send valid Unicode"
        ) from None
    return value
