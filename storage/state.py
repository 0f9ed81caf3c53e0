"""Values kept beside the records, such as the base model's probes."""

from __future__ import annotations

import apsw

from sona.storage.rows import check_crc, row_crc


def read_state(connection: apsw.Connection, name: str) -> bytes | None:
    """A value; None where there is none. StoreCorruptError where it is damaged."""
    row = connection.execute("SELECT value, crc FROM state WHERE name = ?", (name,)).get
    if row is None:
        return None
    value: bytes = row[0]
    check_crc(row[1], name, value, row=f"state {name!r}")
    return value


def write_state(connection: apsw.Connection, name: str, value: bytes) -> None:
    """Replace a value, in the transaction under way."""
    sql = "INSERT OR REPLACE INTO state (name, value, crc) VALUES (?, ?, ?)"
    connection.execute(sql, (name, value, row_crc(name, value)))
