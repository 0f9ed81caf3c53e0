"""Storing a batch: each record goes in, is there already, or is left out with a reason that concerns it alone.

Such a reason is either found before anything of the record is written, or the part of the batch that holds it is undone
and halved until the record stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw
import msgspec

from sona.errors import (
    ConflictError,
    DimensionMismatchError,
    InvalidInputError,
    SonaError,
    StoreCorruptError,
    UnknownIdError,
)
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

# With the effective quality so far, and whether it was left out and got no feedback since. Subqueries, because the same
# as joins takes four times as long, 10 us.
_RATED_TRAJECTORY = """
SELECT t.seq, t.source,
    (SELECT f.quality FROM feedback f WHERE f.trajectory = t.seq ORDER BY f.seq DESC LIMIT 1),
    (SELECT c.role = 'left_out' AND c.feedback >= (SELECT max(f.seq) FROM feedback f WHERE f.trajectory = c.seq)
     FROM claims c WHERE c.seq = t.seq)
FROM trajectories t
WHERE t.id = ?
"""

# SQLite's errors that come of a record's values; all its others are the store's trouble.
_OF_VALUES = (apsw.ConstraintError, apsw.MismatchError, apsw.RangeError, apsw.TooBigError)


class UnstorableError(Exception):
    """A batch holds a record that can't be stored, and would fail in the same way again."""


def insert(connection: apsw.Connection, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
    """Store ``records`` in the transaction under way; for each None, or the error that left it out.

    Storing the same again changes nothing, so a batch whose fate is unknown can be given once more.

    Raises:
        UnstorableError: one of them failed half-way; roll the transaction back and give them to :func:`insert_apart`.
    """
    try:
        batch = _Batch(connection)
        results = [batch.add(record) for record in records]
        batch.finish()
    except Exception as error:
        if records and _is_of_a_record(error):
            raise UnstorableError from error
        raise
    return results


def insert_apart(connection: apsw.Connection, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
    """As :func:`insert`, with each record that can't be stored left out. Its savepoints cost a tenth more."""
    connection.execute("SAVEPOINT part")
    results: list[Exception | None]
    try:
        results = insert(connection, records)
    except UnstorableError as error:
        connection.execute("ROLLBACK TO part")
        if len(records) == 1:
            results = [_unstorable(records[0], error.__cause__)]
        else:
            half = len(records) // 2
            results = insert_apart(connection, records[:half]) + insert_apart(connection, records[half:])
    connection.execute("RELEASE part")
    return results


def _unstorable(record: Trajectory | Feedback, cause: BaseException | None) -> InvalidInputError:
    error = InvalidInputError(
        f"{type(record).__name__.lower()} {record.id!r}: {type(cause).__name__}: {cause}; it would fail again, so send "
        "it with plain values"
    )
    error.__cause__ = cause
    return error


def _is_of_a_record(error: Exception) -> bool:
    """Whether trying again would fail in the same way, for what one of the records holds."""
    if isinstance(error, apsw.Error):
        return isinstance(error, _OF_VALUES)
    return not isinstance(error, (SonaError, OSError, MemoryError))


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
        totals = self._totals_of(record.source)
        if self._connection.execute(_INSERT_TRAJECTORY, row).get is None:
            stored = TrajectoryRow(*self._connection.execute(_SAME_TRAJECTORY, (record.id,)).get)
            # Other bytes may be the same content: a mapping in another order, 1 for 1.0.
            if stored != row and read_trajectory(stored) != record:
                raise ConflictError(f"trajectory {record.id!r}: the id is taken by other content; give each its own id")
            return
        if record.embedding is not None:
            self._head = self._head._replace(width=len(record.embedding) // 4)
        totals.add_trajectory(record)

    def _check_width(self, record: Trajectory) -> None:
        if record.embedding is None or self._head.width in (None, len(record.embedding) // 4):
            return
        raise DimensionMismatchError(
            f"trajectory {record.id!r}: an embedding of {len(record.embedding) // 4} numbers, this store's have "
            f"{self._head.width}; embed with the same model, or open a new store"
        )

    def _add_feedback(self, record: Feedback) -> None:
        rated = self._connection.execute(_RATED_TRAJECTORY, (record.trajectory_id,)).get
        if rated is None:
            raise UnknownIdError(
                f"feedback {record.id!r}: no trajectory {record.trajectory_id!r}; record it before its feedback"
            )
        seq, source, before, was_settled = rated
        row = feedback_row(record, seq)
        totals = self._totals_of(source)
        if self._connection.execute(_INSERT_FEEDBACK, row).get is None:
            stored = FeedbackRow(*self._connection.execute(_SAME_FEEDBACK, (record.id,)).get)
            # Whoever gives it again can't repeat its time.
            if stored != row and msgspec.structs.replace(read_feedback(stored), at_ns=record.at_ns) != record:
                raise ConflictError(f"feedback {record.id!r}: the id is taken by other content; give each its own id")
            return
        totals.add_feedback(row.quality, before)
        if was_settled:
            self._head = self._head._replace(left_out=self._head.left_out - 1)

    def _totals_of(self, source: str) -> Totals:
        if source not in self._totals:
            self._totals[source] = read_totals(self._connection, source)
        return self._totals[source]
