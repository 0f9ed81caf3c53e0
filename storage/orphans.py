"""What lies in a store's folder without its database: learned versions, and blob files of records."""

from __future__ import annotations

from pathlib import Path

from sona.errors import StoreCorruptError
from sona.storage.layout import BLOBS, DATABASE, VERSIONS


def told_of_orphans(folder: Path) -> str | None:
    """What is wrong where the database is missing or empty beside what belongs to one, and what to do; None where that
    is not so.
    """
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return None
    log = database.with_name(f"{DATABASE}-wal")
    if log.exists() and log.stat().st_size:  # a first start that was killed
        return None
    versions = sorted(path.name for path in (folder / VERSIONS).glob("[!.]*") if path.is_dir())
    blobs = sum(1 for _ in (folder / BLOBS).glob("*.blob"))
    if not versions and not blobs:
        return None
    held = [f"versions {', '.join(versions)}"] * bool(versions) + [f"{blobs} blob files of records"] * bool(blobs)
    return (
        f"the database is {'empty' if database.exists() else 'missing'}, and {' and '.join(held)} lie beside it; put "
        f"{DATABASE} back from a backup of this store, or take a new folder: nothing here is changed"
    )


def check_no_orphans(folder: Path) -> None:
    """Raise StoreCorruptError where a new database would take the place of a lost one."""
    if told := told_of_orphans(folder):
        raise StoreCorruptError(f"{folder}: {told}")
