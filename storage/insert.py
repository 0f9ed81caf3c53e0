"""Storing a batch: each record goes in, is there already, or is left out with a reason that concerns it alone.

Such a reason is either found before anything of the record is written, or the part of the batch that holds it is undone
and halved until the record stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
from sona.storage.arrivals import count_arrivals
from sona.storage.blobs import Blobs
from sona.storage.head import read_head, write_head
from sona.storage.new_trajectories import InFile, InRows, NewTrajectories
from sona.storage.quality import Policy, effective
from sona.storage.rows import (
    TRAJECTORY_COLUMNS,
    FeedbackRow,
    TrajectoryRow,
    Value,
    damaged,
    feedback_row,
    read_feedback,
    read_trajectory,
)
from sona.storage.sources import Totals, read_totals, write_totals
from sona.types import Feedback, Trajectory

_PER_RECORD = (ConflictError, DimensionMismatchError, InvalidInputError, StoreCorruptError, UnknownIdError)

_INSERT_TRAJECTORY = """
INSERT INTO trajectories (id, source, created_ns, embedding, payload, crc) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""
_SAME_TRAJECTORY = f"SELECT seq, {TRAJECTORY_COLUMNS} FROM trajectories WHERE id = ?"

_INSERT_FEEDBACK = """
INSERT INTO feedback (id, trajectory, quality, payload, crc) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""
_SAME_FEEDBACK = "SELECT id, trajectory, quality, payload, crc FROM feedback WHERE id = ?"

_QUALITIES = "SELECT quality FROM feedback WHERE trajectory = ? ORDER BY seq"

# With the latest quality so far, and whether it was left out and got no feedback since. Subqueries, because the same
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


Fates = Mapping[str, Exception | None]
"""By id what became of the last trajectory of that id: None, or the error that left it out."""
_NONE_BEFORE: Fates = MappingProxyType({})


def insert(
    connection: apsw.Connection,
    records: Sequence[Trajectory | Feedback],
    policy: Policy,
    blobs: Blobs,
    before: Fates = _NONE_BEFORE,
) -> list[Exception | None]:
    """Store ``records`` in the transaction under way; for each None, or the error that left it out. By ``policy`` the
    totals count a trajectory's quality; ``blobs`` takes what many trajectories consist of.

    A feedback belongs to the nearest trajectory of its id before it, here or ``before`` these records in the same
    batch, and is left out where that one is; where there is none, to the one in the store or later in the batch.

    Storing the same again changes nothing, so a batch whose fate is unknown can be given once more.

    Raises:
        UnstorableError: one of them failed half-way; roll the transaction back and give them to :func:`insert_apart`.
    """
    blobs.begin()
    try:
        batch = _Batch(connection, policy, blobs)
        results = batch.add(records, before)
        batch.finish()
    except Exception as error:
        if records and _is_of_a_record(error):
            raise UnstorableError from error
        raise
    return results


def insert_apart(
    connection: apsw.Connection,
    records: Sequence[Trajectory | Feedback],
    policy: Policy,
    blobs: Blobs,
    before: Fates = _NONE_BEFORE,
) -> list[Exception | None]:
    """As :func:`insert`, with each record that can't be stored left out. Its savepoints cost a tenth more."""
    connection.execute("SAVEPOINT part")
    results: list[Exception | None]
    try:
        results = insert(connection, records, policy, blobs, before)
    except UnstorableError as error:
        connection.execute("ROLLBACK TO part")
        if len(records) == 1:
            results = [_unstorable(records[0], error.__cause__)]
        else:
            half = len(records) // 2
            results = insert_apart(connection, records[:half], policy, blobs, before)
            fates = {**before, **_fates(records[:half], results)}
            results += insert_apart(connection, records[half:], policy, blobs, fates)
    connection.execute("RELEASE part")
    return results


def _fates(records: Sequence[Trajectory | Feedback], results: Sequence[Exception | None]) -> Fates:
    pairs = zip(records, results, strict=True)
    return {record.id: result for record, result in pairs if isinstance(record, Trajectory)}


def _unstorable(record: Trajectory | Feedback, cause: BaseException | None) -> SonaError:
    name = f"{type(record).__name__.lower()} {record.id!r}"
    if isinstance(cause, UnicodeDecodeError):  # read, not written: a text of the row that it belongs to is none
        return damaged(f"a row that {name} belongs to", str(cause))
    error = InvalidInputError(
        f"{name}: {type(cause).__name__}: {cause}; it would fail again, so send it with plain values"
    )
    error.__cause__ = cause
    return error


def _is_of_a_record(error: Exception) -> bool:
    """Whether trying again would fail in the same way, for what one of the records holds."""
    if isinstance(error, apsw.Error):
        return isinstance(error, _OF_VALUES)
    return not isinstance(error, (SonaError, OSError, MemoryError))


def _check_came_with(record: Feedback, fate: Exception | None) -> None:
    """``fate`` is that of the trajectory which a feedback belongs to."""
    if fate is None:
        return
    name = f"feedback {record.id!r}: trajectory {record.trajectory_id!r}, which it came with, was left out"
    if isinstance(fate, ConflictError):
        raise ConflictError(f"{name}, as other content has its id")
    raise UnknownIdError(f"{name}: {fate}")


