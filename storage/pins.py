"""Pins: versions whose files no retention removes. Each is a state of its own, which says since when."""

from __future__ import annotations

import apsw

from sona.storage.head import read_version
from sona.storage.rows import check_crc, damaged
from sona.storage.state import write_state

PREFIX = "pinned/"
"""Before a version's id: the state that pins it."""
_DIGITS = 19  # of nanoseconds up to the year 2286

# Every state as short as a pin is looked at, so that one whose name is damaged is an error rather than no pin.
_SHORT = "SELECT name, value, crc FROM state WHERE length(value) <= ?"


def read_pins(connection: apsw.Connection) -> dict[str, int]:
    """By the id of each pinned version, since when, in nanoseconds since 1970; StoreCorruptError where one may be
    damaged.
    """
    pins: dict[str, int] = {}
    for name, value, crc in connection.execute(_SHORT, (_DIGITS,)):
        check_crc(crc, name, value, row=f"state {name!r}")
        if name.startswith(PREFIX):
            if not value.isdigit():
                raise damaged(f"state {name!r}", f"{value!r} is no moment")
            pins[name.removeprefix(PREFIX)] = int(value)
    return pins


def write_pin(connection: apsw.Connection, version_id: str, at_ns: int) -> None:
    """Pin a version, in the transaction under way; one that is pinned stays so since when it was.

    Raises:
        UnknownIdError: there is no version of this id.
    """
    read_version(connection, version_id)
    if version_id not in read_pins(connection):
        write_state(connection, PREFIX + version_id, str(at_ns).encode())


def delete_pin(connection: apsw.Connection, version_id: str) -> None:
    """Let go of a version, in the transaction under way; of one that is not pinned nothing comes.

    Raises:
        UnknownIdError: there is no version of this id.
    """
    if version_id in read_pins(connection):
        connection.execute("DELETE FROM state WHERE name = ?", (PREFIX + version_id,))
    else:
        read_version(connection, version_id)
