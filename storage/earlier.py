"""With what quality the version in force learned a trajectory before it was rated anew.

Known is what a cycle claimed that published an ancestor of that version, or the version itself. A cycle that the gate
rejected, or that was rolled back, has claims too, and left nothing of them in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import apsw
import msgspec

from sona.ports import Stored
from sona.storage.claims import claim_on
from sona.storage.given_up import GivenUp, read_given_up
from sona.storage.head import read_head
from sona.storage.quality import Policy, effective
from sona.storage.rows import FeedbackRow, damaged, read_feedback

_LINEAGE = """
WITH RECURSIVE lineage (parent, cycle) AS (
    SELECT parent, cycle FROM versions WHERE id = ?
    UNION ALL
    SELECT v.parent, v.cycle FROM lineage l JOIN versions v ON v.id = l.parent
)
SELECT cycle FROM lineage
"""
_FEEDBACK = "SELECT id, trajectory, quality, payload, crc FROM feedback"
_THE_ONE = f"{_FEEDBACK} WHERE trajectory = ? AND seq = ?"
_UP_TO = f"{_FEEDBACK} WHERE trajectory = ? AND seq <= ? ORDER BY seq"


def with_learned(connection: apsw.Connection, rows: Sequence[Stored], policy: Policy) -> tuple[Stored, ...]:
    """``rows`` with what the version in force learned of each. What is new costs one lookup."""
    earlier = _Earlier(connection)
    return tuple(_with(row, earlier.claim(row.seq), connection, policy) for row in rows)


def _with(row: Stored, claim: GivenUp | None, connection: apsw.Connection, policy: Policy) -> Stored:
    if claim is None:
        return row
    sql = _THE_ONE if policy == "last" else _UP_TO
    found = [read_feedback(FeedbackRow(*one)) for one in connection.execute(sql, (row.seq, claim.feedback))]
    quality = effective(policy, [feedback.quality for feedback in found])
    if quality is None or any(feedback.trajectory_id != row.trajectory.id for feedback in found):
        raise damaged(f"trajectory {row.trajectory.id!r}", f"feedback seq {claim.feedback} is not found at it")
    return msgspec.structs.replace(
        row, learned_quality=quality, learned_cycle=claim.cycle, learned_pattern=claim.pattern
    )


class _Earlier:
    """The claims that stand, and those that gave way to what has fallen since; each is read once."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._given_up: dict[int, dict[int, GivenUp]] = {}

    def claim(self, seq: int) -> GivenUp | None:
        """The latest claim on a trajectory by a cycle that stands; None where there is none."""
        latest = claim_on(self._connection, seq)
        if latest is None:
            return None
        claim: GivenUp | None = GivenUp(seq=seq, cycle=latest.cycle, feedback=latest.feedback, pattern=latest.pattern)
        while claim is not None and claim.cycle not in self._standing:
            claim = self._before(claim)
        return claim

    @cached_property
    def _standing(self) -> set[int]:
        """The cycles that published what the version in force descends from."""
        return {cycle for (cycle,) in self._connection.execute(_LINEAGE, (read_head(self._connection).version,))}

    def _before(self, claim: GivenUp) -> GivenUp | None:
        if claim.cycle not in self._given_up:
            self._given_up[claim.cycle] = read_given_up(self._connection, claim.cycle)
        found = self._given_up[claim.cycle].get(claim.seq)
        if found is not None and found.cycle >= claim.cycle:
            raise damaged(f"what gave way to cycle {claim.cycle}", f"it names cycle {found.cycle}")
        return found
