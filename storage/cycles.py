"""Cycles in the store: taking trajectories exactly once, in one transaction with the report and the version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from sona.candidate import Settled
from sona.errors import CycleError
from sona.ports import Claim, Role
from sona.storage.candidates import settle
from sona.storage.claims import insert_claims
from sona.storage.head import Head, read_head, write_head
from sona.storage.rows import check_crc, damaged, decode, encode, row_crc
from sona.storage.schema import insert_version
from sona.types import CycleReport, Version

_CYCLES = "SELECT cycle, status, version, train, held_out, left_out, report, crc FROM cycles"

_FIRST_NEW = """
SELECT f.seq
FROM feedback f LEFT JOIN claims c ON c.seq = f.trajectory
WHERE f.seq > ? AND (c.seq IS NULL OR c.role = 'left_out' AND f.seq > c.feedback)
ORDER BY f.seq
LIMIT 1
"""


class CycleRow(NamedTuple):
    """The columns of a cycle, in the table's order."""

    cycle: int
    status: str
    version: str | None
    train: int
    held_out: int
    left_out: int
    report: bytes
    crc: int


def _read_cycle(row: tuple[Any, ...]) -> CycleRow:
    cycle = CycleRow(*row)
    check_crc(cycle.crc, *cycle[:-1], row=f"cycle {cycle.cycle}")
    return cycle


def read_cycles(connection: apsw.Connection, after_cycle: int) -> list[CycleRow]:
    """All cycles with a higher number, oldest first."""
    return [_read_cycle(row) for row in connection.execute(f"{_CYCLES} WHERE cycle > ? ORDER BY cycle", (after_cycle,))]


def read_reports(connection: apsw.Connection, limit: int) -> list[CycleReport]:
    """The newest ``limit`` reports, newest first."""
    rows = [_read_cycle(row) for row in connection.execute(f"{_CYCLES} ORDER BY cycle DESC LIMIT ?", (limit,))]
    return [decode(row.report, CycleReport, f"report of cycle {row.cycle}") for row in rows]


def shrink_cycle(connection: apsw.Connection, number: int, role: Role) -> int:
    """Count one claim of ``role``, train or held_out, less in a cycle's row, in the transaction under way, as its
    trajectory was deleted; returns how many are left. The report keeps the numbers of the day.
    """
    row = connection.execute(f"{_CYCLES} WHERE cycle = ?", (number,)).get
    if row is None:
        raise damaged(f"cycle {number}", "it is missing")
    cycle = _read_cycle(row)
    left = (cycle.train if role == "train" else cycle.held_out) - 1
    cycle = cycle._replace(train=left) if role == "train" else cycle._replace(held_out=left)
    values = (cycle.train, cycle.held_out, row_crc(*cycle[:-1]), number)
    connection.execute("UPDATE cycles SET train = ?, held_out = ?, crc = ? WHERE cycle = ?", values)
    return left


def next_cycle(connection: apsw.Connection) -> int:
    """The number after the last committed cycle's."""
    return int(connection.execute("SELECT coalesce(max(cycle), 0) + 1 FROM cycles").get)


def commit(
    connection: apsw.Connection,
    report: CycleReport,
    claims: Sequence[Claim],
    version: Version | None,
    settled: Sequence[Settled] = (),
) -> None:
    """Add a cycle to the transaction under way: its claims, its report, its version, what it did with approved
    candidates, and the new marks.

    Raises:
        CycleError: a claim on a trajectory that is claimed (for good, or by its latest feedback), unrated or not there;
            a candidate that is not approved (any more); or a report or version that does not follow from what is
            stored.
    """
    head = read_head(connection)
    _check_follows(report, version, head, next_cycle(connection))
    if version is not None and _is_taken(connection, version.id):
        raise CycleError(f"version {version.id!r}: the id is taken; give each version its own")
    left_out = head.left_out + insert_claims(connection, report.cycle, claims)
    settle(connection, report.cycle, settled, published=version is not None)
    row = cycle_row(report, claims)
    connection.execute(
        """
        INSERT INTO cycles (cycle, status, version, train, held_out, left_out, report, crc)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        """,
        row,
    )
    if version is not None:
        insert_version(connection, version)
        head = head._replace(version=version.id)
    watermark = watermark_after(connection, head.watermark)
    write_head(connection, head._replace(watermark=watermark, left_out=left_out))


def landed(connection: apsw.Connection, row: CycleRow) -> bool:
    """Whether this very cycle is in the store: what a commit of unknown outcome came to."""
    stored = connection.execute(f"{_CYCLES} WHERE cycle = ?", (row.cycle,)).get
    return stored is not None and _read_cycle(stored) == row


def cycle_row(report: CycleReport, claims: Sequence[Claim]) -> CycleRow:
    """The row that a cycle is kept in."""
    count = Counter[str](claim.role for claim in claims)
    taken = (count["train"], count["held_out"], count["left_out"])
    values = (report.cycle, report.status, report.version, *taken, encode(report))
    return CycleRow(*values, row_crc(*values))


def _check_follows(report: CycleReport, version: Version | None, head: Head, number: int) -> None:
    named = None if version is None else version.id
    if report.cycle != number:
        raise CycleError(f"cycle {report.cycle}: the next one is {number}; take its number from next_cycle()")
    if report.version != named or (report.status == "published") != (version is not None):
        raise CycleError(
            f"cycle {number}: a report of version {report.version!r}, {report.status}, came with version {named!r}; "
            "a published cycle brings the version that its report names, and no other brings one"
        )
    if version is not None and (version.parent != head.version or version.cycle != number):
        raise CycleError(
            f"version {version.id!r} of cycle {version.cycle} has the parent {version.parent!r}, but cycle {number} "
            f"would follow {head.version!r}; run the cycle again from the current version"
        )


def _is_taken(connection: apsw.Connection, version_id: str) -> bool:
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM versions WHERE id = ?)", (version_id,)).get)


def watermark_after(connection: apsw.Connection, before: int) -> int:
    """The last feedback, from ``before`` on, up to which none makes a trajectory new."""
    first = connection.execute(_FIRST_NEW, (before,)).get
    if first is not None:
        return int(first) - 1
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM feedback").get)
