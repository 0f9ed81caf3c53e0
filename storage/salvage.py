"""A new database from all rows of an old one that are whole, wherever in its file they still lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import apsw

from sona.storage.blob_files import Content
from sona.storage.catalogue import (
    BLOBS,
    CANDIDATES,
    CLAIM_GROUPS,
    LEARNED,
    MEMORY_WEIGHTS,
    OLD_CLAIMS,
    SOURCES,
    TABLES,
    Row,
    Table,
)
from sona.storage.connection import Connection, open_reader
from sona.storage.layout import BLOBS as FOLDER
from sona.storage.pages import Cell, Pages
from sona.storage.quarantine import Quarantine
from sona.storage.rows import Value, row_crc
from sona.storage.schema import CREATION_PRAGMAS, migrate

COUNTED = (SOURCES, CLAIM_GROUPS, BLOBS)
"""Tables that are counted anew from the others, so nothing is taken over."""
_SEQUENCES = "sqlite_sequence"
_NUMBERED = ("trajectories", "feedback", "versions", "candidates")
"""Tables of which no number is given a second time."""
_BATCH = 10_000

# Pages no longer in use may hold a candidate as it was before: what was trained on must not come back as approved.
_RANK = "CASE {0} WHEN 'trained' THEN 4 WHEN 'sent' THEN 3 WHEN 'rejected' THEN 2 WHEN 'new' THEN 1 ELSE 0 END"
_FURTHEST = f"""
ON CONFLICT DO UPDATE SET
    seq = excluded.seq, trajectory = excluded.trajectory, at_ns = excluded.at_ns, source = excluded.source,
    state = excluded.state, divergence = excluded.divergence, payload = excluded.payload, crc = excluded.crc
WHERE {_RANK.format("excluded.state")} > {_RANK.format("candidates.state")}
"""


class Found(NamedTuple):
    """A row that was found."""

    table: Table
    row: Row
    is_whole: bool


class Salvaged(NamedTuple):
    """What was taken over."""

    rows: Counter[str]
    """By table."""
    damaged: Counter[str]
    """By table, the rows that were found and are not whole."""


def by_sqlite(database: Path) -> Iterator[Found]:
    """All rows, as SQLite finds them; for a database that it says is in order, and of the schema in force."""
    with closing(open_reader(database)) as connection, closing(_content(database)) as content:
        connection.execute("BEGIN")
        for table in TABLES:
            for values in connection.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}"):
                row: Row = dict(zip(table.columns, values, strict=True))
                yield Found(table, row, table.is_whole(row, content))
        for name, last in connection.execute(f"SELECT name, seq FROM {_SEQUENCES}"):
            yield Found(SEQUENCE, {"name": name, "seq": last}, True)


def by_pages(database: Path) -> Iterator[Found]:
    """All rows that lie in the leaves of the file, in any order; some, of pages no longer in use, more than once."""
    with closing(Pages(database)) as pages, closing(_content(database)) as content:
        for cell in pages.cells():
            if (found := _recognise(cell, content)) is not None:
                yield found


def _content(database: Path) -> Content:
    return Content(database.parent / FOLDER)


def _recognise(cell: Cell, content: Content) -> Found | None:
    """The row of the table whose checksum fits, or else whose form does."""
    alike: Found | None = None
    for table in (*TABLES, OLD_CLAIMS):
        if table.has_rowid != cell.has_rowid or (row := table.row(cell.number, cell.values)) is None:
            continue
        if table.is_whole(row, content):
            return Found(table, _in_force(table, row), True)
        if table not in (LEARNED, MEMORY_WEIGHTS, *COUNTED):  # entries of indexes have the same form, and no checksum
            alike = alike or Found(table, row, False)
    if cell.has_rowid and len(cell.values) == 2:  # SQLite's own table of the numbers given last
        name, last = cell.values
        if name in _NUMBERED and isinstance(last, int):
            return Found(SEQUENCE, {"name": name, "seq": last}, True)
    return alike


SEQUENCE = Table(_SEQUENCES, {"name": "t", "seq": "i"}, (), numbered=False)


def _in_force(table: Table, row: Row) -> Row:
    """The row in the form of the schema in force."""
    if table is not OLD_CLAIMS:
        return row
    row = {**row, "skill": "", "pattern": "", "place": row["ordinal"]}
    claims = next(one for one in TABLES if one.name == "claims")
    return {**row, "crc": row_crc(*(row[name] for name in claims.summed))}


def rebuild(found: Iterator[Found], target: Path, quarantine: Quarantine) -> Salvaged:
    """Make the new database ``target`` with all whole rows of ``found``; the others go into ``quarantine``.

    Nothing is counted anew yet, and what a row refers to may be missing: that is :func:`sona.storage.mend.mend`'s.
    """
    salvaged = Salvaged(Counter(), Counter())
    sequences: dict[str, int] = {}
    with closing(Connection(str(target), target.parent)) as connection:
        for pragma in (*CREATION_PRAGMAS, "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        migrate(connection, target)
        connection.execute("BEGIN")
        for name in ("head", "versions", "state"):
            connection.execute(f"DELETE FROM {name}")
        for table, row, is_whole in found:
            if table is SEQUENCE:
                of, last = str(row["name"]), row["seq"]
                sequences[of] = max(sequences.get(of, 0), last if isinstance(last, int) else 0)
            elif table in COUNTED:
                salvaged.damaged[table.name] += not is_whole
            elif is_whole:
                _insert(connection, table, row, salvaged, quarantine)
            else:
                quarantine.add(table, row, "its checksum is not that of its values")
                salvaged.damaged[table.name] += 1
        _write_sequences(connection, sequences)
        connection.execute("COMMIT")
    return salvaged


def _insert(connection: apsw.Connection, table: Table, row: Row, salvaged: Salvaged, quarantine: Quarantine) -> None:
    name = "claims" if table is OLD_CLAIMS else table.name
    values: tuple[Value, ...] = tuple(row.values())
    marks = ", ".join("?" * len(values))
    how = "INSERT" if table is CANDIDATES else "INSERT OR IGNORE"
    also = _FURTHEST if table is CANDIDATES else ""
    connection.execute(f"{how} INTO {name} ({', '.join(row)}) VALUES ({marks}) {also}", values)
    if connection.changes():
        salvaged.rows[name] += 1
    elif not _is_there(connection, name, row):
        quarantine.add(table, row, "another row has its number or id")


def _is_there(connection: apsw.Connection, name: str, row: Row) -> bool:
    """Whether this very row was found before."""
    same = " AND ".join(f"{column} IS ?" for column in row)
    found = connection.execute(f"SELECT EXISTS (SELECT 1 FROM {name} WHERE {same})", tuple(row.values())).get
    return bool(found)


def _write_sequences(connection: apsw.Connection, last: dict[str, int]) -> None:
    """No number is given a second time, whatever was lost."""
    for name in _NUMBERED:
        most = int(connection.execute(f"SELECT coalesce(max(seq), 0) FROM {name}").get)
        connection.execute(f"DELETE FROM {_SEQUENCES} WHERE name = ?", (name,))
        connection.execute(f"INSERT INTO {_SEQUENCES} (name, seq) VALUES (?, ?)", (name, max(most, last.get(name, 0))))
