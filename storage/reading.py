"""What can be asked of a store. Each function reads one snapshot and checks every row that it returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import apsw
import msgspec

from sona.errors import UnknownIdError
from sona.ports import Collected, SourceCounts, StoreCounts, Stored
from sona.storage.head import read_head
from sona.storage.rows import FeedbackRow, TrajectoryRow, damaged, read_feedback, read_trajectory
from sona.storage.sizes import bytes_of
from sona.storage.sources import read_all_totals
from sona.types import Feedback

# A trajectory's row, and that of its latest feedback.
STORED_COLUMNS = """
    t.seq, t.id, t.source, t.created_ns, t.embedding, content(t.payload), t.crc,
    f.id, f.trajectory, f.quality, f.payload, f.crc, f.seq
"""
LATEST_FEEDBACK = """
LEFT JOIN feedback f ON f.seq = (SELECT max(g.seq) FROM feedback g WHERE g.trajectory = t.seq)
"""

_SOURCES_OF = "SELECT t.id, t.source FROM json_each(?) j JOIN trajectories t ON t.id = j.value"
_BY_ID = f"SELECT {STORED_COLUMNS} FROM trajectories t {LATEST_FEEDBACK} WHERE t.id = ?"

_AFTER = f"SELECT {STORED_COLUMNS} FROM trajectories t {LATEST_FEEDBACK} WHERE t.seq > ? ORDER BY t.seq LIMIT ?"

# Only feedback after the watermark is looked at; none before it makes a trajectory new.
COLLECT = f"""
WITH fresh AS MATERIALIZED (
    SELECT n.trajectory AS seq, n.seq AS first
    FROM feedback n LEFT JOIN claims c ON c.seq = n.trajectory
    WHERE n.seq > ?
      AND (c.seq IS NULL OR c.role = 'left_out' AND n.seq > c.feedback)
      AND NOT EXISTS (
          SELECT 1 FROM feedback e
          WHERE e.trajectory = n.trajectory AND e.seq < n.seq AND e.seq > coalesce(c.feedback, 0)
      )
    ORDER BY n.seq
    LIMIT ?
)
SELECT {STORED_COLUMNS}
FROM fresh CROSS JOIN trajectories t ON t.seq = fresh.seq {LATEST_FEEDBACK}
ORDER BY fresh.first
"""

_FEEDBACK_OF = "SELECT id, trajectory, quality, payload, crc FROM feedback WHERE trajectory = ? ORDER BY seq"


def read_stored(row: tuple[object, ...], *claimed: tuple[str, bytes | None]) -> Stored:
    """A row of STORED_COLUMNS, with the token ids that a claim keeps."""
    seq, trajectory, feedback = row[0], row[1:7], row[7:12]
    quality, feedback_seq = None, row[12]
    if feedback[0] is not None:
        latest = FeedbackRow(*feedback)  # type: ignore[arg-type]  # the tables are STRICT
        _check_owner(read_feedback(latest), str(trajectory[0]))
        quality = latest.quality
    record = read_trajectory(TrajectoryRow(*trajectory), *claimed)  # type: ignore[arg-type]
    return Stored(seq=seq, trajectory=record, quality=quality, feedback_seq=feedback_seq)  # type: ignore[arg-type]


def _check_owner(feedback: Feedback, trajectory_id: str) -> None:
    """A damaged index, or a row under another's number, may bring together what does not belong together."""
    if feedback.trajectory_id != trajectory_id:
        raise damaged(f"trajectory {trajectory_id!r}", f"feedback {feedback.id!r} stands at it, of another trajectory")


def get(connection: apsw.Connection, trajectory_id: str) -> Stored:
    """One trajectory; UnknownIdError where there is none of this id."""
    row = connection.execute(_BY_ID, (trajectory_id,)).get
    if row is None:
        raise _unknown(trajectory_id)
    return read_stored(row)


def source_of(connection: apsw.Connection, trajectory_id: str) -> str | None:
    """Who sent a trajectory; None where there is none of this id."""
    source: str | None = connection.execute("SELECT source FROM trajectories WHERE id = ?", (trajectory_id,)).get
    return source


def sources_of(connection: apsw.Connection, trajectory_ids: Sequence[str]) -> dict[str, str]:
    """Who sent those of them that are there, by id."""
    return dict(connection.execute(_SOURCES_OF, (msgspec.json.encode(trajectory_ids).decode(),)))


def has(connection: apsw.Connection, trajectory_id: str) -> bool:
    """Whether there is a trajectory of this id."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM trajectories WHERE id = ?)", (trajectory_id,)).get)


def page(connection: apsw.Connection, after_seq: int, size: int) -> list[Stored]:
    """The next ``size`` trajectories in the order of arrival."""
    return [read_stored(row) for row in connection.execute(_AFTER, (after_seq, size))]


def feedback_of(connection: apsw.Connection, trajectory_id: str) -> list[Feedback]:
    """All feedback for a trajectory, in the order of arrival; UnknownIdError where there is no such trajectory."""
    seq = connection.execute("SELECT seq FROM trajectories WHERE id = ?", (trajectory_id,)).get
    if seq is None:
        raise _unknown(trajectory_id)
    found = [read_feedback(FeedbackRow(*row)) for row in connection.execute(_FEEDBACK_OF, (seq,))]
    for feedback in found:
        _check_owner(feedback, trajectory_id)
    return found


def _unknown(trajectory_id: str) -> UnknownIdError:
    return UnknownIdError(
        f"trajectory {trajectory_id!r}: not in this store; see that it was recorded, and flush() first"
    )


def collect(connection: apsw.Connection, limit: int) -> Collected:
    """Trajectories with feedback that no cycle has heard of and that may still be claimed, in its order."""
    watermark = read_head(connection).watermark
    rows = tuple(read_stored(row) for row in connection.execute(COLLECT, (watermark, limit)))
    for row in rows:
        if row.quality is None:  # it came by its feedback, which a damaged index does not find again
            raise damaged(f"trajectory {row.trajectory.id!r}", "its feedback is not found at it")
    waiting = sum(totals.trajectories - totals.rated for totals in read_all_totals(connection))
    return Collected(rows=rows, waiting_for_feedback=waiting)


def counts(connection: apsw.Connection, files: Iterable[Path]) -> StoreCounts:
    """Sizes of the store, and of ``files``."""
    totals = read_all_totals(connection)
    trajectories = sum(one.trajectories for one in totals)
    rated = sum(one.rated for one in totals)
    left_out = read_head(connection).left_out
    cycles, trained, held_out = connection.execute("SELECT count(*), total(train), total(held_out) FROM cycles").get
    return StoreCounts(
        trajectories=trajectories,
        feedback=sum(one.feedback for one in totals),
        waiting_for_feedback=trajectories - rated,
        uncollected=rated - int(trained + held_out) - left_out,
        trained=int(trained),
        held_out=int(held_out),
        left_out=left_out,
        cycles=cycles,
        bytes_on_disk=bytes_of(files),
    )


def sources(connection: apsw.Connection) -> list[SourceCounts]:
    """What each source sent, by name."""
    return [totals.counts() for totals in read_all_totals(connection)]
