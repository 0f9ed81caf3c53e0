"""Putting a rebuilt database in the place of a damaged one, so that a crash in between leaves it decided."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sona.storage.layout import DAMAGED, DATABASE, REBUILDING, REBUILT
from sona.storage.syncing import sync_path


def next_number(store: Path) -> int:
    """Of the next repair: one more than that of the last database that was put away."""
    numbers = [
        int(path.name[len(DAMAGED) :]) for path in store.glob(f"{DAMAGED}*") if path.name[len(DAMAGED) :].isdigit()
    ]
    return max(numbers, default=0) + 1


def decide(store: Path) -> None:
    """Sync what was rebuilt and give it its name; from now on the store can only be opened after :func:`exchange`."""
    sync_path(store / REBUILDING)
    (store / REBUILDING).rename(store / REBUILT)
    sync_path(store)


def exchange(store: Path) -> Path:
    """Put the old database away and the rebuilt one in its place; returns where the old one is.

    It may be done again after it was cut short: the old database keeps its name, beside a second one, until the new one
    takes it; its WAL goes first, because SQLite would take it for the new one's.
    """
    database = store / DATABASE
    away = _away(store, database)
    wal = store / f"{DATABASE}-wal"
    if wal.exists():
        wal.rename(f"{away}-wal")
    (store / f"{DATABASE}-shm").unlink(missing_ok=True)
    sync_path(store)
    (store / REBUILT).replace(database)
    sync_path(store)
    return away


def _away(store: Path, database: Path) -> Path:
    """The second name of the old database."""
    for path in store.glob(f"{DAMAGED}*"):
        if database.exists() and path.samefile(database):
            return path
    away = store / f"{DAMAGED}{next_number(store)}"
    try:
        os.link(database, away)
    except FileNotFoundError:  # there was none
        pass
    except OSError:  # a disk without links
        shutil.copy2(database, away)
        sync_path(away)
    sync_path(store)
    return away
