"""Claims that gave way: what a cycle took that an earlier one had left out, and what was claimed of it until then.

A rollback, or a gate that says no, takes back what that cycle learned, but not its claims. What the version in force
knows of a trajectory is then in a claim that is no more. So each cycle keeps those that it takes over, some thirty
bytes each, in one value beside the records.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from sona.storage.rows import decode, encode
from sona.storage.state import read_state, write_state
from sona.types import Record

PREFIX = "claims/given up/"
"""Of the state's name, before the number of the cycle that they gave way to."""


class GivenUp(Record, kw_only=True):
    """A claim that gave way."""

    seq: int
    cycle: int
    """That had made it."""
    feedback: int
    pattern: str = ""


class _All(Record, kw_only=True):
    claims: tuple[GivenUp, ...]


def write_given_up(connection: apsw.Connection, cycle: int, claims: Sequence[GivenUp]) -> None:
    """Keep what gave way to ``cycle``, in the transaction under way."""
    if claims:
        write_state(connection, f"{PREFIX}{cycle}", encode(_All(claims=tuple(claims))))


def read_given_up(connection: apsw.Connection, cycle: int) -> dict[int, GivenUp]:
    """By trajectory what gave way to ``cycle``; StoreCorruptError where it is damaged."""
    data = read_state(connection, f"{PREFIX}{cycle}")
    if data is None:
        return {}
    return {claim.seq: claim for claim in decode(data, _All, f"state '{PREFIX}{cycle}'").claims}
