"""Erasure of a source: its rows go, its texts in the versions' files go, and their bytes are overwritten.

It takes many transactions and renames, and may be killed between any two. A mark among the states, which holds no more
of the source than a hash, says how far it has come; the same erasure begun again takes it to its end, as does the next
engine that opens the store where nothing of the source is left but to overwrite. A backup from the midst of one has the
mark too. A version's file is exchanged in three steps: the digest that its files will have is put into the mark; the
file is replaced, which the system does at once or not at all; the version's row gets the digest. :func:`settle` makes
up for the third.
"""

from __future__ import annotations

import difflib
import hashlib
import shlex
from typing import Any, NamedTuple

import apsw
import msgspec

from sona.errors import SonaError, StoreCorruptError, StoreError, StoreLockedError, UnknownIdError
from sona.storage.candidates import cycles_of
from sona.storage.deletion import Deleted, delete
from sona.storage.head import read_version, read_versions
from sona.storage.quality import Policy
from sona.storage.retention import CHUNK
from sona.storage.rows import check_crc, damaged, decode, encode, row_crc
from sona.storage.state import read_state, write_state
from sona.storage.transactions import Snapshot, Transact
from sona.storage.versions import Versions
from sona.storage.wiping import Wiping
from sona.types import Record, Version

READERS_S = 10.0
"""So long it waits for readers to end."""
MARK = "erasure"
"""The state that says that an erasure is under way."""

_OF_SOURCE = "SELECT seq FROM trajectories WHERE source = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_TRAINED_ON = """
SELECT DISTINCT c.cycle FROM trajectories t JOIN claims c ON c.seq = t.seq WHERE t.source = ? AND c.role = 'train'
"""
_IS_KNOWN = """
SELECT EXISTS (SELECT 1 FROM trajectories WHERE source = ?1) OR EXISTS (SELECT 1 FROM learned WHERE source = ?1)
    OR EXISTS (SELECT 1 FROM candidates WHERE source = ?1) OR EXISTS (SELECT 1 FROM memory_weights WHERE source = ?1)
"""
_KNOWN = """
SELECT source FROM sources UNION SELECT source FROM learned
UNION SELECT source FROM candidates UNION SELECT source FROM memory_weights ORDER BY source
"""
_NEAREST = 3
"""So many known sources are named to who asks for an unknown one."""
_REMEMBERED = "SELECT cycle, trajectories, crc FROM learned WHERE source = ?"


class _Mark(Record, kw_only=True):
    """How far an erasure has come."""

    source: str
    """SHA-256 of the source's name: the name itself would be left in the store."""
    learned: tuple[str, ...] = ()
    """The versions to name at the end, once nothing else tells them."""
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    """By version the digest of its files once one of them is replaced."""


class UnderWay(NamedTuple):
    """An erasure that was begun and has not come to its end."""

    source: str | None
    """None where nothing names it any more: then what it has deleted is still to be overwritten, and no more."""
    learned: tuple[str, ...]
    """Versions that are known to have learned from it."""

    @property
    def name(self) -> str:
        """What to call it."""
        return f"the erasure of {'a source that nothing names any more' if self.source is None else repr(self.source)}"

    @property
    def end(self) -> str:
        """Which command takes it to its end."""
        if self.source is None:
            return "'sona erase' of the same source"
        return f"'sona erase {shlex.quote(self.source)} --yes'"


