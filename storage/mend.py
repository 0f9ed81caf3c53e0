"""Making the rows that are left agree with each other again, and with what is counted of them.

What can't be made to agree is set aside, never dropped: above all a trajectory that a cycle has taken while the row
that says so is lost, as it would be learned from a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import apsw
import msgspec

from sona.errors import SonaError
from sona.storage.blobs import count_blobs, write_blobs
from sona.storage.catalogue import CLAIMS, FEEDBACK, TRAJECTORIES, Row, Table
from sona.storage.claims import CLAIM_COLUMNS, insert_group, read_claim
from sona.storage.cycles import watermark_after
from sona.storage.findings import so_many
from sona.storage.head import Head
from sona.storage.layout import BLOBS, QUARANTINE
from sona.storage.lost_claims import WHY
from sona.storage.pins import PREFIX as PIN
from sona.storage.pins import read_pins
from sona.storage.quality import Policy
from sona.storage.quarantine import Quarantine
from sona.storage.recount import (
    EVERYTHING,
    Widths,
    claims_are_short,
    count_groups,
    count_left_out,
    count_totals,
    passed_by,
)
from sona.storage.replay import renew
from sona.storage.rows import decode, encode, row_crc
from sona.storage.schema import insert_version
from sona.storage.sources import write_totals
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, CycleReport, Funnel, Version

ABOUT = "version.json"
"""The file in a version's folder that says what it is, all but its digest."""

_NO_TRAJECTORY = "SELECT seq FROM {0} WHERE {1} NOT IN (SELECT seq FROM trajectories)"
_NO_FEEDBACK = "SELECT seq FROM claims WHERE feedback NOT IN (SELECT seq FROM feedback)"


def mend(connection: apsw.Connection, folders: Versions, quarantine: Quarantine, policy: Policy) -> list[str]:
    """Make a salvaged database whole, in the transaction under way; returns what was done, for a person."""
    work = _Mending(connection, folders, quarantine)
    work.mend(policy)
    return work.done


