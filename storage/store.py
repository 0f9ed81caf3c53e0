"""The store: every trajectory, feedback, cycle and version, in one SQLite database."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import apsw
import msgspec
import numpy as np

from sona import forked
from sona.candidate import Settled
from sona.checks import check_id
from sona.config import StoreConfig
from sona.errors import ClosedError, StoreReadOnlyError
from sona.ports import Arrivals, Claim, Collected, Role, SourceCounts, StoreCounts, Stored, StoreSizes
from sona.storage import cycles, reading
from sona.storage.arrivals import read_arrivals
from sona.storage.backup import Backup, back_up
from sona.storage.blobs import Blobs
from sona.storage.candidates import CandidateRows
from sona.storage.claims import read_claims, read_trained_on
from sona.storage.connection import Readers, store_error
from sona.storage.draft import make_folder
from sona.storage.earlier import with_learned
from sona.storage.erasure import Erasure, UnderWay, settle, under_way
from sona.storage.head import read_current, read_head, read_version, read_versions, write_head
from sona.storage.insert import UnstorableError, insert, insert_apart
from sona.storage.layout import BLOBS, DATABASE, LOCK, TRAINING, VERSIONS
from sona.storage.lock import WriterLock
from sona.storage.mapped import FOLDER as JOURNAL
from sona.storage.memory_weights import MemoryWeightRows
from sona.storage.pins import delete_pin, read_pins, write_pin
from sona.storage.presence import check_folder, check_there
from sona.storage.quality import Policy, adopt_policy, rated, read_policy
from sona.storage.replay import Replay
from sona.storage.retention import Limits, Pruned, Retention
from sona.storage.schema import check_library
from sona.storage.sizes import files_below, sizes_of
from sona.storage.snapshot_gate import make_gate
from sona.storage.state import read_state, write_state
from sona.storage.syncing import sync_path
from sona.storage.transactions import Transactions
from sona.storage.versions import Versions
from sona.storage.wiping import Wiping
from sona.types import CycleReport, Feedback, Trajectory, Version

__all__ = ["DATABASE", "LOCK", "VERSIONS", "Store"]

PAGE_ROWS = 256
DEFAULTS = StoreConfig()

KNOWN = "versions_known"
"""The state that :meth:`Store.known_versions` writes: when it was asked last."""
_T = TypeVar("_T")


class Store:
    """A folder with ``store.db``, ``blobs/``, ``store.lock`` and ``versions/``. Open it with :meth:`open`; all methods
    are safe to call from several threads, and none may be used in a forked child.

    Every row is compared with its checksum when it is read; a damaged one is a StoreCorruptError that names it.
    """

    def __init__(self, path: Path, config: StoreConfig, lock: WriterLock | None) -> None:
        self.path = path
        """The store's folder."""
        self.config = config
        self.read_only = lock is None
        self._lock = lock
        self._database = path / DATABASE
        self._readers = Readers(self._database)
        self._transactions = Transactions(self._database)
        self._blobs = Blobs(path / BLOBS, batch_bytes=config.blob_batch_bytes, file_bytes=config.blob_file_bytes)
        self._wiping = Wiping(self._blobs, self._readers.gate, self._transact, self._snapshot)
        self._replay = Replay()
        self.candidates = CandidateRows(self._transact, self._snapshot)
        """Answers that depend on memory, for review."""
        self.memory_weights = MemoryWeightRows(self._transact, self._snapshot)
        """What memories were worth so far."""
        self._policy: Policy = "last"
        self._writing = threading.Lock()
        self._closed = False
        forked.watch(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, config: StoreConfig = DEFAULTS, read_only: bool = False) -> Store:
        """The store in the folder ``path``, which is made if there is none, unless it is opened to be read.

        Readers take no lock and work beside a writer. In a folder without write permission they see the store as it was
        when they opened it.

        Raises:
            StoreLockedError: it has a writer already, in this process or in another one.
            StoreReadOnlyError: the folder can't be written to, or for a reader: not without write permission.
            StoreFullError: its disk has no room.
            StoreCorruptError: damaged, or another program's.
            StoreVersionError: written by a newer sona, or SQLite is too old.
            StoreError: nothing is there to be read, or the folder can't be used.
        """
        check_library()
        folder = Path(path).absolute()
        if not read_only:
            return cls._open_writer(folder, config)
        check_there(folder)
        store = cls(folder, config, None)
        with store._snapshot() as connection:  # whatever is wrong with the file shows now
            read_current(connection)
            store._policy = read_policy(connection)
        return store

    @classmethod
    def _open_writer(cls, folder: Path, config: StoreConfig) -> Store:
        check_folder(folder)
        try:
            make_folder(folder)
            make_folder(folder / VERSIONS)
            make_gate(folder / BLOBS)
            lock = WriterLock(folder / LOCK)
        except OSError as error:
            raise store_error(error, folder) from error
        store = cls(folder, config, lock)
        try:
            store._transact(store._begin)
            sync_path(folder)
        except BaseException as error:
            store.close()
            if isinstance(error, OSError):
                raise store_error(error, folder) from error
            raise
        return store

    def _begin(self, connection: apsw.Connection) -> None:
        """What a new writer does first."""
        read_head(connection)
        settle(connection, Versions(self.path))
        self._policy = self.config.quality or read_policy(connection)
        adopt_policy(connection, self._policy)

    def close(self) -> None:
        """Let go of the files and of the lock; a second call does nothing."""
        if self._closed:
            return
        with self._writing:
            self._closed = True
            self._readers.close()
            self._transactions.close()
            self._blobs.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forked(self) -> None:
        """In a forked child: closed, with the parent's files and lock left as they are."""
        self._closed = True
        self._readers.forked()
        self._transactions.forked()
        self._blobs.forked()
        if self._lock is not None:
            self._lock.release()

    # Writing

    def append(self, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
        """Store all in one durable transaction.

        Returns for each record None, also where it was there already, or what left it out and nothing else:
        ConflictError (its id has other content), UnknownIdError (feedback for no trajectory of the store or of this
        batch), DimensionMismatchError, InvalidInputError (it has no stored form), StoreCorruptError (the
        stored row of its id, or its source's totals, are damaged).

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: nothing was acknowledged; the same batch may be given again.
        """
        try:
            return self._transact(lambda connection: insert(connection, records, self._policy, self._blobs))
        except UnstorableError:
            return self._transact(lambda connection: insert_apart(connection, records, self._policy, self._blobs))

    def commit_cycle(
        self, report: CycleReport, claims: Sequence[Claim], version: Version | None, settled: Sequence[Settled] = ()
    ) -> None:
        """Claims, report, version, the new current version, and what became of approved candidates: all in one durable
        transaction, or nothing.

        Raises:
            CycleError: a claimed trajectory is claimed already (unless it was left out, and is claimed by a newer
                feedback now), has no feedback or is not there; the cycle is not the next one; the version does not
                follow the current one; a version came with a report that is not ``published``, or none with one that
                is; a candidate is not approved any more.
        """
        row = cycles.cycle_row(report, claims)
        self._transact(
            lambda connection: cycles.commit(connection, report, claims, version, settled),
            landed=lambda connection: cycles.landed(connection, row),
        )

    def set_current(self, version_id: str) -> Version:
        """Make a version current again, durably, and return it; UnknownIdError where there is none of this id."""

        def work(connection: apsw.Connection) -> Version:
            version = read_version(connection, version_id)
            write_head(connection, read_head(connection)._replace(version=version.id))
            return version

        return self._transact(work)

    def pin(self, version_id: str) -> None:
        """Keep the files of a version from being removed by retention, durably; UnknownIdError where there is none of
        this id.
        """
        at_ns = time.time_ns()
        self._transact(lambda connection: write_pin(connection, version_id, at_ns))

    def unpin(self, version_id: str) -> None:
        """Let go of a pinned version, durably; UnknownIdError where there is none of this id."""
        self._transact(lambda connection: delete_pin(connection, version_id))

    def prune(self, limits: Limits | None = None, now_ns: int | None = None) -> Pruned:
        """Delete what is beyond ``limits``, those of the settings if there are none given: see
        :meth:`sona.storage.retention.Retention.apply`. Records come in meanwhile.

        What is deleted is not known any more: the same trajectory sent again is a new one. So whoever has a
        :class:`sona.storage.writer.Writer` settles it before, or after a power cut its journal may send them again.
        """
        retention = Retention(self._transact, self._snapshot, self._policy, self._wiping)
        return retention.apply(Limits.of(self.config) if limits is None else limits, now_ns)

    def erasure(self, source: str) -> Erasure:
        """The steps by which all of a source is erased: see :mod:`sona.storage.erasure`. Whoever takes them sees to it
        that no cycle runs meanwhile.
        """
        work = (self._transact, self._apart, self._snapshot, self._wiping)
        return Erasure(source, *work, Versions(self.path), self._policy)

    def erasure_under_way(self) -> UnderWay | None:
        """The one that was cut short, where none runs now."""
        with self._snapshot() as connection:
            return under_way(connection)

    def write_state(self, name: str, value: bytes) -> None:
        """Replace a value kept beside the records, durably."""
        check_id(name, "state name")
        self._transact(lambda connection: write_state(connection, name, bytes(value)))

    # Reading

    def collect(self, limit: int) -> Collected:
        """At most ``limit`` trajectories that have feedback and are claimed by no cycle, or were left out before their
        latest feedback came, in the order of the first feedback that makes them new. Of these each says with what
        quality the version in force learned it before.

        The cost follows what is new since the last cycle, not what the store holds; where something was rated anew, the
        number of versions too.
        """
        with self._snapshot() as connection:
            found = reading.collect(connection, limit)
            rows = rated(connection, found.rows, self._policy)
            return msgspec.structs.replace(found, rows=with_learned(connection, rows, self._policy))

    def sample(
        self,
        role: Role,
        count: int,
        rng: np.random.Generator,
        *,
        skills: Sequence[str] | None = None,
        after_cycle: int = 0,
        balanced: bool = False,
    ) -> list[Stored]:
        """``count`` trajectories drawn with replacement from those that the current version's lineage claimed as
        ``role``, ``train`` or ``held_out``; [] where there is none. Cycles that were rolled back do not count, cycles
        that published nothing do.

        ``skills`` leaves only what was claimed for one of these (None: all), ``after_cycle`` only what cycles with a
        higher number claimed. Each claim is as likely as any other; ``balanced`` makes each pattern as likely as any
        other (what has none is of one, ""), and within it each claim. The cost follows ``count`` and the number of
        groups of one cycle, skill and pattern, not the number of claims.
        """
        with self._snapshot() as connection:
            drawn = self._replay.sample(
                connection, role, count, rng, skills=skills, after_cycle=after_cycle, balanced=balanced
            )
            return rated(connection, drawn, self._policy)

    def replayable(self, role: Role, *, skills: Sequence[str] | None = None, after_cycle: int = 0) -> int:
        """From how many trajectories :meth:`sample` would draw. It reads no claim."""
        with self._snapshot() as connection:
            return self._replay.count(connection, role, skills=skills, after_cycle=after_cycle)

    def claims(self, cycle: int) -> list[Claim]:
        """What a cycle took, by role and then in the order of its commit, with the token ids made for it; [] where it
        took nothing. What it left out and a later cycle took again is that one's.
        """
        with self._snapshot() as connection:
            return read_claims(connection, cycle)

    def trained_on(self, cycle: int) -> dict[str, str]:
        """By the id of each trajectory that a cycle trained on as new, and that was not deleted since, the skill that
        it was learned into.
        """
        with self._snapshot() as connection:
            return read_trained_on(connection, cycle)

    def get(self, trajectory_id: str) -> Stored:
        """One trajectory; UnknownIdError where there is none of this id."""
        with self._snapshot() as connection:
            return rated(connection, [reading.get(connection, trajectory_id)], self._policy)[0]

    def __contains__(self, trajectory_id: str) -> bool:
        with self._snapshot() as connection:
            return reading.has(connection, trajectory_id)

    def source_of(self, trajectory_id: str) -> str | None:
        """Who sent a trajectory; None where there is none of this id."""
        with self._snapshot() as connection:
            return reading.source_of(connection, trajectory_id)

    def sources_of(self, trajectory_ids: Sequence[str]) -> dict[str, str]:
        """Who sent those of them that are there, by id."""
        with self._snapshot() as connection:
            return reading.sources_of(connection, trajectory_ids)

    def feedback_of(self, trajectory_id: str) -> list[Feedback]:
        """All feedback for a trajectory, in the order of arrival; UnknownIdError where there is no such trajectory."""
        with self._snapshot() as connection:
            return reading.feedback_of(connection, trajectory_id)

    def iterate(self, after_seq: int = 0) -> Iterator[Stored]:
        """All trajectories with a higher seq, in the order of arrival, those that come meanwhile included."""
        while True:
            with self._snapshot() as connection:
                rows = rated(connection, reading.page(connection, after_seq, PAGE_ROWS), self._policy)
            if not rows:
                return
            yield from rows
            after_seq = rows[-1].seq

    def next_cycle(self) -> int:
        """The number of the cycle that would be committed next, from 1."""
        with self._snapshot() as connection:
            return cycles.next_cycle(connection)

    def current(self) -> Version:
        """The version in force; at first ``v0``, the untouched base model."""
        with self._snapshot() as connection:
            return read_current(connection)

    def known_versions(self) -> set[str]:
        """The ids of all versions, for certain: whether a commit that failed is on the disk nobody knows, before
        another one stands in its place. Writes; raises StoreError where that fails.
        """

        def work(connection: apsw.Connection) -> set[str]:
            # Something new: SQLite writes nothing where a row is given the values that it has.
            write_state(connection, KNOWN, str(time.time_ns()).encode())
            return {version.id for version in read_versions(connection)}

        return self._transact(work)

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        with self._snapshot() as connection:
            return read_versions(connection)

    def pinned(self) -> dict[str, int]:
        """By the id of each pinned version, since when, in nanoseconds since 1970."""
        with self._snapshot() as connection:
            return read_pins(connection)

    def read_state(self, name: str) -> bytes | None:
        """A value kept beside the records; None where there is none."""
        with self._snapshot() as connection:
            return read_state(connection, name)

    def counts(self) -> StoreCounts:
        """Sizes of the store."""
        with self._snapshot() as connection:
            return reading.counts(connection, files_below(self.path))

    def uncollected(self) -> int:
        """How many trajectories :meth:`collect` would give without a limit, as :meth:`counts` counts them."""
        with self._snapshot() as connection:
            return reading.counts(connection, ()).uncollected

    def sizes(self) -> StoreSizes:
        """Bytes on disk, by what they are for."""
        self._check_open()
        return sizes_of(self._database, *(self.path / name for name in (BLOBS, JOURNAL, VERSIONS, TRAINING)))

    def arrivals(self) -> dict[str, Arrivals]:
        """What came in within the last ``minute``, ``hour`` and ``day``: see :func:`sona.storage.arrivals`."""
        with self._snapshot() as connection:
            return read_arrivals(connection, time.time_ns())

    def sources(self) -> list[SourceCounts]:
        """What each source sent, by name."""
        with self._snapshot() as connection:
            return reading.sources(connection)

    def reports(self, limit: int = 20) -> list[CycleReport]:
        """The newest ``limit`` cycle reports, newest first."""
        with self._snapshot() as connection:
            return cycles.read_reports(connection, limit)

    def backup(self, target: str | os.PathLike[str]) -> Backup:
        """Copy all that is committed, and the versions' files, to the folder ``target``, which is made and is a store
        itself. Works beside a writer, and records keep coming in meanwhile.

        Raises:
            InvalidInputError, StoreCorruptError, StoreFullError, StoreReadOnlyError, StoreError: see
                :func:`sona.storage.backup.back_up`.
        """
        self._check_open()
        return back_up(self._database, self._readers.gate, Versions(self.path), Path(target))

    @property
    def embedding_width(self) -> int | None:
        """Numbers in each embedding, fixed by the first one stored; None before it."""
        with self._snapshot() as connection:
            return read_head(connection).width

    # Connections

    @contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        self._check_open()
        with self._readers.snapshot() as connection:
            yield connection

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: used after close(), or in a forked child; open the store again")

    def _transact(
        self, work: Callable[[apsw.Connection], _T], landed: Callable[[apsw.Connection], bool] | None = None
    ) -> _T:
        self._check_open()
        if self.read_only:
            raise StoreReadOnlyError(f"{self.path}: opened with read_only=True; open it for writing")
        with self._writing:
            self._check_open()
            return self._transactions.run(work, landed)

    def _apart(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """As :meth:`_transact`, outside of any transaction."""
        self._check_open()
        with self._writing:
            self._check_open()
            return self._transactions.apart(work)
