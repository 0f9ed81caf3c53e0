"""``sona doctor``: what is wrong with a store."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from sona.errors import InvalidInputError, StoreCorruptError, StoreVersionError, UnknownIdError
from sona.storage.connection import is_cut_short, open_reader_of_any_form, store_error
from sona.storage.erasure import MARK, UnderWay, under_way
from sona.storage.findings import Diagnosis, Finding, Severity, rows_of, so_many
from sona.storage.layout import BLOBS, DAMAGED, DATABASE, LOCK, QUARANTINE, REBUILT, VERSIONS
from sona.storage.lock import owner_of
from sona.storage.lost_claims import WHY, LostClaims
from sona.storage.mapped import FOLDER as JOURNAL
from sona.storage.mapped import scanned_in, told_of_damage, waiting_in
from sona.storage.pages import Pages
from sona.storage.presence import (
    A_FILE,
    ANOTHER_USERS,
    EMPTY,
    INSTEAD,
    NO_FILE,
    NO_FOLDER,
    UNREADABLE,
    UNWRITABLE,
    told_of_orphans,
    versions_in,
)
from sona.storage.quality import read_policy
from sona.storage.row_checks import Checked, check
from sona.storage.salvage import by_pages
from sona.storage.schema import SCHEMA_VERSION, form_of
from sona.storage.snapshot_gate import SnapshotGate
from sona.storage.training_folder import TrainingFolder
from sona.storage.versions import DRAFT, Versions
from sona.types import BASE_VERSION, Version

# What a file says that is damaged, rather than locked, unreadable for this user, or on a failing disk.
_OF_DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.FormatError, UnicodeDecodeError)
_KEPT = ("trajectories", "feedback", "claims", "cycles", "versions")
_FOLDERS = (BLOBS, JOURNAL, VERSIONS)
_LEARNED = f"What was learned still lies in {VERSIONS}/"
ANEW = "makes a new database of all rows that are whole"


@dataclass
class Examination:
    """What was found, and what a repair has to know of it."""

    findings: list[Finding] = field(default_factory=list)
    by_pages: bool = False
    """Whether SQLite does not read it whole, so that its pages have to be."""
    rebuild: bool = False
    """Whether the database has to be made anew."""
    form: int = SCHEMA_VERSION
    versions: list[Version] = field(default_factory=list)
    in_force: str | None = None
    pinned: frozenset[str] = frozenset()

    def add(self, severity: Severity, where: str, what: str, repair: str = "") -> None:
        """One more finding."""
        self.findings.append(Finding(severity=severity, where=where, what=what, repair=repair))

    @property
    def is_fatal(self) -> bool:
        """Whether nothing can be done."""
        return any(finding.severity == "fatal" for finding in self.findings)


def diagnose(store: str | os.PathLike[str]) -> Diagnosis:
    """Look at everything in a store's folder, and change nothing. Works beside a running agent.

    It reads every row, every file of a version, and every job and checkpoint of full-weight training. Where nobody
    writes to the store it also opens the database's file by itself, so it must not be called in a process that reads
    the store just then.

    Raises:
        StoreError: the folder can't be read, in the form of one of its subclasses.
    """
    folder = Path(store).absolute()
    return Diagnosis(path=str(folder), findings=tuple(examine(folder).findings))


def examine(folder: Path, *, is_mine: bool = False) -> Examination:
    """As :func:`diagnose`; ``is_mine`` says that the caller has the writer's lock."""
    found = Examination()
    database = folder / DATABASE
    try:
        _examine_presence(found, folder)
    except PermissionError:
        found.add("fatal", str(folder), ANOTHER_USERS)
    if found.findings:
        return found
    try:
        _examine_permissions(found, folder)
        owner = None if is_mine else owner_of(folder / LOCK)
        if owner is not None:
            found.add("note", LOCK, f"process {owner} writes to it")
        _examine_database(found, database, alone=owner is None)
        if not found.is_fatal:
            _examine_folders(found, Versions(folder))
            for where, what in TrainingFolder(folder).damage().items():
                found.add("damaged", where, what)
            _note_files(found, folder)
            if owner is None:  # beside its writer a file may change while it is read
                _examine_journal(found, folder / JOURNAL)
    except PermissionError as error:  # nothing is written here
        found.add("fatal", _name(error, folder), UNREADABLE)
    except OSError as error:
        raise store_error(error, folder) from error
    return found


