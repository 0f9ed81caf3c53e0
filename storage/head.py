"""The store's one row of moving marks, and the versions that it points into."""

from __future__ import annotations

from typing import NamedTuple

import apsw

from sona.errors import StoreCorruptError, UnknownIdError
from sona.storage.rows import check_crc, damaged, decode, row_crc
from sona.types import Version

_VERSIONS = "SELECT id, parent, cycle, created_ns, payload, crc FROM versions"


class Head(NamedTuple):
    """Where the store stands."""

    version: str
    """The version in force."""
    watermark: int
    """No feedback up to this seq makes a trajectory new to a cycle."""
    left_out: int
    """How many trajectories were left out and got no feedback since: no cycle collects them."""
    width: int | None
    """Of the embeddings; None before the first one."""


def read_head(connection: apsw.Connection) -> Head:
    """The marks; StoreCorruptError where they are damaged."""
    row = connection.execute("SELECT version, watermark, left_out, width, crc FROM head").get
    if row is None:
        raise StoreCorruptError("head: the row is missing; restore the store from a backup")
    *values, crc = row
    check_crc(crc, *values, row="head")
    return Head(*values)


def write_head(connection: apsw.Connection, head: Head) -> None:
    """Replace the marks, in the transaction under way."""
    sql = "UPDATE head SET version = ?, watermark = ?, left_out = ?, width = ?, crc = ?"
    connection.execute(sql, (*head, row_crc(*head)))


def read_version(connection: apsw.Connection, version_id: str) -> Version:
    """One version; UnknownIdError where there is none of this id."""
    row = connection.execute(f"{_VERSIONS} WHERE id = ?", (version_id,)).get
    if row is None:
        raise UnknownIdError(
            f"version {version_id!r}: not in this store; 'sona versions list' (or versions()) tells those that are"
        )
    return _version(row)


def read_current(connection: apsw.Connection) -> Version:
    """The version in force; StoreCorruptError where it is not there."""
    current = read_head(connection).version
    try:
        return read_version(connection, current)
    except UnknownIdError as error:
        raise damaged(f"version {current!r}", "it is in force, and missing") from error


def read_versions(connection: apsw.Connection) -> list[Version]:
    """All versions, oldest first."""
    return [_version(row) for row in connection.execute(f"{_VERSIONS} ORDER BY seq")]


def _version(row: tuple[str, str | None, int, int, bytes, int]) -> Version:
    *values, payload, crc = row
    check_crc(crc, *values, payload, row=f"version {row[0]!r}")
    return decode(payload, Version, f"version {row[0]!r}")
