"""What a doctor asks of a database that SQLite can read: that every row is whole, and that what is counted is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from sona.errors import StoreCorruptError
from sona.storage.blob_files import numbers_in, path_of
from sona.storage.blobs import Named, count_named, lacking, read_blobs
from sona.storage.catalogue import CLAIMS, FEEDBACK, TABLES, Row, Table
from sona.storage.findings import Finding, so_many
from sona.storage.head import Head, read_head, read_versions
from sona.storage.layout import BLOBS as FOLDER
from sona.storage.layout import DATABASE
from sona.storage.pins import read_pins
from sona.storage.quality import Policy
from sona.storage.recount import Widths, count_groups, count_left_out, count_totals, gaps, is_about, passed_by
from sona.storage.salvage import COUNTED
from sona.storage.sources import read_all_totals
from sona.types import Version

SHOWN = 10
"""Rows of one table that are named; the others are counted."""
_SET_ASIDE = "sets it aside"
_WITH_ITS_TRAJECTORY = f"{_SET_ASIDE}, and its trajectory where nothing else says whether that was learned"
_COUNTS = "counts anew"


class Checked(NamedTuple):
    """What a database holds, and what is wrong with it."""

    findings: list[Finding]
    versions: list[Version]
    in_force: str | None
    """None where nothing says so."""
    pinned: frozenset[str]
    """Ids of pinned versions."""


def check(connection: apsw.Connection, store: Path, policy: Policy) -> Checked:
    """Look at every row of the store in the folder ``store``; reads one snapshot."""
    folder = store / FOLDER
    named = count_named(connection)
    findings = [*_rows(connection), *_blob_files(named, folder)]
    if findings:  # what is counted of damaged rows can't be true
        return Checked(findings, *_versions(connection))
    head = read_head(connection)
    findings += _totals(connection, head, policy)
    findings += _claims(connection)
    findings += _blobs(connection, named, folder)
    findings += _marks(connection, head)
    findings += _references(connection)
    return Checked(findings, *_versions(connection))


def _versions(connection: apsw.Connection) -> tuple[list[Version], str | None, frozenset[str]]:
    try:
        return read_versions(connection), read_head(connection).version, _pinned(connection)
    except StoreCorruptError:
        return [], None, frozenset()


def _pinned(connection: apsw.Connection) -> frozenset[str]:
    try:
        return frozenset(read_pins(connection))
    except StoreCorruptError:  # its row is among the findings
        return frozenset()


def _rows(connection: apsw.Connection) -> Iterator[Finding]:
    for table in TABLES:
        damaged = 0
        for values in connection.execute(f"SELECT {table.selection} FROM {table.name}"):
            row: Row = dict(zip(table.columns, values, strict=True))
            if table.is_whole(row):
                continue
            damaged += 1
            if damaged <= SHOWN:
                yield Finding(
                    severity="repairable" if table in COUNTED else "damaged",
                    where=table.key(row),
                    what="its checksum is not that of its values",
                    repair=_repair_of(table),
                )
        if damaged > SHOWN:
            what = so_many(damaged - SHOWN, "more row is damaged", "more rows are damaged")
            yield Finding(severity="damaged", where=table.name, what=what, repair="sets them aside")
    if connection.execute("SELECT count(*) FROM head").get != 1:
        yield Finding(
            severity="damaged",
            where="head",
            what="the row is missing",
            repair="puts the newest version that is whole in force",
        )


def _repair_of(table: Table) -> str:
    if table in COUNTED:
        return _COUNTS
    return _WITH_ITS_TRAJECTORY if table in (FEEDBACK, CLAIMS) else _SET_ASIDE


def _totals(connection: apsw.Connection, head: Head, policy: Policy) -> Iterator[Finding]:
    unreadable: list[int] = []
    widths = Widths(head.width)
    counted = count_totals(connection, policy, unreadable.append, widths.note)
    if widths.others:
        others = so_many(len(widths.others), "embedding has", "embeddings have")
        what = f"{others} not the store's width, {widths.width}"
        yield Finding(severity="damaged", where="trajectories", what=what, repair="sets them aside")
    if widths.width != head.width:
        what = f"it tells no width of embeddings, and they have {widths.width}"
        yield Finding(severity="repairable", where="head", what=what, repair=_COUNTS)
    for seq in unreadable:
        yield Finding(severity="damaged", where=f"trajectories seq {seq}", what="it can't be read", repair=_SET_ASIDE)
    found = {totals.source: totals for totals in read_all_totals(connection)}
    for source in sorted({*counted, *found}):
        if source not in counted or source not in found or not is_about(found[source], counted[source]):
            yield Finding(
                severity="repairable",
                where=f"sources, source {source!r}",
                what=f"{found.get(source, 'nothing')} is not what its rows come to, {counted.get(source, 'nothing')}",
                repair=_COUNTS,
            )


def _blob_files(named: Mapping[int, Named], folder: Path) -> Iterator[Finding]:
    """Those that lack what rows name of them; the rows are told of beside them."""
    if named and not numbers_in(folder):
        lost = sum(of.live for of in named.values())
        what = (
            f"none of its files is there, and rows name {lost} bytes in them; put the folder back, it is as much of "
            f"the store as {DATABASE}. If it is lost, put an empty file {path_of(folder, 1).name} there, and a repair "
            "sets the rows aside"
        )
        yield Finding(severity="fatal", where=FOLDER, what=what)
        return
    for path, what in lacking(named, folder).items():
        where = f"{FOLDER}/{path.name}"
        yield Finding(severity="damaged", where=where, what=f"it {what}", repair="sets the rows aside")


def _blobs(connection: apsw.Connection, named: Mapping[int, Named], folder: Path) -> Iterator[Finding]:
    known = {row.file: row for row in read_blobs(connection)}
    for file, of in named.items():
        row = known.get(file)
        if row is None or row.live != of.live or row.size < of.end or row.first > of.first:
            what = f"{row or 'nothing'} is not what its rows come to, {of}"
            yield Finding(severity="repairable", where=f"blobs, file {file}", what=what, repair=_COUNTS)
    for file in known.keys() - named.keys():
        if known[file].live:
            what = f"{known[file].live} bytes are counted, and no row names any"
            yield Finding(severity="repairable", where=f"blobs, file {file}", what=what, repair=_COUNTS)
    for file in numbers_in(folder):
        if file not in known:
            what = "no row names anything of it; a crash left it, or a repair"
            yield Finding(severity="note", where=f"{FOLDER}/{path_of(folder, file).name}", what=what)


def _claims(connection: apsw.Connection) -> Iterator[Finding]:
    counted = count_groups(connection)
    rows: list[Any] = connection.execute("SELECT cycle, role, skill, pattern, size FROM claim_groups").fetchall()
    found = Counter({(cycle, role, skill, pattern): size for cycle, role, skill, pattern, size in rows})
    for group in sorted({*counted, *found}):
        if counted[group] != found[group]:
            what = f"{found[group]} claims are counted, and {counted[group]} are there"
            yield Finding(severity="repairable", where=f"claim_groups {group}", what=what, repair=_COUNTS)
    for where in gaps(connection):
        what = "the claims' numbers do not run from 0 without gaps"
        yield Finding(severity="repairable", where=f"claims of {where}", what=what, repair="numbers them anew")
    taken = Counter[tuple[int, str]]()
    for (cycle, role, _, _), size in counted.items():
        taken[cycle, role] += size
    cycles: list[Any] = connection.execute("SELECT cycle, train, held_out FROM cycles").fetchall()
    for cycle, train, held_out in cycles:
        if (train, held_out) != (taken[cycle, "train"], taken[cycle, "held_out"]):
            what = f"it says {train} were trained on and {held_out} held out, and the claims do not"
            yield Finding(severity="repairable", where=f"cycles, cycle {cycle}", what=what, repair=_COUNTS)
    lost = {cycle for cycle, _ in taken} - {row[0] for row in cycles}
    for cycle in sorted(lost):
        what = "it has claims, and no row"
        yield Finding(severity="damaged", where=f"cycles, cycle {cycle}", what=what, repair="adds one without a report")


def _marks(connection: apsw.Connection, head: Head) -> Iterator[Finding]:
    left_out = count_left_out(connection)
    if left_out != head.left_out:
        said = so_many(head.left_out, "trajectory is", "trajectories are")
        what = f"{said} said to be left out, and {left_out} really"
        yield Finding(severity="repairable", where="head", what=what, repair=_COUNTS)
    last = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'feedback'").get
    if not 0 <= head.watermark <= last:
        what = f"the watermark is {head.watermark}, beyond the last feedback, {last}"
        yield Finding(severity="repairable", where="head", what=what, repair="sets it anew")
    elif passed := passed_by(connection, head.watermark):
        lost = so_many(len(passed), "trajectory has lost its claim", "trajectories have lost their claims")
        what = f"{lost}, and no cycle would collect what has none"
        yield Finding(severity="damaged", where="claims", what=what, repair="sets them aside")


def _references(connection: apsw.Connection) -> Iterator[Finding]:
    broken: Counter[tuple[str, str]] = Counter()
    rows: list[Any] = connection.execute("PRAGMA foreign_key_check").fetchall()
    for table, _, parent, _ in rows:
        broken[table, parent] += 1
    for (table, parent), count in broken.items():
        what = f"{so_many(count, 'row names', 'rows name')} a row of {parent} that is not there"
        yield Finding(severity="damaged", where=table, what=what, repair="sets them aside")
