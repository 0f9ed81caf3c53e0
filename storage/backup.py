"""Backups: the database as of one moment, the files of its versions, and what full-weight training has, in a folder
that is a store itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from sona.errors import InvalidInputError, SonaError, StoreCorruptError, StoreError, UnknownIdError
from sona.storage.blob_files import copy_data, path_of
from sona.storage.blobs import count_named, lacking, read_blobs
from sona.storage.catalogue import TABLES, Row, Table
from sona.storage.connection import make_private, open_reader, store_error
from sona.storage.draft import rename_folder
from sona.storage.head import read_head, read_versions
from sona.storage.layout import BLOBS
from sona.storage.sizes import bytes_of, files_below
from sona.storage.snapshot_gate import SnapshotGate, make_gate
from sona.storage.training_folder import TrainingFolder
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, Version, new_id

_Inode = tuple[int, int]

ATTEMPTS = 3
"""How often it is begun again because files of a version changed meanwhile: an erasure rewrites them."""


class Backup(Record, kw_only=True):
    """What a backup holds."""

    path: str
    trajectories: int
    version: str
    """The one in force."""
    versions: tuple[str, ...]
    """Those whose files are in it, oldest first."""
    damaged: tuple[str, ...] = ()
    """Versions that were left out, because their files are not what was published."""
    damaged_rows: int = 0
    """Rows that are in it as they are, damaged: their checksum is not that of their values."""
    checkpoints: tuple[int, ...] = ()
    """Of full-weight training; with them its jobs."""
    size_bytes: int


def back_up(database: Path, gate: SnapshotGate, folders: Versions, target: Path) -> Backup:
    """Copy the committed records and the versions' files to ``target``, while others read and write.

    The database is copied by ``VACUUM INTO`` (sqlite.org/lang_vacuum.html) in one read transaction; until it ends the
    WAL of the original only grows, and what is deleted meanwhile is not overwritten. A version's files never change, so
    on the same disk they are hard links.

    Checked of it are the files of versions, that each blob file reaches as far as rows name it, and the checksum of
    each row in the copy, over what it names in a blob file too: 3 us a row, about as long as copying takes from memory.
    Damaged rows are copied as they are, and counted: it may be the last backup. Not checked are what rows say of each
    other, what is counted of them, and the files of full-weight training; indexes are made anew. All of that
    :func:`sona.storage.doctor.diagnose` does, of the backup too.

    Raises:
        InvalidInputError: there is something at ``target``, or it lies within the store.
        StoreCorruptError: SQLite can't read the database; a blob file is missing or too short; the files of the version
            in force, or a row that names it, the versions or the blob files, are damaged.
        StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble; nothing is left at ``target``.
    """
    target = target.absolute()
    _check(database.parent, target)
    draft = target.with_name(f"{target.name}.part-{new_id()}")
    try:
        backup = _fill(database, gate, folders, draft, target)
        rename_folder(draft, target)  # SQLite does not sync what ``VACUUM INTO`` wrote
    except OSError as error:
        raise store_error(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return backup


def _check(store: Path, target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise InvalidInputError(f"{target} exists; give the backup a name that is not taken")
    if target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{target} lies within the store; give the backup a place outside of it")


def _fill(database: Path, gate: SnapshotGate, folders: Versions, draft: Path, target: Path) -> Backup:
    for attempt in range(ATTEMPTS):
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)  # what people said is nobody else's
        (draft / folders.folder.name).mkdir(mode=0o700)
        copy = draft / database.name
        with gate.shared():
            copy_database(database, copy)
            with closing(open_reader(copy)) as connection:
                _take_blobs(connection, database.parent / BLOBS, draft / BLOBS)
        with closing(open_reader(copy)) as connection:
            current, versions = read_head(connection).version, read_versions(connection)
        whole, damaged = _take_folders(folders, Versions(draft), versions)
        if current in (BASE_VERSION, *whole) and (not damaged or attempt == ATTEMPTS - 1):
            break
    else:
        raise StoreCorruptError(
            f"version {current!r} is in force, and its files in {folders.folder} are damaged or missing; run 'sona "
            f"doctor --store {database.parent} --repair' first"
        )
    with closing(open_reader(copy)) as connection:
        trajectories: int = connection.execute("SELECT count(*) FROM trajectories").get
        damaged_rows = sum(_count_damaged(connection, table) for table in TABLES)
    training = take_training(TrainingFolder(database.parent), draft)
    size = bytes_of(files_below(draft))
    return Backup(
        path=str(target),
        trajectories=trajectories,
        version=current,
        versions=tuple(whole),
        damaged=tuple(damaged),
        damaged_rows=damaged_rows,
        checkpoints=tuple(training.checkpoints.numbers()),
        size_bytes=size,
    )


def copy_database(database: Path, copy: Path) -> None:
    """Write what ``database`` holds at this moment to the new file ``copy``, without what was deleted.

    Raises:
        StoreError: in the form of one of its subclasses.
    """
    try:
        with closing(open_reader(database)) as connection:
            connection.execute("PRAGMA query_only = OFF")  # it would keep the copy from being written as well
            make_private(copy)
            connection.execute("VACUUM INTO ?", (os.fspath(copy),))
    except apsw.FullError as error:
        raise store_error(error, copy.parent) from error
    except apsw.Error as error:
        raise store_error(error, database) from error


def _take_blobs(connection: apsw.Connection, folder: Path, into: Path) -> None:
    """Copies, not links: what is deleted later is overwritten in its place. A file may be missing that no row names."""
    for path, what in lacking(count_named(connection), folder).items():
        raise StoreCorruptError(
            f"{path}: it {what}; 'sona doctor --store {folder.parent}' says what is lost, and what to do"
        )
    make_gate(into)
    for row in read_blobs(connection):
        if (path := path_of(folder, row.file)).exists():
            if not os.access(path, os.R_OK):  # as an error of the copying it would be told of the target
                raise StoreError(f"{path}: it can't be read; grant read permission to it, as to store.db")
            copy_data(path, path_of(into, row.file), row.size)


def _count_damaged(connection: apsw.Connection, table: Table) -> int:
    """How many rows of a table are not what was written."""
    texts = [name for name, kinds in table.columns.items() if "t" in kinds]
    # As bytes: what is no text any more would end the statement.
    columns = [f"CAST({name} AS BLOB)" if name in texts else name for name in table.selected]
    count = 0
    rows: Any = connection.execute(f"SELECT {', '.join(columns)} FROM {table.name}")
    for values in rows:
        row: Row = dict(zip(table.columns, values, strict=True))
        for name in texts:
            if isinstance(text := row[name], bytes):
                row[name] = text.decode("utf-8", "surrogateescape")  # which no checksum fits
        count += not table.is_whole(row)
    return count


def take_training(source: TrainingFolder, into: Path) -> TrainingFolder:
    """Everything that full-weight training goes on from, into the store ``into``; begun again where a file went away
    meanwhile.

    Raises:
        StoreError: files went away each time.
    """
    target = TrainingFolder(into)
    for _ in range(ATTEMPTS):
        shutil.rmtree(target.path, ignore_errors=True)
        try:
            for file in source.files():
                place = target.path / file.relative_to(source.path)
                for folder in (target.path, place.parent):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _link(file, place)
            return target
        except FileNotFoundError:  # a job was done, or an old checkpoint removed
            continue
    raise StoreError(f"{source.path}: its files changed while they were copied, {ATTEMPTS} times; try again")


def _take_folders(source: Versions, into: Versions, versions: list[Version]) -> tuple[list[str], list[str]]:
    """The ids of the versions whose files are now in ``into``, and of those whose files are not what was published."""
    whole, damaged = [], []
    links: dict[_Inode, Path] = {}
    for version in versions:
        if version.id == BASE_VERSION:
            continue
        target = into.folder / version.id
        try:
            taken = _take(source.path(version.id), target, links)
            into.verify(version)
            whole.append(version.id)
            links |= taken
        except (UnknownIdError, FileNotFoundError):  # pruned, before or just now
            shutil.rmtree(target, ignore_errors=True)
        except SonaError:
            shutil.rmtree(target, ignore_errors=True)
            damaged.append(version.id)
    return whole, damaged


def _take(folder: Path, target: Path, links: Mapping[_Inode, Path]) -> dict[_Inode, Path]:
    """All files, linked where the disk can; a file that two versions share is copied once. Returns where those are that
    are not in ``links``.
    """
    target.mkdir(mode=0o700)
    taken: dict[_Inode, Path] = {}
    for entry in sorted(folder.rglob("*")):
        place = target / entry.relative_to(folder)
        if entry.is_dir() and not entry.is_symlink():
            place.mkdir(mode=0o700)
            continue
        about = entry.lstat()
        inode = (about.st_dev, about.st_ino)
        _link(links.get(inode, entry), place)
        taken[inode] = place
    return taken


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copy2(file, place, follow_symlinks=False)