class Erasure:
    """One source's, step by step; each may be done again."""

    def __init__(
        self,
        source: str,
        transact: Transact,
        apart: Transact,
        snapshot: Snapshot,
        wiping: Wiping,
        folders: Versions,
        policy: Policy,
    ) -> None:
        """Args:
        source: its name.
        transact: does work in one durable transaction.
        apart: does work on the writing connection outside of any.
        snapshot: a reading connection, of one moment.
        wiping: of the blob files.
        folders: of the versions.
        policy: what the totals count as a trajectory's quality.
        """
        self._source, self._transact, self._apart, self._snapshot = source, transact, apart, snapshot
        self._wiping, self._folders, self._policy = wiping, folders, policy

    def check_known(self) -> None:
        """See that there is something to erase, or to take to its end.

        Raises:
            UnknownIdError: nothing in the store is of the source; it names the nearest that are.
        """
        with self._snapshot() as connection:
            mark = _read(connection)
            if (mark is not None and mark.source == self._name()) or connection.execute(_IS_KNOWN, (self._source,)).get:
                return
            known = [str(row[0]) for row in connection.execute(_KNOWN)]
        near = ", ".join(map(repr, difflib.get_close_matches(self._source, known, _NEAREST, cutoff=0.0)))
        raise UnknownIdError(
            f"erase {self._source!r}: nothing in this store is of that source, and nothing was changed; "
            + (f"the nearest that are known: {near}" if near else "it knows no source at all")
        )

    def _name(self) -> str:
        return _hash(self._source)

    def begin(self) -> None:
        """Set the mark.

        Raises:
            StoreError: another source's erasure was cut short; it is named, where anything names it.
        """
        name = self._name()

        def work(connection: apsw.Connection) -> None:
            mark = _read(connection)
            if mark is not None and mark.source != name:
                other = under_way(connection)
                assert other is not None
                raise StoreError(f"erase {self._source!r}: {other.name} was cut short; {other.end} comes first")
            _write(connection, mark or _Mark(source=name))

        self._transact(work)

    def is_its_own(self, trajectory_id: str) -> bool:
        """Whether a trajectory is of the source, or of one that can't be told any more, as it was deleted before."""
        with self._snapshot() as connection:
            row = connection.execute("SELECT source FROM trajectories WHERE id = ?", (trajectory_id,)).get
        return row is None or row == self._source

    def replace_file(self, version: Version, name: str, data: bytes) -> None:
        """Exchange a file of a version, and the version's digest with it.

        Raises:
            StoreCorruptError, UnknownIdError: the files are not what was published.
            StoreFullError, StoreError: of the disk.
        """
        self._folders.verify(version)
        digest = self._folders.digest_of(version.id, {name: data})

        def announce(connection: apsw.Connection) -> None:
            mark = _known(connection)
            _write(connection, msgspec.structs.replace(mark, digests={**mark.digests, version.id: digest}))

        self._transact(announce)
        self._folders.put(version.id, name, data)
        self._transact(lambda connection: settle(connection, self._folders))

    def delete_rows(self) -> Deleted:
        """Delete what the source has sent so far.

        Raises:
            StoreCorruptError: a row of it, or what is counted of it, is damaged.
        """
        done, after = Deleted(), 0
        with self._snapshot() as connection:
            last = int(connection.execute("SELECT coalesce(max(seq), 0) FROM trajectories").get)
        while True:
            with self._snapshot() as connection:
                seqs = [row[0] for row in connection.execute(_OF_SOURCE, (self._source, after, last, CHUNK))]
            if not seqs:
                break
            done.add(self._transact(lambda connection, seqs=seqs: self._delete(connection, seqs)))  # type: ignore[misc]
            after = seqs[-1]
        if done.damaged:
            raise StoreCorruptError(
                f"erase {self._source!r}: {done.damaged} rows of it are damaged; let 'sona doctor --repair' set them "
                "aside, then erase it again"
            )
        return done

    def _delete(self, connection: apsw.Connection, seqs: list[int]) -> Deleted:
        return delete(connection, seqs, self._policy, unlearned=True, remember=True)

    def forget(self) -> tuple[str, ...]:
        """Drop what the store remembers of the source beside its rows, and return the versions whose adapters learned
        from it, oldest first.
        """

        def work(connection: apsw.Connection) -> tuple[str, ...]:
            mark = _known(connection)
            named = {*mark.learned, *learned_from(connection, self._source)}
            learned = tuple(version.id for version in read_versions(connection) if version.id in named)
            for table in ("learned", "candidates", "memory_weights"):
                connection.execute(f"DELETE FROM {table} WHERE source = ?", (self._source,))
            _write(connection, msgspec.structs.replace(mark, learned=learned))
            return learned

        return self._transact(work)

    def scrub(self) -> None:
        """Overwrite what was deleted: write the database anew, empty the WAL, and put zeros into the blob files.

        Deleting overwrites what it deletes, but a page that was split may still hold a copy of what moved to another.
        It takes the time and the room of one copy of the database, during which records wait in the queue.

        Raises:
            StoreLockedError: a reader keeps the WAL, or sees what is to be overwritten.
            StoreFullError: there is no room for the copy.
        """
        self._apart(_scrub)
        if not self._wiping.run(READERS_S, everywhere=True).is_all:
            raise StoreLockedError("erase: a reader still sees what is to be overwritten; end it, and erase again")

    def end(self) -> None:
        """Take the mark away."""
        self._transact(lambda connection: connection.execute("DELETE FROM state WHERE name = ?", (MARK,)))


