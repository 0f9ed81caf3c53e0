"""Everything that is counted, counted anew from the rows: what a doctor compares, and what a repair writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from math import isclose
from operator import itemgetter
from typing import Any, cast

import apsw

from sona.errors import StoreCorruptError
from sona.ports import Role
from sona.storage.quality import Policy, effective
from sona.storage.rows import TRAJECTORY_COLUMNS, TrajectoryRow, read_trajectory
from sona.storage.sources import Totals
from sona.types import Trajectory

Group = tuple[int, Role, str, str]
"""Cycle, role, skill, pattern."""

_TRAJECTORIES = f"SELECT seq, {TRAJECTORY_COLUMNS} FROM trajectories ORDER BY seq"
_QUALITIES = "SELECT trajectory, quality FROM feedback ORDER BY trajectory, seq"
_GROUPS = """
SELECT cycle, role, skill, pattern, count(*) FROM claims WHERE role <> 'left_out' GROUP BY cycle, role, skill, pattern
"""
_LEFT_OUT = """
SELECT count(*) FROM claims c
WHERE c.role = 'left_out' AND c.feedback >= (SELECT max(f.seq) FROM feedback f WHERE f.trajectory = c.seq)
"""
# Of a cycle and role, and of a group: those whose numbers do not run from 0 to one below how many they are.
_ORDINAL_GAPS = """
SELECT cycle, role FROM claims WHERE role <> 'left_out' GROUP BY cycle, role
HAVING min(ordinal) <> 0 OR max(ordinal) <> count(*) - 1 OR count(DISTINCT ordinal) <> count(*)
"""
_PLACE_GAPS = """
SELECT cycle, role, skill, pattern FROM claims WHERE role <> 'left_out' GROUP BY cycle, role, skill, pattern
HAVING min(place) <> 0 OR max(place) <> count(*) - 1 OR count(DISTINCT place) <> count(*)
"""
# Up to the watermark everything that was rated is claimed, by the feedback there or a later one.
_PASSED = """
SELECT DISTINCT f.trajectory FROM feedback f LEFT JOIN claims c ON c.seq = f.trajectory
WHERE f.seq <= ? AND (c.seq IS NULL OR c.role = 'left_out' AND f.seq > c.feedback)
"""

# A cycle's row counts what it took for good, and cycles are numbered from 1 without gaps.
_SHORT = """
SELECT EXISTS (
    SELECT 1
    FROM cycles y LEFT JOIN (SELECT cycle, count(*) AS own FROM claims WHERE role <> 'left_out' GROUP BY cycle) c
    ON c.cycle = y.cycle
    WHERE y.train + y.held_out > coalesce(c.own, 0)
) OR (SELECT count(*) FROM cycles)
    < (SELECT max(cycle) FROM (SELECT cycle FROM cycles UNION ALL SELECT cycle FROM claims))
"""
EVERYTHING = 2**63 - 1
"""A watermark up to which everything lies."""


class Widths:
    """Which trajectories have embeddings of another width than the store's, or where nothing tells it than the first
    one's.
    """

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.others: list[int] = []
        """Their ``seq``."""

    def note(self, seq: int, record: Trajectory) -> None:
        """Look at one, in the order of arrival."""
        if record.embedding is None:
            return
        width = len(record.embedding) // 4
        if self.width is None:
            self.width = width
        elif width != self.width:
            self.others.append(seq)


def count_totals(
    connection: apsw.Connection,
    policy: Policy,
    on_damaged: Callable[[int], None] = lambda seq: None,
    on_read: Callable[[int, Trajectory], None] = lambda seq, record: None,
) -> dict[str, Totals]:
    """The totals of each source; ``on_damaged`` is told of trajectories that can't be read, which do not count, and
    ``on_read`` of all others, by their ``seq``.
    """
    totals: dict[str, Totals] = {}
    qualities = _qualities(connection)
    of, own = next(qualities, (0, []))
    for seq, *row in connection.execute(_TRAJECTORIES):
        while of and of < seq:  # of a trajectory that is not there
            of, own = next(qualities, (0, []))
        given = own if of == seq else []
        try:
            record = read_trajectory(TrajectoryRow(*cast(Any, row)))
        except StoreCorruptError:
            on_damaged(cast(int, seq))
            continue
        on_read(cast(int, seq), record)
        one = totals.setdefault(record.source, Totals(record.source))
        one.add_trajectory(record)
        one.feedback += len(given)
        if (quality := effective(policy, given)) is not None:
            one.rated += 1
            one.quality_sum += quality
    return totals


def _qualities(connection: apsw.Connection) -> Iterator[tuple[int, list[float]]]:
    """By trajectory, the qualities that it was given, in the order of arrival."""
    rows: Iterator[Any] = connection.execute(_QUALITIES)
    for seq, pairs in groupby(rows, key=itemgetter(0)):
        yield seq, [quality for _, quality in pairs]


def is_about(found: Totals, counted: Totals) -> bool:
    """Whether totals are those counted, but for the rounding of sums that were moved along for years."""
    for name in ("reward_sum", "quality_sum"):
        if not isclose(getattr(found, name), getattr(counted, name), rel_tol=1e-6, abs_tol=1e-6):
            return False
    exact = ("trajectories", "feedback", "steps", "rewards", "rated", "completed", "failed", "abandoned")
    return all(getattr(found, name) == getattr(counted, name) for name in exact)


def count_groups(connection: apsw.Connection) -> Counter[Group]:
    """How many claims there are of each cycle, role, skill and pattern, but for what was left out."""
    rows: list[Any] = connection.execute(_GROUPS).fetchall()
    return Counter({(cycle, role, skill, pattern): size for cycle, role, skill, pattern, size in rows})


def count_left_out(connection: apsw.Connection) -> int:
    """How many trajectories were left out and got no feedback since."""
    return int(connection.execute(_LEFT_OUT).get)


def gaps(connection: apsw.Connection) -> list[tuple[Any, ...]]:
    """The cycles and roles, and the groups, in which the claims' numbers have gaps."""
    return [*connection.execute(_ORDINAL_GAPS).fetchall(), *connection.execute(_PLACE_GAPS).fetchall()]


def claims_are_short(connection: apsw.Connection) -> bool:
    """Whether claims are missing of what cycles learned from or held out; of what they left out nothing tells."""
    return bool(connection.execute(_SHORT).get)


def passed_by(connection: apsw.Connection, watermark: int) -> list[int]:
    """The trajectories that no cycle has taken, and that none would collect: their claims were lost."""
    return [int(cast(int, row[0])) for row in connection.execute(_PASSED, (watermark,))]