def _name(error: PermissionError, folder: Path) -> str:
    """Of what ``error`` is about, within the store's ``folder``."""
    path = folder / (error.filename or "")
    return str(path.relative_to(folder) if path.is_relative_to(folder) and path != folder else path)


def _examine_presence(found: Examination, folder: Path) -> None:
    """Whether there is a database to look at, and no repair to be taken to its end first."""
    if folder.exists() and not folder.is_dir():
        found.add("fatal", str(folder), A_FILE)
    elif (folder / REBUILT).exists():
        found.add("repairable", REBUILT, "a repair was cut short", "takes it to its end")
    elif orphans := told_of_orphans(folder):
        found.add("fatal", DATABASE, orphans)
    elif not (folder / DATABASE).is_file():
        found.add("fatal", str(folder), "there is no store; see that the path is right")
    else:
        for name in _FOLDERS:
            if (folder / name).exists() and not (folder / name).is_dir():
                found.add("fatal", name, NO_FOLDER)
        if (folder / LOCK).is_dir():
            found.add("fatal", LOCK, NO_FILE)


def _examine_permissions(found: Examination, folder: Path) -> None:
    """Whether this user may read the database; and write, where that is not said of the folder as a whole: a store in a
    folder that is not writable is only read, as a backup may be.

    Raises:
        PermissionError: it may not be read.
    """
    if not os.access(folder / DATABASE, os.R_OK):  # SQLite says only that it can't open it
        raise PermissionError(errno.EACCES, "", str(folder / DATABASE))
    if os.access(folder, os.W_OK):
        for name in (DATABASE, f"{DATABASE}-wal", LOCK, *_FOLDERS):
            if (folder / name).exists() and not os.access(folder / name, os.W_OK):
                found.add("repairable", name, UNWRITABLE)


# The database


def _examine_database(found: Examination, database: Path, *, alone: bool) -> None:
    beyond = _beyond(database) if alone else 0
    try:
        checked = _read(found, database, alone=alone)
    except StoreVersionError as error:
        found.add("fatal", DATABASE, str(error))
        return
    except (*_OF_DAMAGE, StoreCorruptError) as error:
        _examine_pages(found, database, str(error), alone=alone)
        return
    except apsw.Error as error:
        if not is_cut_short(error):
            raise store_error(error, database) from error
        _examine_pages(found, database, "it is cut short", alone=alone)
        return
    if beyond:
        what = f"{so_many(beyond, 'transaction lies', 'transactions lie')} beyond damage, where SQLite does not look"
        found.add("damaged", f"{DATABASE}-wal", what, ANEW)
        found.by_pages = True
    if checked is not None:
        found.findings += checked.findings
        found.versions, found.in_force, found.pinned = checked.versions, checked.in_force, checked.pinned
    found.rebuild = any(finding.repair for finding in found.findings)


def _beyond(database: Path) -> int:
    with closing(Pages(database)) as pages:
        return pages.transactions_beyond


def _read(found: Examination, database: Path, *, alone: bool) -> Checked | None:
    """What SQLite can tell; None where the tables are of another form."""
    folder = database.parent
    with SnapshotGate(folder / BLOBS).shared(), closing(open_reader_of_any_form(database)) as connection:
        connection.execute("BEGIN")
        found.form = form_of(connection, database)
        problems: list[Any] = connection.execute("PRAGMA integrity_check(5)").fetchall()
        if problems != [("ok",)]:
            raise StoreCorruptError("; ".join(" ".join(row[0].split()) for row in problems))
        if found.form == SCHEMA_VERSION:
            checked = check(connection, folder, read_policy(connection))
            if not checked.findings and (begun := under_way(connection)) is not None:
                _note_erasure(found, begun, alone=alone)
            return checked
    if not found.form:
        found.add("repairable", DATABASE, EMPTY, "makes a store without records of it, as the next start does")
        return None
    what = f"schema {found.form}, its rows were not looked at; opening it for writing brings it to {SCHEMA_VERSION}"
    found.add("note", DATABASE, what)
    return None


def _note_erasure(found: Examination, begun: UnderWay, *, alone: bool) -> None:
    """It has no repair of its own: who knows the source's name takes it to its end, or the next engine where no more is
    left than to overwrite.
    """
    ends = f"{begun.end} takes it to its end"
    if alone:
        what = f"{begun.name} was cut short, here or in the store that this is a backup of; {ends}"
        found.add("repairable", f"state {MARK!r}", what)
    else:
        found.add("note", f"state {MARK!r}", f"{begun.name} is under way; if it was cut short, {ends}")