class _Batch:
    """Trajectories first, then feedback: nothing is lost by the order, and one statement takes all trajectories."""

    def __init__(self, connection: apsw.Connection, policy: Policy, blobs: Blobs) -> None:
        self._connection, self._policy, self._blobs = connection, policy, blobs
        self._head = self._head_before = read_head(connection)
        self._width = self._head.width
        self._totals: dict[str, Totals] = {}
        self._new_trajectories = self._new_feedback = 0

    def add(self, records: Sequence[Trajectory | Feedback], before: Fates) -> list[Exception | None]:
        results: list[Exception | None] = [None] * len(records)
        stored = self._place_for(records)
        for place, record in enumerate(records):
            try:
                if isinstance(record, Trajectory):
                    self._check_width(record)
                    self._totals_of(record.source)
                    stored.add(place, record)
                    if self._width is None and record.embedding is not None:
                        self._width = len(record.embedding) // 4
                elif not isinstance(record, Feedback):
                    raise InvalidInputError(f"{type(record).__name__}: a Trajectory or a Feedback is allowed")
            except _PER_RECORD as error:
                results[place] = error
        self._add_trajectories(stored, results)
        fates = dict(before)
        for place, record in enumerate(records):
            if isinstance(record, Trajectory):
                fates[record.id] = results[place]
            elif isinstance(record, Feedback):
                try:
                    _check_came_with(record, fates.get(record.trajectory_id))
                    self._add_feedback(record)
                except _PER_RECORD as error:
                    results[place] = error
        return results

    def finish(self) -> None:
        """Write what is counted, and wait for the disk where it still writes."""
        for totals in self._totals.values():
            write_totals(self._connection, totals)
        if self._head != self._head_before:
            write_head(self._connection, self._head)
        if self._new_trajectories or self._new_feedback:
            count_arrivals(self._connection, self._new_trajectories, self._new_feedback)
        self._blobs.wait()

    def _add_trajectories(self, stored: NewTrajectories, results: list[Exception | None]) -> None:
        """Counted is what was not there yet."""
        if not stored.records:
            return
        last = self._connection.execute("SELECT coalesce(max(seq), 0) FROM trajectories").get
        stored.begin(last)
        before = self._connection.total_changes()
        self._connection.executemany(_INSERT_TRAJECTORY, stored.values())
        repeated = self._connection.total_changes() - before != len(stored.records)
        first = {row.id: place for place, row in reversed(stored.rows.items())} if repeated else {}
        if repeated:
            self._blobs.wait()  # what is there may have gone in just now
        for place, record in stored.records.items():
            if repeated:
                row = stored.rows[place]
                try:
                    is_new = self._is_new(record, row, after=last, first=first[row.id] == place)
                except _PER_RECORD as error:
                    results[place], is_new = error, False
                if not is_new:
                    stored.free(place)
                    continue
            self._totals[record.source].add_trajectory(record)
            self._new_trajectories += 1
            if record.embedding is not None and self._head.width is None:
                self._head = self._head._replace(width=len(record.embedding) // 4)

    def _is_new(self, record: Trajectory, row: TrajectoryRow, *, after: int, first: bool) -> bool:
        """Whether ``row``, the first of its id in this batch or not, went in after the one with seq ``after``."""
        seq, *values = self._connection.execute(_SAME_TRAJECTORY, (record.id,)).get
        if first and seq > after:
            return True
        stored = TrajectoryRow(*values)
        # Other bytes may be the same content: a mapping in another order, 1 for 1.0, another time.
        if stored != row and not read_trajectory(stored).is_again(record):
            raise ConflictError(f"trajectory {record.id!r}: the id is taken by other content; give each its own id")
        return False

    def _place_for(self, records: Sequence[Trajectory | Feedback]) -> NewTrajectories:
        """Where the trajectories of a batch are to go."""
        try:
            takes = self._blobs.takes(self._connection, [one for one in records if isinstance(one, Trajectory)])
        except InvalidInputError:  # the first has no stored form, and is left out for it
            takes = False
        return InFile(self._connection, self._blobs) if takes else InRows()

    def _check_width(self, record: Trajectory) -> None:
        if record.embedding is None or self._width is None:
            return
        if (width := len(record.embedding) // 4) != self._width:
            raise DimensionMismatchError(
                f"trajectory {record.id!r}: an embedding of {width} numbers, this store's have {self._width}; embed "
                "with the same model, or open a new store"
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
        if not self._inserted(_INSERT_FEEDBACK, row):
            stored = FeedbackRow(*self._connection.execute(_SAME_FEEDBACK, (record.id,)).get)
            # Whoever gives it again can't repeat its time.
            if stored != row and msgspec.structs.replace(read_feedback(stored), at_ns=record.at_ns) != record:
                raise ConflictError(f"feedback {record.id!r}: the id is taken by other content; give each its own id")
            return
        self._new_feedback += 1
        if self._policy == "last":
            totals.add_feedback(row.quality, before)
        else:
            self._count_by_policy(totals, seq)
        if was_settled:
            self._head = self._head._replace(left_out=self._head.left_out - 1)

    def _count_by_policy(self, totals: Totals, seq: int) -> None:
        """One more feedback for the trajectory ``seq``."""
        qualities = [quality for (quality,) in self._connection.execute(_QUALITIES, (seq,))]
        after = effective(self._policy, qualities)
        assert after is not None
        totals.add_feedback(after, effective(self._policy, qualities[:-1]))

    def _inserted(self, sql: str, row: tuple[Value, ...]) -> bool:
        """Whether it was not there yet. Asked of the connection: a RETURNING clause takes 8 us, twice the insert."""
        before = self._connection.total_changes()
        self._connection.execute(sql, row)
        return self._connection.total_changes() != before

    def _totals_of(self, source: str) -> Totals:
        if source not in self._totals:
            self._totals[source] = read_totals(self._connection, source)
        return self._totals[source]
