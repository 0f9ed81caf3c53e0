"""What a store takes on the disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from sona.ports import StoreSizes


def sizes_of(database: Path, journal: Path, versions: Path) -> StoreSizes:
    """Of the store with this file and these folders, now. A file that goes away meanwhile counts as gone."""
    return StoreSizes(
        database=_bytes([database]),
        log=_bytes(database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm")),
        journal=_bytes(journal.glob("*")),
        versions=_bytes(versions.rglob("*")),
    )


def _bytes(files: Iterable[Path]) -> int:
    """Of regular files; one that stands under several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for file in files:
        try:
            found = file.lstat()
        except FileNotFoundError:  # a checkpoint or a prune took it away just now
            continue
        if S_ISREG(found.st_mode):
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