def _examine_pages(found: Examination, database: Path, why: str, *, alone: bool) -> None:
    """What can still be read of a database that SQLite can't read whole."""
    found.by_pages = found.rebuild = True
    if not alone:
        found.add("damaged", DATABASE, f"{why}; end its writer to see what can still be read", ANEW)
        return
    whole, damaged, lost = Counter[str](), Counter[str](), LostClaims()
    for table, row, is_whole in by_pages(database):
        (whole if is_whole else damaged)[table.name] += 1
        if is_whole:
            lost.note(table, row)
    if not any(whole[name] for name in _KEPT):
        learned = f". {_LEARNED}" if versions_in(database.parent) else ""
        found.add("fatal", DATABASE, f"{why}; there is no row of a store in it; {INSTEAD}{learned}")
        return
    still = ", ".join(rows_of(name, whole[name]) for name in _KEPT)
    found.add("damaged", DATABASE, f"{why}; still whole are {still}", ANEW)
    if count := lost.count():
        of_these = so_many(
            count, "of these trajectories has lost its claim", "of these trajectories have lost their claims"
        )
        found.add("damaged", "claims", of_these, f"sets them aside in {QUARANTINE}/: {WHY}")
    if damaged.total():
        what = so_many(damaged.total(), "row can be read and is not whole", "rows can be read and are not whole")
        found.add("damaged", DATABASE, what, "sets them aside")


# The versions' folders


def _examine_folders(found: Examination, folders: Versions) -> None:
    damaged = {version.id: why for version in found.versions if (why := _damage(folders, version)) is not None}
    for name, why in damaged.items():
        if name == found.in_force:
            what = why or "its files are missing"
            found.add("damaged", f"version {name}, in force", what, "puts the nearest whole version before it in force")
        elif why:
            found.add("damaged", f"version {name}", why, "sets its folder aside")
        elif name in found.pinned:
            what = f"its files are gone, which no retention removes; 'sona versions unpin {name}' if nobody misses them"
            found.add("damaged", f"version {name}, pinned", what)
    if not folders.folder.is_dir() or not found.versions:
        return
    known = {version.id for version in found.versions}
    for entry in sorted(folders.folder.iterdir()):
        if entry.name.startswith(DRAFT):
            found.add("note", f"{VERSIONS}/{entry.name}", "a draft that a crash left; the next start removes it")
        elif entry.name not in known:
            what = "no version of the database has this name; the next start moves it to quarantine/"
            if entry.name == _next_id(known):
                crash = "A crash left it, or the database is one version older than its folders"
                found.add("note", f"{VERSIONS}/{entry.name}", f"{what}. {crash}")
            else:
                older = "The database is older than its folders: put the newer one back before that, if there is one"
                found.add("damaged", f"{VERSIONS}/{entry.name}", f"{what}. {older}", "moves it there now")


def _next_id(known: set[str]) -> str:
    """What the next cycle calls its version."""
    return f"v{max((int(name[1:]) for name in known if name[1:].isdigit()), default=0) + 1}"


def _damage(folders: Versions, version: Version) -> str | None:
    """Why a version can't be put in force; "" where its folder is gone, as pruning leaves it; None where it can."""
    if version.id == BASE_VERSION:
        return None
    try:
        folders.verify(version)
    except UnknownIdError:
        return ""
    except (StoreCorruptError, InvalidInputError) as error:
        return str(error)
    return None


def _note_files(found: Examination, folder: Path) -> None:
    for path in _others(folder):
        found.add("note", path.name, "a repair or a start left it; delete it once nothing in it is missed")
    if waiting := waiting_in(folder):
        on_way = so_many(waiting, "record on its way", "records on their way")
        what = f"{on_way} into the database; who writes to it, or the next start, takes in what waits"
        found.add("note", JOURNAL, what)


def _examine_journal(found: Examination, journal: Path) -> None:
    for path, scanned in scanned_in(journal).items():
        if scanned.skipped:
            repair = f"takes those up, and keeps the file in {QUARANTINE}/, as the next start does"
            found.add("damaged", f"{JOURNAL}/{path.name}", told_of_damage(path, scanned), repair)


def _others(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob(f"{DAMAGED}*"))
    yield from folder.glob(QUARANTINE)
