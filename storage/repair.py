"""``sona doctor --repair``.

A repair never writes to the old database. It makes a new one beside it, of all rows that are whole, makes these agree,
looks at the result, and only then exchanges the two; the old one stays as ``store.db.damaged-<n>``. From the moment
that ``store.db.rebuilt`` has its name the exchange is decided, and the store can't be opened before it was done.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import apsw

from sona.errors import SonaError, StoreCorruptError
from sona.storage.connection import Connection, make_private, open_reader, store_error
from sona.storage.doctor import Examination, diagnose, examine
from sona.storage.exchange import decide, exchange, next_number
from sona.storage.findings import Diagnosis, rows_of, so_many
from sona.storage.layout import DATABASE, LOCK, QUARANTINE, REBUILDING, REBUILT
from sona.storage.lock import WriterLock
from sona.storage.mapped import FOLDER as JOURNAL
from sona.storage.mapped import open_journal, scanned_in
from sona.storage.mend import mend, nearest_whole
from sona.storage.quality import Policy, read_policy
from sona.storage.quarantine import Quarantine
from sona.storage.row_checks import check
from sona.storage.salvage import by_pages, by_sqlite, rebuild
from sona.storage.schema import SCHEMA_VERSION
from sona.storage.store import DEFAULTS, Store
from sona.storage.versions import Versions
from sona.storage.writer import Writer


def repair(store: str | os.PathLike[str]) -> Diagnosis:
    """Repair what can be, and look again. A second time does nothing more; cut short, it goes on where it was.

    It needs the room of a second database, and must not be called in a process that has the store open.

    Raises:
        StoreLockedError: somebody writes to it.
        StoreCorruptError: what was made would not be whole; the store is as it was.
        StoreFullError, StoreReadOnlyError, StoreError: of the disk; the store is as it was, or the repair is decided,
            and done when it is called again.
    """
    folder = Path(store).absolute()
    done: list[str] = []
    if examine(folder).is_fatal or not folder.is_dir():
        return diagnose(folder)
    try:
        _repair_database(folder, done)
        _repair_journal(folder, done)
        _repair_versions(folder, done)
    except apsw.Error as error:
        raise store_error(error, folder / DATABASE) from error
    except OSError as error:
        raise store_error(error, folder) from error
    after = diagnose(folder)
    return Diagnosis(path=after.path, findings=after.findings, done=tuple(done))


def _repair_database(folder: Path, done: list[str]) -> None:
    lock = WriterLock(folder / LOCK)
    try:
        if (folder / REBUILT).exists():
            done.append(
                f"the repair that was cut short was taken to its end; the old database is {exchange(folder).name}"
            )
        (folder / REBUILDING).unlink(missing_ok=True)
        found = examine(folder, is_mine=True)
        if found.form < SCHEMA_VERSION and not found.by_pages:
            lock.release()
            made = (
                f"brought from schema {found.form} to {SCHEMA_VERSION}" if found.form else "an empty one was begun anew"
            )
            done.append(made)
            found = _migrated(folder)
            lock = WriterLock(folder / LOCK)
        if found.rebuild:
            _rebuild(folder, found, done)
            decide(folder)
            done.append(f"a new database was made; the old one is {exchange(folder).name}")
    finally:
        (folder / REBUILDING).unlink(missing_ok=True)
        lock.release()


def _migrated(folder: Path) -> Examination:
    """Of a store of an older schema, once it was brought to the one in force."""
    with suppress(StoreCorruptError):  # then its pages are read
        Store.open(folder).close()
    return examine(folder)


def _rebuild(folder: Path, found: Examination, done: list[str]) -> None:
    """Make ``store.db.rebuilding``, and see that it is whole."""
    database, target = folder / DATABASE, folder / REBUILDING
    rows = by_pages(database) if found.by_pages else by_sqlite(database)
    make_private(target)
    target.chmod(stat.S_IMODE(database.stat().st_mode) | 0o600)  # whoever shares a store has granted it to others
    with Quarantine(folder, next_number(folder)) as quarantine:
        salvaged = rebuild(rows, target, quarantine)
        found_damaged = quarantine.counts.copy()
        with closing(Connection(str(target), folder)) as connection:
            connection.execute("BEGIN")
            done += mend(connection, Versions(folder), quarantine, _policy(connection))
            connection.execute("COMMIT")
    # What mending set aside had been taken over before.
    done += _told(salvaged.rows - (quarantine.counts - found_damaged), quarantine)
    with closing(open_reader(target)) as connection:
        problems = connection.execute("PRAGMA integrity_check(1)").fetchall()
        checked = check(connection, folder, read_policy(connection))
    wrong = [finding for finding in checked.findings if finding.repair]
    if problems != [("ok",)] or wrong:
        raise StoreCorruptError(f"{target}: what was made is not whole ({wrong or problems}); the store is as it was")


def _policy(connection: apsw.Connection) -> Policy:
    try:
        return read_policy(connection)
    except StoreCorruptError:
        return "last"  # what a store has that says nothing of it


def _told(rows: Counter[str], quarantine: Quarantine) -> list[str]:
    kept = ", ".join(rows_of(name, count) for name, count in sorted(rows.items()) if count) or "none"
    told = [f"whole rows taken over: {kept}"]
    if quarantine.counts:
        aside = ", ".join(rows_of(name, count) for name, count in sorted(quarantine.counts.items()))
        told.append(f"set aside in {QUARANTINE}/{quarantine.path.name}: {aside}")
    return told


def _repair_journal(folder: Path, done: list[str]) -> None:
    """As an agent does when it opens the store."""
    found = {path.name: one for path, one in scanned_in(folder / JOURNAL).items() if one.skipped}
    if not found:
        return
    with Store.open(folder) as store, closing(Writer(store, journal=open_journal(folder, DEFAULTS))) as writer:
        writer.flush()
    for name, one in found.items():
        taken = so_many(len(one.frames), "record", "records")
        done.append(f"{JOURNAL}/{name}: {taken} taken up; the file is kept in {QUARANTINE}")


def _repair_versions(folder: Path, done: list[str]) -> None:
    folders = Versions(folder)
    with Store.open(folder) as store:
        versions = {version.id: version for version in store.versions()}
        before = store.current().id
        now = nearest_whole(folders, versions, before)
        if now != before:
            store.set_current(now)
            done.append(f"version {now!r} is in force, {before!r} was")
        for version in versions.values():
            if not version.parent or not (folders.folder / version.id).exists():
                continue
            try:
                folders.verify(version)
            except SonaError:
                folders.set_aside(version.id, folder / QUARANTINE)
                done.append(f"the files of version {version.id!r} were set aside in {QUARANTINE}")
        for name in sorted(entry.name for entry in folders.folder.iterdir() if entry.name not in versions):
            folders.set_aside(name, folder / QUARANTINE)
            done.append(f"{name}, which no version is named, was set aside in {QUARANTINE}")
