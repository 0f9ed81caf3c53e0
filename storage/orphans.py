"""What lies in a store's folder without its database: learned versions, blob files of records, and the log."""

from __future__ import annotations

from pathlib import Path

from sona.errors import StoreCorruptError
from sona.storage.layout import BLOBS, DATABASE, VERSIONS

# Not the backup's database alone: it says where in its own blob files each record lies, and here others lie there now.
INSTEAD = "use a backup of this store in place of this folder, or another folder"

_LOG_BEGINS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""How a log begins: https://sqlite.org/fileformat2.html, 4.1."""


def told_of_orphans(folder: Path) -> str | None:
    """What is wrong where the database is missing or empty beside what belongs to one, and what to do; None where that
    is not so.
    """
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return None
    versions = sorted(path.name for path in (folder / VERSIONS).glob("[!.]*") if path.is_dir())
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


def _was_written(log: Path) -> bool:
    """Whether a log holds transactions: all there is, perhaps, where its writer was killed, and SQLite would remove it
    with an empty database. No first start leaves that: SQLite syncs the database's first page before it begins a log.
    Of a log that a power cut left there may be the name and zeros.
    """
    try:
        with log.open("rb") as file:
            return file.read(len(_LOG_BEGINS[0])) in _LOG_BEGINS
    except FileNotFoundError:
        return False


def check_no_orphans(folder: Path) -> None:
    """Raise StoreCorruptError where a new database would take the place of a lost one."""
    if told := told_of_orphans(folder):
        raise StoreCorruptError(f"{folder}: {told}")
