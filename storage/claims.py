"""Claims: what each cycle took, one row a trajectory, counted in groups by role, skill and pattern.

What was left out may be taken again when newer feedback has come: it may have been corrected upwards. What was trained
on or held out never is, so only of these do the numbers within a cycle run without gaps, and only these are counted.
What gives way is kept with the cycle that took it over (:mod:`sona.storage.given_up`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import apsw

from sona.checks import check_id
from sona.errors import CycleError, InvalidInputError
from sona.ports import Claim, Role
from sona.storage.given_up import GivenUp, write_given_up
from sona.storage.rows import check_crc, damaged, row_crc

ROLES: tuple[Role, ...] = get_args(Role)
DRAWN: tuple[Role, ...] = ("train", "held_out")
"""What a cycle takes for good, and replay draws from."""

CLAIM_COLUMNS = (
    "c.cycle, c.role, c.ordinal, c.skill, c.pattern, c.place, c.seq, c.feedback, c.prompt_ids, c.response_ids, c.crc"
)
_CLAIM_ON = f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.seq = ?"
_CLAIMS_OF = f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.cycle = ? ORDER BY c.role, c.ordinal"
_TRAINED_ON = f"""
SELECT t.id, {CLAIM_COLUMNS} FROM claims c JOIN trajectories t ON t.seq = c.seq
WHERE c.cycle = ? AND c.role = 'train' ORDER BY c.ordinal
"""

_INSERT_CLAIM = """
INSERT INTO claims (cycle, role, ordinal, skill, pattern, place, seq, feedback, prompt_ids, response_ids, crc)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_GROUP = "INSERT INTO claim_groups (cycle, role, skill, pattern, size, crc) VALUES (?, ?, ?, ?, ?, ?)"
_GROUP = "SELECT size, crc FROM claim_groups WHERE cycle = ? AND role = ? AND skill = ? AND pattern = ?"

GROUPS_AFTER = """
SELECT cycle, role, skill, pattern, size, crc FROM claim_groups WHERE cycle > ? ORDER BY cycle, role, skill, pattern
"""

# The latest feedback of a trajectory, and whether another one is of it.
_RATED = """
SELECT max(seq), (SELECT trajectory = ?1 FROM feedback WHERE seq = ?2) FROM feedback WHERE trajectory = ?1
"""


class ClaimRow(NamedTuple):
    """The columns of a claim, in the order of its checksum."""

    cycle: int
    role: Role
    ordinal: int
    """Its place among those of its cycle and role, from 0, in the order of the commit."""
    skill: str
    pattern: str
    place: int
    """Its place among those of its cycle, role, skill and pattern, from 0."""
    seq: int
    feedback: int
    prompt_ids: bytes | None
    response_ids: bytes | None
    crc: int


class GroupRow(NamedTuple):
    """The columns of a group: how many claims of a cycle, role (of :data:`DRAWN`), skill and pattern there are."""

    cycle: int
    role: Role
    skill: str
    pattern: str
    size: int
    crc: int


def read_claim(row: tuple[Any, ...]) -> ClaimRow:
    """A row of CLAIM_COLUMNS; StoreCorruptError where it is damaged."""
    claim = ClaimRow(*row)
    check_crc(claim.crc, *claim[:-1], row=f"claim {claim.ordinal} ({claim.role}) of cycle {claim.cycle}")
    return claim


def claim_on(connection: apsw.Connection, seq: int) -> ClaimRow | None:
    """The claim on a trajectory; None where there is none."""
    row = connection.execute(_CLAIM_ON, (seq,)).get
    return None if row is None else read_claim(row)


def read_claims(connection: apsw.Connection, cycle: int) -> list[Claim]:
    """What a cycle took and no later one took again, by role and ordinal."""
    rows = [read_claim(row) for row in connection.execute(_CLAIMS_OF, (cycle,))]
    return [
        Claim(
            seq=row.seq,
            role=row.role,
            feedback_seq=row.feedback,
            prompt_ids=row.prompt_ids,
            response_ids=row.response_ids,
            skill=row.skill,
            pattern=row.pattern,
        )
        for row in rows
    ]


def read_trained_on(connection: apsw.Connection, cycle: int) -> dict[str, str]:
    """By the id of each trajectory that a cycle trained on as new, and that is still there, its skill; in the order of
    the cycle's claims.
    """
    return {row[0]: read_claim(row[1:]).skill for row in connection.execute(_TRAINED_ON, (cycle,))}