def _scrub(connection: apsw.Connection) -> None:
    connection.execute("VACUUM")
    if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").get[0]:
        raise apsw.BusyError("a reader keeps the WAL, in which the texts are, from being emptied")


def settle(connection: apsw.Connection, folders: Versions) -> None:
    """Give the versions whose files an erasure has replaced their digests, in the transaction under way."""
    mark = _read(connection)
    if mark is None or not mark.digests:
        return
    for version_id, digest in mark.digests.items():
        version = read_version(connection, version_id)
        try:
            folders.verify(msgspec.structs.replace(version, digest=digest))
        except SonaError:  # killed before the file was replaced, or damaged: then the old digest tells
            continue
        _write_digest(connection, version, digest)
    _write(connection, msgspec.structs.replace(mark, digests={}))


def under_way(connection: apsw.Connection) -> UnderWay | None:
    """The erasure that was begun and has not come to its end; None where there is none."""
    mark = _read(connection)
    if mark is None:
        return None
    known = (str(row[0]) for row in connection.execute(_KNOWN))
    return UnderWay(next((name for name in known if _hash(name) == mark.source), None), mark.learned)


def learned_from(connection: apsw.Connection, source: str) -> set[str]:
    """The versions whose adapters may have learned from a source, by what is in the store and by what retention has
    remembered: those made by a cycle that trained on it, what descends from these, and after a cycle that published
    nothing all later ones, as they replayed what it claimed.
    """
    cycles = {row[0] for row in connection.execute(_TRAINED_ON, (source,))} | cycles_of(connection, source)
    remembered: list[Any] = connection.execute(_REMEMBERED, (source,)).fetchall()
    for cycle, trajectories, crc in remembered:
        check_crc(crc, source, cycle, trajectories, row=f"what cycle {cycle} learned")
        cycles.add(cycle)
    published = {row[0] for row in connection.execute("SELECT cycle FROM cycles WHERE version IS NOT NULL")}
    earliest = min(cycles - published, default=None)
    learned: set[str] = set()
    for version in read_versions(connection):  # parents first
        replayed = earliest is not None and version.cycle > earliest
        if version.cycle in cycles or version.parent in learned or replayed:
            learned.add(version.id)
    return learned


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _known(connection: apsw.Connection) -> _Mark:
    mark = _read(connection)
    if mark is None:
        raise damaged("the erasure's mark", "it is missing")
    return mark


def _read(connection: apsw.Connection) -> _Mark | None:
    data = read_state(connection, MARK)
    return None if data is None else decode(data, _Mark, "the erasure's mark")


def _write(connection: apsw.Connection, mark: _Mark) -> None:
    write_state(connection, MARK, encode(mark))


def _write_digest(connection: apsw.Connection, version: Version, digest: str) -> None:
    payload = encode(msgspec.structs.replace(version, digest=digest))
    crc = row_crc(version.id, version.parent, version.cycle, version.created_ns, payload)
    connection.execute("UPDATE versions SET payload = ?, crc = ? WHERE id = ?", (payload, crc, version.id))
