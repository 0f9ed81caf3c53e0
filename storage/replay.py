"""Replay: drawing from what earlier cycles took, as far as the current version descends from them.

A cycle's claims lie in groups of one role, skill and pattern, whose sizes are in a table of their own. A draw picks a
number below their sum, and the group and the place in it that the number falls on are one lookup: no query walks
through the claims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import apsw
import numpy as np
import numpy.typing as npt

from sona.errors import InvalidInputError
from sona.ports import Role, Stored
from sona.storage.claims import CLAIM_COLUMNS, DRAWN, ClaimRow, GroupRow, read_claim, read_groups
from sona.storage.cycles import CycleRow, next_cycle, read_cycles
from sona.storage.head import read_head
from sona.storage.reading import LATEST_FEEDBACK, STORED_COLUMNS, read_stored
from sona.storage.rows import damaged
from sona.storage.state import write_state
from sona.types import new_id

GENERATION = "replay/generation"
"""The state that changes whenever claims were deleted."""

_LINEAGE = """
WITH RECURSIVE lineage (id, parent) AS (
    SELECT id, parent FROM versions WHERE id = ?
    UNION ALL
    SELECT v.id, v.parent FROM lineage l JOIN versions v ON v.id = l.parent
)
SELECT id FROM lineage
"""

_DRAW = f"""
SELECT {CLAIM_COLUMNS}, {STORED_COLUMNS}
FROM claims c JOIN trajectories t ON t.seq = c.seq {LATEST_FEEDBACK}
WHERE c.cycle = ? AND c.role = ?
"""
DRAW = f"{_DRAW} AND c.ordinal = ?"
DRAW_IN_GROUP = f"{_DRAW} AND c.skill = ? AND c.pattern = ? AND c.place = ?"

_CLAIM_WIDTH = len(ClaimRow._fields)

Ints = npt.NDArray[np.int64]
Groups = npt.NDArray[np.void]
"""Of :data:`_GROUP`; role, skill and pattern are places in a list of names."""

_Key = tuple[int | str, ...]
"""Where a claim lies: cycle and role first."""

_GROUP = np.dtype([("cycle", "i8"), ("role", "i8"), ("skill", "i8"), ("pattern", "i8"), ("size", "i8")])


class _Past(NamedTuple):
    """What the cycles up to one took for good. A later past is this one and more, until something is deleted."""

    last_cycle: int
    published: tuple[tuple[int, str], ...]
    """Cycles and the versions that they made."""
    groups: Groups
    """By cycle, role, skill and pattern."""
    names: dict[str, int]
    """Of skills and patterns, numbered as they came up."""


class _Standing(NamedTuple):
    """The groups that a version's lineage made, as of a cycle."""

    version: str
    last_cycle: int
    groups: Groups
    names: dict[str, int]


_NOTHING = _Past(0, (), np.empty(0, _GROUP), {})


class Replay:
    """Draws from the claims that the current version's lineage made: of all cycles but those that published a version
    which is no ancestor of the current one, because these were rolled back.

    What it remembers of the groups is extended when a cycle has come. A call costs a pass over the groups, in numpy,
    and one lookup for each trajectory drawn.
    """

    def __init__(self) -> None:
        self._known: tuple[bytes, _Past, _Standing | None] = (b"", _NOTHING, None)

    def sample(
        self,
        connection: apsw.Connection,
        role: Role,
        count: int,
        rng: np.random.Generator,
        *,
        skills: Sequence[str] | None,
        after_cycle: int,
        balanced: bool,
    ) -> list[Stored]:
        """``count`` trajectories with replacement, each claim as likely as any other, or if ``balanced`` each pattern;
        [] where there is none.
        """
        standing = self._lineage(connection)
        groups = _chosen(standing, role, skills, after_cycle)
        if not len(groups) or count <= 0:
            return []
        if balanced:
            groups = groups[np.argsort(groups["pattern"], kind="stable")]
            keys = _keys_in_groups(standing, role, groups, _balanced_picks(groups, count, rng))
            return _read(connection, DRAW_IN_GROUP, keys)
        picks = rng.integers(groups["size"].sum(), size=count)
        if skills is not None:
            return _read(connection, DRAW_IN_GROUP, _keys_in_groups(standing, role, groups, picks))
        return _read(connection, DRAW, _keys_in_cycles(role, groups, picks))

    def count(self, connection: apsw.Connection, role: Role, *, skills: Sequence[str] | None, after_cycle: int) -> int:
        """How many claims there are to draw from."""
        return int(_chosen(self._lineage(connection), role, skills, after_cycle)["size"].sum())

    def _lineage(self, connection: apsw.Connection) -> _Standing:
        version, last_cycle = read_head(connection).version, next_cycle(connection) - 1
        generation = _generation(connection)
        of_generation, past, known = self._known  # at once: another thread may be at it, in another snapshot
        if of_generation != generation:
            past, known = _NOTHING, None
        if known is None or (known.version, known.last_cycle) != (version, last_cycle):
            if past.last_cycle != last_cycle:  # a snapshot that is older than what is remembered starts from nothing
                past = _extended(connection, past if past.last_cycle < last_cycle else _NOTHING, last_cycle)
            known = _read_standing(connection, past, version)
            self._known = (generation, past, known)
        return known


def renew(connection: apsw.Connection) -> None:
    """Say, in the transaction under way, that claims were deleted: what was remembered of the groups is wrong now."""
    write_state(connection, GENERATION, new_id().encode())


def _generation(connection: apsw.Connection) -> bytes:
    value: bytes | None = connection.execute("SELECT value FROM state WHERE name = ?", (GENERATION,)).get
    return value or b""