def read_groups(connection: apsw.Connection, after_cycle: int) -> list[GroupRow]:
    """The groups of all cycles with a higher number, by cycle, role, skill and pattern."""
    groups = [GroupRow(*row) for row in connection.execute(GROUPS_AFTER, (after_cycle,))]
    for group in groups:
        name = f"group {group.skill!r}, {group.pattern!r} ({group.role}) of cycle {group.cycle}"
        check_crc(group.crc, *group[:-1], row=name)
    return groups


def insert_claims(connection: apsw.Connection, cycle: int, claims: Sequence[Claim]) -> int:
    """Add a cycle's claims and their groups to the transaction under way; returns how many of those that it leaves out
    have no feedback beyond the one that they are claimed with.

    Raises:
        CycleError: a trajectory is claimed (for good, or by its latest feedback), unrated or not there.
        InvalidInputError: no such role, or a skill or pattern that is no id.
    """
    settled = 0
    given_up: list[GivenUp] = []
    groups = Counter[tuple[Role, str, str]]()
    for claim, ordinal, place in _numbered(claims):
        is_settled, before = _insert_claim(connection, cycle, claim, ordinal, place)
        given_up += [] if before is None else [before]
        settled += claim.role == "left_out" and is_settled
        groups[claim.role, claim.skill, claim.pattern] += 1
    for (role, skill, pattern), size in groups.items():
        if role in DRAWN:
            insert_group(connection, cycle, role, skill, pattern, size)
    write_given_up(connection, cycle, given_up)
    return settled


def insert_group(connection: apsw.Connection, cycle: int, role: Role, skill: str, pattern: str, size: int) -> None:
    """Add a group's row to the transaction under way."""
    values = (cycle, role, skill, pattern, size)
    connection.execute(_INSERT_GROUP, (*values, row_crc(*values)))


def shrink_group(connection: apsw.Connection, cycle: int, role: Role, skill: str, pattern: str) -> int:
    """Count one claim less in a group, in the transaction under way; returns how many are left."""
    key = (cycle, role, skill, pattern)
    row = connection.execute(_GROUP, key).get
    name = f"group {skill!r}, {pattern!r} ({role}) of cycle {cycle}"
    if row is None:
        raise damaged(name, "it is missing")
    size, crc = row
    check_crc(crc, *key, size, row=name)
    connection.execute("DELETE FROM claim_groups WHERE cycle = ? AND role = ? AND skill = ? AND pattern = ?", key)
    if size > 1:
        insert_group(connection, *key, size - 1)
    return int(size) - 1


def _numbered(claims: Sequence[Claim]) -> Iterator[tuple[Claim, int, int]]:
    """Each claim with its ordinal and its place."""
    ordinals = Counter[Role]()
    places = Counter[tuple[Role, str, str]]()
    for claim in claims:
        _check(claim)
        group = (claim.role, claim.skill, claim.pattern)
        yield claim, ordinals[claim.role], places[group]
        ordinals[claim.role] += 1
        places[group] += 1


def _check(claim: Claim) -> None:
    if claim.role not in ROLES:
        raise InvalidInputError(f"role {claim.role!r}: one of {', '.join(ROLES)} is allowed")
    if claim.skill != "":
        check_id(claim.skill, "skill of a claim")
    if claim.pattern != "":
        check_id(claim.pattern, "pattern of a claim")


def _insert_claim(
    connection: apsw.Connection, cycle: int, claim: Claim, ordinal: int, place: int
) -> tuple[bool, GivenUp | None]:
    """Whether the trajectory has no feedback beyond the one that it is claimed with; and the claim that gave way."""
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
    before = _give_up_left_out(connection, cycle, claim.seq, feedback)
    where = (cycle, claim.role, ordinal, claim.skill, claim.pattern, place)
    values = (*where, claim.seq, feedback, claim.prompt_ids, claim.response_ids)
    connection.execute(_INSERT_CLAIM, (*values, row_crc(*values)))
    return bool(feedback == latest), before


def _give_up_left_out(connection: apsw.Connection, cycle: int, seq: int, feedback: int) -> GivenUp | None:
    """Remove the claim on a trajectory that was left out before ``feedback`` came, and return it; any other one stays
    for good.
    """
    claim = claim_on(connection, seq)
    if claim is None:
        return None
    if claim.role != "left_out" or claim.cycle == cycle or claim.feedback >= feedback:
        raise CycleError(
            f"trajectory seq {seq}: cycle {claim.cycle} has claimed it; claim what collect() returns, once"
        )
    connection.execute("DELETE FROM claims WHERE seq = ?", (seq,))
    return GivenUp(seq=seq, cycle=claim.cycle, feedback=claim.feedback, pattern=claim.pattern)
