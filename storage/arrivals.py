"""How many records come in, minute by minute: what rates are read from, also by another process."""

from __future__ import annotations

import time
from collections.abc import Mapping

import apsw

from sona.ports import Arrivals
from sona.storage.rows import check_crc, row_crc
from sona.storage.schema import ARRIVALS_SINCE
from sona.storage.state import read_state

MINUTE_NS = 60 * 10**9
KEPT_MINUTES = 7 * 24 * 60
"""So many are kept, those nearest to now. No age is looked at: a clock that jumps ahead for a moment would take all."""
WINDOWS: Mapping[str, int] = {"minute": 1, "hour": 60, "day": 24 * 60}
"""By name, in minutes."""

_READ = "SELECT minute, trajectories, feedback, crc FROM arrivals WHERE minute = ?"
_FORGET = """DELETE FROM arrivals WHERE minute IN (
    SELECT minute FROM arrivals ORDER BY abs(minute - ?) DESC LIMIT max((SELECT count(*) FROM arrivals) - ?, 0)
)"""
_SINCE = "SELECT minute, trajectories, feedback, crc FROM arrivals WHERE minute > ? AND minute <= ?"


def count_arrivals(connection: apsw.Connection, trajectories: int, feedback: int) -> None:
    """Add what is stored now, in the transaction under way; of over :data:`KEPT_MINUTES` the farthest go."""
    minute = time.time_ns() // MINUTE_NS
    row = connection.execute(_READ, (minute,)).get
    if row is not None:
        _, before, rated = _checked(row)
        trajectories, feedback = trajectories + before, feedback + rated
    values = (minute, trajectories, feedback)
    connection.execute("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?, ?)", (*values, row_crc(*values)))
    if row is None:
        connection.execute(_FORGET, (minute, KEPT_MINUTES))


def read_arrivals(connection: apsw.Connection, now_ns: int) -> dict[str, Arrivals]:
    """What came in within each of :data:`WINDOWS` up to ``now_ns``, by whole minutes, the last one of which is under
    way. A window that began before anything was counted is as long as the counting.
    """
    now = now_ns // MINUTE_NS
    since = int(read_state(connection, ARRIVALS_SINCE) or b"0")
    found: dict[str, Arrivals] = {}
    for name, minutes in WINDOWS.items():
        rows = [_checked(row) for row in connection.execute(_SINCE, (now - minutes, now))]
        began_ns = max((now - minutes + 1) * MINUTE_NS, since)
        found[name] = Arrivals(
            trajectories=sum(row[1] for row in rows),
            feedback=sum(row[2] for row in rows),
            seconds=max(now_ns - began_ns, 0) / 1e9,
        )
    return found


def _checked(row: tuple[int, int, int, int]) -> tuple[int, int, int]:
    minute, trajectories, feedback, crc = row
    check_crc(crc, minute, trajectories, feedback, row=f"arrivals of minute {minute}")
    return minute, trajectories, feedback