def _extended(connection: apsw.Connection, past: _Past, last_cycle: int) -> _Past:
    cycles = {row.cycle: row for row in read_cycles(connection, past.last_cycle)}
    rows = [row for row in read_groups(connection, past.last_cycle) if row.cycle in cycles]
    _check_sizes(cycles, rows)
    published = [(cycle.cycle, cycle.version) for cycle in cycles.values() if cycle.version is not None]
    names = dict(past.names)  # a copy: another thread may be reading it
    groups = np.concatenate([past.groups, _groups(rows, names)])
    return _Past(last_cycle, (*past.published, *published), groups, names)


def _check_sizes(cycles: Mapping[int, CycleRow], groups: Iterable[GroupRow]) -> None:
    sizes = Counter[tuple[int, Role]]()
    for group in groups:
        sizes[group.cycle, group.role] += group.size
    for number, cycle in cycles.items():
        for role in DRAWN:
            found, taken = sizes[number, role], getattr(cycle, role)
            if found != taken:
                raise damaged(f"groups of cycle {number}", f"they hold {found} claims ({role}), the cycle took {taken}")


def _groups(rows: Iterable[GroupRow], names: dict[str, int]) -> Groups:
    """``rows`` as an array; ``names`` gets those that it lacks."""
    numbered = [
        (
            row.cycle,
            DRAWN.index(row.role),
            names.setdefault(row.skill, len(names)),
            names.setdefault(row.pattern, len(names)),
            row.size,
        )
        for row in rows
    ]
    return np.array(numbered, dtype=_GROUP)


def _read_standing(connection: apsw.Connection, past: _Past, version: str) -> _Standing:
    ancestors = {row[0] for row in connection.execute(_LINEAGE, (version,))}
    fallen = [cycle for cycle, published in past.published if published not in ancestors]
    stands = ~np.isin(past.groups["cycle"], fallen)
    return _Standing(version, past.last_cycle, past.groups[stands], past.names)


def _chosen(standing: _Standing, role: Role, skills: Sequence[str] | None, after_cycle: int) -> Groups:
    """The groups of ``role``, of ``skills`` (None: all), of the cycles after ``after_cycle``."""
    if role not in DRAWN:
        raise InvalidInputError(f"role {role!r}: one of {', '.join(DRAWN)} is allowed")
    if isinstance(skills, str):
        raise InvalidInputError(f"skills {skills!r}: give a list of them, [{skills!r}]")
    groups = standing.groups
    chosen = (groups["role"] == DRAWN.index(role)) & (groups["cycle"] > after_cycle)
    if skills is not None:
        chosen &= np.isin(groups["skill"], [standing.names[skill] for skill in skills if skill in standing.names])
    of_them: Groups = groups[chosen]
    return of_them


def _balanced_picks(groups: Groups, count: int, rng: np.random.Generator) -> Ints:
    """Numbers below the sum of all sizes: a pattern's part as likely as any other's, and within it each number.

    ``groups`` are sorted by pattern.
    """
    _, first = np.unique(groups["pattern"], return_index=True)
    sizes = np.add.reduceat(groups["size"], first)
    patterns = rng.integers(len(sizes), size=count)
    picks: Ints = (np.cumsum(sizes) - sizes)[patterns] + rng.integers(sizes[patterns])
    return picks


def _keys_in_groups(standing: _Standing, role: Role, groups: Groups, picks: Ints) -> list[_Key]:
    """What DRAW_IN_GROUP asks for, where the claims of ``groups`` lie one after the other."""
    index, places = _locate(groups["size"], picks)
    names = list(standing.names)
    return [
        (cycle, role, names[skill], names[pattern], place)
        for (cycle, _, skill, pattern, _), place in zip(groups[index].tolist(), places.tolist(), strict=True)
    ]


def _keys_in_cycles(role: Role, groups: Groups, picks: Ints) -> list[_Key]:
    """What DRAW asks for, where the claims of each cycle, in the order of its commit, lie one after the other."""
    cycles, first = np.unique(groups["cycle"], return_index=True)
    index, ordinals = _locate(np.add.reduceat(groups["size"], first), picks)
    return [(cycle, role, ordinal) for cycle, ordinal in zip(cycles[index].tolist(), ordinals.tolist(), strict=True)]


def _locate(sizes: Ints, picks: Ints) -> tuple[Ints, Ints]:
    """For each pick the part that it falls in, and its place there, where parts of these sizes follow each other."""
    ends = np.cumsum(sizes)
    index = np.searchsorted(ends, picks, side="right")
    return index, picks - (ends - sizes)[index]


def _read(connection: apsw.Connection, sql: str, keys: Sequence[_Key]) -> list[Stored]:
    """The trajectory of each key; one that comes up again is read once."""
    found = {key: _draw(connection, sql, key) for key in dict.fromkeys(keys)}
    return [found[key] for key in keys]


def _draw(connection: apsw.Connection, sql: str, key: _Key) -> Stored:
    row = connection.execute(sql, key).get
    if row is None:
        cycle, role, *rest = key
        raise damaged(f"claim {', '.join(map(repr, rest))} ({role}) of cycle {cycle}", "it is missing")
    claim = read_claim(row[:_CLAIM_WIDTH])
    stored = read_stored(row[_CLAIM_WIDTH:], ("prompt_ids", claim.prompt_ids), ("response_ids", claim.response_ids))
    if (stored.feedback_seq or 0) < claim.feedback:  # a damaged index hides what was there when it was claimed
        raise damaged(f"trajectory {stored.trajectory.id!r}", f"feedback seq {claim.feedback} is not found at it")
    return stored
