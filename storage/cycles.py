"""Cycles in the store: taking trajectories exactly once, and drawing from what earlier cycles took.

What was left out may be taken again when newer feedback has come: it may have been corrected upwards. What was trained
on or held out never is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import apsw
import numpy as np

from sona.errors import CycleError, InvalidInputError
from sona.ports import Claim, Role, Stored
from sona.storage.head import Head, read_head, write_head
from sona.storage.reading import LATEST_FEEDBACK, STORED_COLUMNS, read_stored
from sona.storage.rows import check_crc, damaged, decode, encode, row_crc
from sona.storage.schema import insert_version
from sona.types import CycleReport, Version

ROLES: tuple[Role, ...] = get_args(Role)
DRAWN: tuple[Role, ...] = ("train", "held_out")
"""What a cycle took for good; only of these have the ordinals no gaps."""

_CYCLES = "SELECT cycle, status, version, train, held_out, left_out, report, crc FROM cycles"

# The latest feedback of a trajectory, and whether another one is of it.
_RATED = """
SELECT max(seq), (SELECT trajectory = ?1 FROM feedback WHERE seq = ?2) FROM feedback WHERE trajectory = ?1
"""

_CLAIM_COLUMNS = "c.cycle, c.role, c.ordinal, c.seq, c.feedback, c.prompt_ids, c.response_ids, c.crc"
_CLAIM_ON = f"SELECT {_CLAIM_COLUMNS} FROM claims c WHERE c.seq = ?"
_CLAIMS_OF = f"SELECT {_CLAIM_COLUMNS} FROM claims c WHERE c.cycle = ? ORDER BY c.role, c.ordinal"

_INSERT_CLAIM = """
INSERT INTO claims (cycle, role, ordinal, seq, feedback, prompt_ids, response_ids, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

_FIRST_NEW = """
SELECT f.seq
FROM feedback f LEFT JOIN claims c ON c.seq = f.trajectory
WHERE f.seq > ? AND (c.seq IS NULL OR c.role = 'left_out' AND f.seq > c.feedback)
ORDER BY f.seq
LIMIT 1
"""

_LINEAGE = """
WITH RECURSIVE lineage (id, parent) AS (
    SELECT id, parent FROM versions WHERE id = ?
    UNION ALL
    SELECT v.id, v.parent FROM lineage l JOIN versions v ON v.id = l.parent
)
SELECT id FROM lineage
"""

DRAW = f"""
SELECT {_CLAIM_COLUMNS}, {STORED_COLUMNS}
FROM claims c JOIN trajectories t ON t.seq = c.seq {LATEST_FEEDBACK}
WHERE c.cycle = ? AND c.role = ? AND c.ordinal = ?
"""


class ClaimRow(NamedTuple):
    """The columns of a claim, in the order of its checksum."""

    cycle: int
    role: Role
    ordinal: int
    seq: int
    feedback: int
    prompt_ids: bytes | None
    response_ids: bytes | None
    crc: int


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


def _read_claim(row: tuple[Any, ...]) -> ClaimRow:
    claim = ClaimRow(*row)
    check_crc(claim.crc, *claim[:-1], row=f"claim {claim.ordinal} ({claim.role}) of cycle {claim.cycle}")
    return claim


def read_claims(connection: apsw.Connection, cycle: int) -> list[Claim]:
    """What a cycle took and no later one took again, by role and ordinal."""
    rows = [_read_claim(row) for row in connection.execute(_CLAIMS_OF, (cycle,))]
    return [
        Claim(
            seq=row.seq,
            role=row.role,
            feedback_seq=row.feedback,
            prompt_ids=row.prompt_ids,
            response_ids=row.response_ids,
        )
        for row in rows
    ]


def read_reports(connection: apsw.Connection, limit: int) -> list[CycleReport]:
    """The newest ``limit`` reports, newest first."""
    rows = [_read_cycle(row) for row in connection.execute(f"{_CYCLES} ORDER BY cycle DESC LIMIT ?", (limit,))]
    return [decode(row.report, CycleReport, f"report of cycle {row.cycle}") for row in rows]


def next_cycle(connection: apsw.Connection) -> int:
    """The number after the last committed cycle's."""
    return int(connection.execute("SELECT coalesce(max(cycle), 0) + 1 FROM cycles").get)


def commit(connection: apsw.Connection, report: CycleReport, claims: Sequence[Claim], version: Version | None) -> None:
    """Add a cycle to the transaction under way: its claims, its report, its version, and the new marks.

    Raises:
        CycleError: a claim on a trajectory that is claimed (for good, or by its latest feedback), unrated or not there,
            or a report or version that does not follow from what is stored.
    """
    head = read_head(connection)
    _check_follows(report, version, head, next_cycle(connection))
    if version is not None and _is_taken(connection, version.id):
        raise CycleError(f"version {version.id!r}: the id is taken; give each version its own")
    left_out = head.left_out
    for claim, ordinal in _numbered(claims):
        is_settled = _insert_claim(connection, report.cycle, claim, ordinal)
        left_out += claim.role == "left_out" and is_settled
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
    watermark = _watermark(connection, head.watermark)
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


def _numbered(claims: Sequence[Claim]) -> list[tuple[Claim, int]]:
    """Each claim with its place among those of its role."""
    ordinals = dict.fromkeys(ROLES, -1)
    numbered = []
    for claim in claims:
        if claim.role not in ordinals:
            raise InvalidInputError(f"role {claim.role!r}: one of {', '.join(ROLES)} is allowed")
        ordinals[claim.role] += 1
        numbered.append((claim, ordinals[claim.role]))
    return numbered


def _insert_claim(connection: apsw.Connection, cycle: int, claim: Claim, ordinal: int) -> bool:
    """Whether the trajectory has no feedback beyond the one that it is claimed with."""
    latest, is_its_own = connection.execute(_RATED, (claim.seq, claim.feedback_seq)).get
    if latest is None:
        raise CycleError(
            f"trajectory seq {claim.seq}: not in the store, or without feedback; claim what collect() returns"
        )
    if claim.feedback_seq is not None and not is_its_own:
        raise CycleError(
            f"trajectory seq {claim.seq}: feedback seq {claim.feedback_seq} is not of it; claim what collect() returns"
        )
    feedback = latest if claim.feedback_seq is None else claim.feedback_seq
    _give_up_left_out(connection, cycle, claim.seq, feedback)
    values = (cycle, claim.role, ordinal, claim.seq, feedback, claim.prompt_ids, claim.response_ids)
    connection.execute(_INSERT_CLAIM, (*values, row_crc(*values)))
    return bool(feedback == latest)


def _give_up_left_out(connection: apsw.Connection, cycle: int, seq: int, feedback: int) -> None:
    """Remove the claim on a trajectory that was left out before ``feedback`` came; any other one stays for good."""
    row = connection.execute(_CLAIM_ON, (seq,)).get
    if row is None:
        return
    claim = _read_claim(row)
    if claim.role != "left_out" or claim.cycle == cycle or claim.feedback >= feedback:
        raise CycleError(
            f"trajectory seq {seq}: cycle {claim.cycle} has claimed it; claim what collect() returns, once"
        )
    connection.execute("DELETE FROM claims WHERE seq = ?", (seq,))


def _watermark(connection: apsw.Connection, before: int) -> int:
    first = connection.execute(_FIRST_NEW, (before,)).get
    if first is not None:
        return int(first) - 1
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM feedback").get)


class Lineage(NamedTuple):
    """The cycles that may be drawn from, and how many claims of one role the cycles up to each have."""

    version: str
    last_cycle: int
    cycles: list[int]
    ends: np.ndarray[tuple[int], np.dtype[np.int64]]


class Replay:
    """Draws from the claims that the current version's lineage made. What it remembers is renewed when a cycle or the
    version in force has changed, so a draw costs one lookup.
    """

    def __init__(self) -> None:
        self._lineages: dict[Role, Lineage] = {}

    def sample(self, connection: apsw.Connection, role: Role, count: int, rng: np.random.Generator) -> list[Stored]:
        """``count`` trajectories with replacement, each claim as likely as any other; [] where there is none.

        A cycle counts unless it published a version that is no ancestor of the current one: those were rolled back.
        """
        if role not in DRAWN:
            raise InvalidInputError(f"role {role!r}: one of {', '.join(DRAWN)} is allowed")
        lineage = self._lineage(connection, role)
        if not lineage.cycles or count <= 0:
            return []
        picks = [int(pick) for pick in rng.integers(lineage.ends[-1], size=count)]
        drawn = {pick: _draw(connection, role, lineage, pick) for pick in dict.fromkeys(picks)}
        return [drawn[pick] for pick in picks]

    def _lineage(self, connection: apsw.Connection, role: Role) -> Lineage:
        version, last_cycle = read_head(connection).version, next_cycle(connection) - 1
        known = self._lineages.get(role)
        if known is None or (known.version, known.last_cycle) != (version, last_cycle):
            self._lineages[role] = known = _read_lineage(connection, role, version, last_cycle)
        return known


def _read_lineage(connection: apsw.Connection, role: Role, version: str, last_cycle: int) -> Lineage:
    ancestors = {row[0] for row in connection.execute(_LINEAGE, (version,))}
    rows = [_read_cycle(row) for row in connection.execute(f"{_CYCLES} ORDER BY cycle")]
    standing = [row for row in rows if getattr(row, role) and (row.version is None or row.version in ancestors)]
    ends = np.cumsum([getattr(row, role) for row in standing], dtype=np.int64)
    return Lineage(version, last_cycle, [row.cycle for row in standing], ends)


def _draw(connection: apsw.Connection, role: Role, lineage: Lineage, pick: int) -> Stored:
    index = int(np.searchsorted(lineage.ends, pick, side="right"))
    ordinal = pick - (int(lineage.ends[index - 1]) if index else 0)
    name = f"claim {ordinal} ({role}) of cycle {lineage.cycles[index]}"
    row = connection.execute(DRAW, (lineage.cycles[index], role, ordinal)).get
    if row is None:
        raise damaged(name, "it is missing")
    claim = _read_claim(row[:8])
    return read_stored(row[8:], ("prompt_ids", claim.prompt_ids), ("response_ids", claim.response_ids))
