"""Deleting trajectories, with everything that hangs on them, so that all that is counted stays true.

A claim goes with its trajectory. Within its cycle, and within its group, the last claim takes over its number, so that
the numbers run without gaps and replay needs one lookup a draw, as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw

from sona.errors import StoreCorruptError
from sona.storage.blobs import free, lengths_of
from sona.storage.candidates import forget_candidates, has_approved
from sona.storage.claims import CLAIM_COLUMNS, DRAWN, ClaimRow, read_claim, shrink_group
from sona.storage.cycles import shrink_cycle
from sona.storage.head import read_head, write_head
from sona.storage.quality import Policy, effective
from sona.storage.replay import renew
from sona.storage.rows import (
    TRAJECTORY_COLUMNS,
    FeedbackRow,
    TrajectoryRow,
    check_crc,
    damaged,
    read_feedback,
    read_trajectory,
    row_crc,
)
from sona.storage.sources import Totals, read_totals, write_totals
from sona.types import Trajectory

_TRAJECTORY = f"SELECT {TRAJECTORY_COLUMNS}, payload FROM trajectories WHERE seq = ?"
_FEEDBACK = "SELECT seq, id, trajectory, quality, payload, crc FROM feedback WHERE trajectory = ? ORDER BY seq"
_CLAIM = f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.seq = ?"
_BY_ORDINAL = f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.cycle = ? AND c.role = ? AND c.ordinal = ?"
_BY_PLACE = f"""
SELECT {CLAIM_COLUMNS} FROM claims c
WHERE c.cycle = ? AND c.role = ? AND c.skill = ? AND c.pattern = ? AND c.place = ?
"""
_LEARNED = "SELECT source, cycle, trajectories, crc FROM learned WHERE source = ? AND cycle = ?"


@dataclass
class Deleted:
    """What was deleted, and what was to be and was not."""

    trajectories: int = 0
    feedback: int = 0
    claims: int = 0
    unlearned: int = 0
    """Left, because no cycle has taken them yet."""
    damaged: int = 0
    """Left, because a row of theirs is damaged."""

    def add(self, other: Deleted) -> None:
        """Count those of ``other`` too."""
        for name in ("trajectories", "feedback", "claims", "unlearned", "damaged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _Whole(NamedTuple):
    """A trajectory with what hangs on it."""

    seq: int
    record: Trajectory
    lengths: Counter[int]
    """Its bytes in blob files, by file."""
    qualities: list[float]
    """In the order of arrival."""
    last_feedback: int
    claim: ClaimRow | None
    has_approved: bool
    """Whether a response of it is approved, and waits for a cycle."""

    @property
    def is_settled(self) -> bool:
        """Whether a cycle took it and no later one will, as far as is known now."""
        return not self.has_approved and self.is_out

    @property
    def is_out(self) -> bool:
        """... were it not for what is approved of it."""
        return self.claim is not None and (self.claim.role in DRAWN or self.claim.feedback >= self.last_feedback)


def delete(
    connection: apsw.Connection, seqs: Iterable[int], policy: Policy, *, unlearned: bool, remember: bool
) -> Deleted:
    """Delete trajectories by their ``seq``, in the transaction under way.

    Args:
        connection: the writing one.
        seqs: of those that are gone already nothing comes.
        policy: what the totals count as a trajectory's quality.
        unlearned: also what no cycle has taken yet.
        remember: which source something was of that a cycle trained on, so that an erasure still knows.

    Raises:
        StoreCorruptError: totals, marks, what is remembered, the claim that would take over a number, or an index are
            damaged.
    """
    try:
        return _delete(connection, seqs, policy, unlearned=unlearned, remember=remember)
    except apsw.ConstraintError as error:  # of rows that are whole none breaks
        raise damaged("an index", str(error)) from error


def _delete(
    connection: apsw.Connection, seqs: Iterable[int], policy: Policy, *, unlearned: bool, remember: bool
) -> Deleted:
    work = _Deletion(connection, policy, remember)
    for seq in seqs:
        try:
            whole = _read(connection, seq)
        except StoreCorruptError:
            work.done.damaged += 1
            continue
        if whole is None:
            continue
        if not unlearned and not whole.is_settled:
            work.done.unlearned += 1
            continue
        work.delete(whole)
    work.finish()
    return work.done


def _read(connection: apsw.Connection, seq: int) -> _Whole | None:
    row = connection.execute(_TRAJECTORY, (seq,)).get
    if row is None:
        return None
    *content, payload = row
    record = read_trajectory(TrajectoryRow(*content))
    rows: list[Any] = connection.execute(_FEEDBACK, (seq,)).fetchall()
    given = [read_feedback(FeedbackRow(*row[1:])) for row in rows]
    found = connection.execute(_CLAIM, (seq,)).get
    claim = None if found is None else read_claim(found)
    # Found by an index, which may be damaged where the rows are whole.
    if any(one.trajectory_id != record.id for one in given):
        raise damaged(f"trajectory {record.id!r}", "feedback of another one stands at it")
    if claim is not None and claim.feedback not in [row[0] for row in rows]:
        raise damaged(f"trajectory {record.id!r}", "the feedback that its claim names is not found at it")
    last_feedback = rows[-1][0] if rows else 0
    approved = has_approved(connection, record.id)
    return _Whole(seq, record, lengths_of(payload), [one.quality for one in given], last_feedback, claim, approved)


@dataclass
class _Deletion:
    """One transaction's."""

    connection: apsw.Connection
    policy: Policy
    remember: bool
    done: Deleted = field(default_factory=Deleted)

    def __post_init__(self) -> None:
        self._head = self._head_before = read_head(self.connection)
        self._totals: dict[str, Totals] = {}
        self._lengths = Counter[int]()
        self._drawn = False

    def delete(self, whole: _Whole) -> None:
        if whole.claim is not None:
            self._delete_claim(whole, whole.claim)
        forget_candidates(self.connection, whole.record.id)
        self.connection.execute("DELETE FROM feedback WHERE trajectory = ?", (whole.seq,))
        self.connection.execute("DELETE FROM trajectories WHERE seq = ?", (whole.seq,))
        self._lengths += whole.lengths
        source = whole.record.source
        if source not in self._totals:
            self._totals[source] = read_totals(self.connection, source)
        quality = effective(self.policy, whole.qualities)
        self._totals[source].remove_trajectory(whole.record, len(whole.qualities), quality)
        self.done.trajectories += 1
        self.done.feedback += len(whole.qualities)

    def finish(self) -> None:
        free(self.connection, self._lengths)
        for totals in self._totals.values():
            write_totals(self.connection, totals)
        if self._head != self._head_before:
            write_head(self.connection, self._head)
        if self._drawn:
            renew(self.connection)

    def _delete_claim(self, whole: _Whole, claim: ClaimRow) -> None:
        self.connection.execute("DELETE FROM claims WHERE seq = ?", (claim.seq,))
        self.done.claims += 1
        if claim.role in DRAWN:
            self._drawn = True
            self._close_gaps(claim)
            if self.remember and claim.role == "train":
                self._remember(whole.record.source, claim.cycle)
        elif whole.is_out:
            self._head = self._head._replace(left_out=self._head.left_out - 1)

    def _close_gaps(self, claim: ClaimRow) -> None:
        """The last claim of the cycle, and the last one of the group, take the numbers that are free now."""
        left = shrink_cycle(self.connection, claim.cycle, claim.role)
        if claim.ordinal != left:
            last = self._claim(_BY_ORDINAL, claim.cycle, claim.role, left)
            self._move(last._replace(ordinal=claim.ordinal))
        group = (claim.cycle, claim.role, claim.skill, claim.pattern)
        size = shrink_group(self.connection, *group)
        if claim.place != size:
            last = self._claim(_BY_PLACE, *group, size)
            self._move(last._replace(place=claim.place))

    def _claim(self, sql: str, *key: int | str) -> ClaimRow:
        row = self.connection.execute(sql, key).get
        if row is None:
            cycle, role, *rest = key
            raise damaged(f"claim {', '.join(map(repr, rest))} ({role}) of cycle {cycle}", "it is missing")
        return read_claim(row)

    def _move(self, claim: ClaimRow) -> None:
        values = (claim.ordinal, claim.place, row_crc(*claim[:-1]), claim.seq)
        self.connection.execute("UPDATE claims SET ordinal = ?, place = ?, crc = ? WHERE seq = ?", values)

    def _remember(self, source: str, cycle: int) -> None:
        row = self.connection.execute(_LEARNED, (source, cycle)).get
        before = 0
        if row is not None:
            *known, crc = row
            check_crc(crc, *known, row=f"what cycle {cycle} learned")
            before = known[-1]
        values = (source, cycle, before + 1)
        self.connection.execute("INSERT OR REPLACE INTO learned VALUES (?, ?, ?, ?)", (*values, row_crc(*values)))
