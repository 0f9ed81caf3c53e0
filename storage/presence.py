"""Whether a folder is a store, and what lies in one without its database: learned versions, blob files of records, and
the log.
"""

from __future__ import annotations

from pathlib import Path

from sona.errors import StoreCorruptError, StoreError
from sona.storage.layout import BLOBS, DATABASE, REBUILT, VERSIONS

A_FILE = "a file; a store is a folder: name that one, or another path"
ANOTHER_USERS = "another user's, and not to be read by this one; ask its owner"
UNREADABLE = "this user may not read it; grant read permission to it, or ask its owner"
UNWRITABLE = "this user may not write to it, so nothing can be stored; grant write permission to it"
NO_FOLDER = "a file, where the store has a folder, so it can't be opened; move it away"
NO_FILE = "a folder, where the store has a file, so it can't be opened; move it away"
EMPTY = (
    "empty; a start that was cut short left it so, or its records are lost: then use a backup of this store in place "
    "of this folder"
)
# Not the backup's database alone: it says where in its own blob files each record lies, and here others lie there now.
INSTEAD = "use a backup of this store in place of this folder, or another folder"

_LOG_BEGINS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""How a log begins: https://sqlite.org/fileformat2.html, 4.1."""


def check_folder(folder: Path) -> None:
    """Raise where a store can't be in ``folder``, or a new database would take the place of a lost one. What is not
    there may be made.

    Raises:
        StoreCorruptError: its database is lost, or its repair was cut short.
        StoreError: it is a file, or may not be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder}: {A_FILE}")
        is_rebuilt, told = (folder / REBUILT).exists(), told_of_orphans(folder)
    except PermissionError as error:
        raise StoreError(f"{folder}: {ANOTHER_USERS}") from error
    if is_rebuilt:
        raise StoreCorruptError(
            f"{folder}: its repair was cut short; 'sona doctor --store {folder} --repair' takes it to its end"
        )
    if told:
        raise StoreCorruptError(f"{folder}: {told}")


def check_there(folder: Path) -> None:
    """As :func:`check_folder`, and a StoreError where there is no store either."""
    check_folder(folder)
    if not (folder / DATABASE).is_file():
        raise StoreError(f"{folder}: no store; see that the path is right")


def told_of_orphans(folder: Path) -> str | None:
    """What is wrong where the database is missing or empty beside what belongs to one, and what to do; None where that
    is not so.
    """
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return None
    versions = versions_in(folder)
    blobs = sum(1 for _ in (folder / BLOBS).glob("*.blob"))
    log = database.with_name(f"{DATABASE}-wal")
    held = [f"versions {', '.join(versions)}"] if versions else []
    if blobs:
        held.append(f"{blobs} blob file{'s' if blobs > 1 else ''} of records")
    if _was_written(log):
        held.append(f"its log {log.name}")
    if not held:
        return None
    return (
        f"the database is {'empty' if database.exists() else 'missing'}, with {' and '.join(held)} beside it; "
        f"{INSTEAD}: nothing here is changed"
    )


def versions_in(folder: Path) -> list[str]:
    """The names of the learned versions whose folders are there."""
    return sorted(path.name for path in (folder / VERSIONS).glob("[!.]*") if path.is_dir())


def _was_written(log: Path) -> bool:
    """Whether a log holds transactions: all there is, perhaps, where its writer was killed, and SQLite would remove it
    with an empty database. No first start leaves that: SQLite syncs the database's first page before it begins a log.
    Of a log that a power cut left there may be the name and zeros.
    """
    try:
        with log.open("rb") as file:
            return file.read(len(_LOG_BEGINS[0])) in _LOG_BEGINS
    except (FileNotFoundError, NotADirectoryError):
        return False