class _Mending:
    def __init__(self, connection: apsw.Connection, folders: Versions, quarantine: Quarantine) -> None:
        self._connection, self._folders, self._quarantine = connection, folders, quarantine
        self.done: list[str] = []
        self._width: int | None = None

    def mend(self, policy: Policy) -> None:
        head = self._read_head()
        self._mend_versions(head)
        self._mend_rows(head)
        self._mend_cycles()
        self._renumber()
        self._count(policy)
        self._write_head(head)
        renew(self._connection)

    # Versions

    def _mend_versions(self, head: Head | None) -> None:
        """Each has its parent: put back from its folder, or passed over."""
        versions = {version.id: version for version in self._versions()}
        lost = self._named(versions.values(), head) - set(versions)
        if not lost:
            return
        for name in lost:
            if (found := self._put_back(name)) is not None:
                versions[name] = found
            else:
                self._connection.execute("DELETE FROM state WHERE name = ?", (PIN + name,))
        self._connection.execute("DELETE FROM versions")
        known: list[str] = []
        for version in sorted(versions.values(), key=lambda version: (version.cycle, version.created_ns)):
            if version.parent is not None and version.parent not in known:
                self.done.append(f"{version.id}: its parent {version.parent!r} is lost, it now has {known[-1]!r}")
                version = msgspec.structs.replace(version, parent=known[-1])  # noqa: PLW2901
            insert_version(self._connection, version)
            known.append(version.id)

    def _named(self, versions: Iterable[Version], head: Head | None) -> set[str]:
        """The versions that must have been there."""
        rows = self._connection.execute("SELECT version FROM cycles WHERE version IS NOT NULL").fetchall()
        parents = {version.parent for version in versions if version.parent is not None}
        in_force = set() if head is None else {head.version}
        pinned = read_pins(self._connection)
        return {BASE_VERSION, *(cast(str, row[0]) for row in rows), *parents, *in_force, *pinned}

    def _put_back(self, name: str) -> Version | None:
        if name == BASE_VERSION:
            return Version(id=BASE_VERSION, parent=None, cycle=0, created_ns=0, digest="")
        try:
            about = msgspec.json.decode((self._folders.path(name) / ABOUT).read_bytes(), type=Version)
            digest = self._folders.digest_of(name)
        except (OSError, msgspec.DecodeError, SonaError):
            self.done.append(f"version {name!r} is lost")
            return None
        if about.id != name or about.parent is None:
            return None
        self.done.append(f"version {name!r} was put back from its folder, with the digest of what is there now")
        return msgspec.structs.replace(about, digest=digest)

    def _versions(self) -> list[Version]:
        rows: list[Any] = self._connection.execute("SELECT id, payload FROM versions ORDER BY seq").fetchall()
        return [decode(payload, Version, f"version {name!r}") for name, payload in rows]

    # Rows

    def _mend_rows(self, head: Head | None) -> None:
        watermark = self._watermark(head)
        for table, column in ((FEEDBACK, "trajectory"), (CLAIMS, "seq")):
            sql = _NO_TRAJECTORY.format(table.name, column)
            self._set_aside(table, self._seqs(sql), "its trajectory is lost")
        lost = []
        for seq in self._seqs(_NO_FEEDBACK):
            if not self._claim_by_another_feedback(seq):
                lost.append(seq)
        lost += passed_by(self._connection, watermark)
        self._set_aside_whole(lost, "a cycle has taken it, and what says so is lost: it must not be learned twice")
        if lost:
            whole = so_many(len(lost), "trajectory that is whole is", "trajectories that are whole are")
            self.done.append(f"{whole} set aside in {QUARANTINE}/: {WHY}")
        damaged: list[int] = []
        widths = Widths(None if head is None else head.width)
        count_totals(self._connection, "last", damaged.append, widths.note)
        self._set_aside_whole(damaged, "it can't be read")
        self._width = widths.width
        self._set_aside_whole(widths.others, f"its embedding has not the width {self._width} of the others")

    def _watermark(self, head: Head | None) -> int:
        """Up to which everything that was rated had been taken, as far as can be told: where the mark itself is lost,
        claims that are there tell enough, and claims that are missing may be of anything.
        """
        if head is not None:
            return head.watermark
        return EVERYTHING if claims_are_short(self._connection) else 0

    def _seqs(self, sql: str) -> list[int]:
        return [cast(int, row[0]) for row in self._connection.execute(sql).fetchall()]

    def _claim_by_another_feedback(self, seq: int) -> bool:
        """A claim whose feedback is lost names the latest one that is left."""
        latest = self._connection.execute("SELECT max(seq) FROM feedback WHERE trajectory = ?", (seq,)).get
        if latest is None:
            return False
        row = self._connection.execute(f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.seq = ?", (seq,)).get
        claim = read_claim(row)._replace(feedback=latest)
        values = (latest, row_crc(*claim[:-1]), seq)
        self._connection.execute("UPDATE claims SET feedback = ?, crc = ? WHERE seq = ?", values)
        return True

    def _set_aside_whole(self, seqs: Sequence[int], why: str) -> None:
        """Trajectories, with their feedback and claims."""
        for seq in seqs:
            own = "SELECT seq FROM feedback WHERE trajectory = ?"
            feedback = [cast(int, row[0]) for row in self._connection.execute(own, (seq,)).fetchall()]
            self._set_aside(CLAIMS, [seq], why)
            self._set_aside(FEEDBACK, feedback, why)
            self._set_aside(TRAJECTORIES, [seq], why)

    def _set_aside(self, table: Table, seqs: Iterable[int], why: str) -> None:
        names = ", ".join(table.columns)
        for seq in seqs:
            values = self._connection.execute(f"SELECT {names} FROM {table.name} WHERE seq = ?", (seq,)).get
            if values is not None:
                row: Row = dict(zip(table.columns, values, strict=True))
                self._quarantine.add(table, row, why)
                self._connection.execute(f"DELETE FROM {table.name} WHERE seq = ?", (seq,))

    # Cycles and claims

    def _mend_cycles(self) -> None:
        """Each cycle that claimed something, or made a version, has a row."""
        rows: list[Any] = self._connection.execute(
            """
            SELECT cycle FROM claims UNION SELECT cycle FROM versions WHERE cycle > 0 EXCEPT SELECT cycle FROM cycles
            """
        ).fetchall()
        made = {version.cycle: version for version in self._versions() if version.cycle}
        for (number,) in rows:
            version = made.get(number)
            report = CycleReport(
                cycle=number,
                status="rejected" if version is None else "published",
                reason="the report is lost",
                funnel=Funnel(collected=0, trained=0, held_out=0),
                parent=BASE_VERSION if version is None or version.parent is None else version.parent,
                version=None if version is None else version.id,
            )
            values = (number, report.status, report.version, 0, 0, 0, encode(report))
            self._connection.execute("INSERT INTO cycles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, row_crc(*values)))
            self.done.append(f"cycle {number}: its report is lost")

    def _renumber(self) -> None:
        """Ordinals and places run from 0 without gaps, in the order that they had; groups and cycles count them."""
        sql = f"SELECT {CLAIM_COLUMNS} FROM claims c WHERE c.role <> 'left_out' ORDER BY c.cycle, c.role, c.ordinal"
        ordinals, places = Counter[Any](), Counter[Any]()
        changed = []
        for row in self._connection.execute(sql):
            claim = read_claim(row)
            of_cycle, group = (claim.cycle, claim.role), (claim.cycle, claim.role, claim.skill, claim.pattern)
            moved = claim._replace(ordinal=ordinals[of_cycle], place=places[group])
            ordinals[of_cycle] += 1
            places[group] += 1
            if moved != claim:
                changed.append(moved)
        # Two steps, because a number must not be taken twice in between.
        self._connection.executemany(
            "UPDATE claims SET ordinal = -1 - seq, place = -1 - seq WHERE seq = ?", [(claim.seq,) for claim in changed]
        )
        self._connection.executemany(
            "UPDATE claims SET ordinal = ?, place = ?, crc = ? WHERE seq = ?",
            [(claim.ordinal, claim.place, row_crc(*claim[:-1]), claim.seq) for claim in changed],
        )
        for (cycle, role, skill, pattern), size in count_groups(self._connection).items():
            insert_group(self._connection, cycle, role, skill, pattern, size)
        self._count_taken(ordinals)

    def _count_taken(self, taken: Counter[Any]) -> None:
        sql = "SELECT cycle, status, version, train, held_out, left_out, report FROM cycles"
        rows: list[Any] = self._connection.execute(sql).fetchall()
        for number, status, version, _, _, *rest in rows:
            values = (number, status, version, taken[number, "train"], taken[number, "held_out"], *rest)
            self._connection.execute(
                "UPDATE cycles SET train = ?, held_out = ?, crc = ? WHERE cycle = ?",
                (values[3], values[4], row_crc(*values), number),
            )

    # What is counted

    def _count(self, policy: Policy) -> None:
        for totals in count_totals(self._connection, policy).values():
            write_totals(self._connection, totals)
        write_blobs(self._connection, count_blobs(self._connection, self._folders.folder.parent / BLOBS))

    def _read_head(self) -> Head | None:
        row: Any = self._connection.execute("SELECT version, watermark, left_out, width FROM head").get
        return None if row is None else Head(*row)

    def _write_head(self, before: Head | None) -> None:
        versions = {version.id: version for version in self._versions()}
        wanted = before.version if before is not None and before.version in versions else list(versions)[-1]
        version = nearest_whole(self._folders, versions, wanted)
        if before is None or version != before.version:
            self.done.append(f"version {version!r} is in force")
        watermark = watermark_after(self._connection, 0)
        head = Head(version, watermark, count_left_out(self._connection), self._width)
        self._connection.execute("DELETE FROM head")
        self._connection.execute(
            "INSERT INTO head (one, version, watermark, left_out, width, crc) VALUES (1, ?, ?, ?, ?, ?)",
            (*head, row_crc(*head)),
        )


def nearest_whole(folders: Versions, versions: Mapping[str, Version], name: str) -> str:
    """The version of this name, or its nearest ancestor, whose files are what was published; the base has none."""
    at = versions[name]
    while at.parent is not None:
        try:
            folders.verify(at)
            break
        except SonaError:
            at = versions[at.parent]
    return at.id
