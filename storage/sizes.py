"""What a store takes on the disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from sona.ports import StoreSizes


def sizes_of(database: Path, blobs: Path, journal: Path, versions: Path, training: Path) -> StoreSizes:
    """Of the store with this file and these folders, now. A file that goes away meanwhile counts as gone; one
    that stands in several folders, as a version's at a model server does, in the first of them.
    """
    seen: set[tuple[int, int]] = set()

    def take(files: Iterable[Path]) -> int:
        found = _taken(files)
        new = sum(size for file, size in found.items() if file not in seen)
        seen.update(found)
        return new

    return StoreSizes(
        database=take([database]),
        log=take(database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm")),
        blobs=take(blobs.glob("*")),
        journal=take(journal.glob("*")),
        versions=take(files_below(versions)),
        training=take(files_below(training)),
        other=take(files_below(database.parent)),
    )


def bytes_of(files: Iterable[Path]) -> int:
    """What these files take, without the room that they have given back; one that stands under several names counts
    once.
    """
    return sum(_taken(files).values())


def files_below(*folders: Path) -> Iterator[Path]:
    """All that is not a folder in ``folders`` and theirs. What goes away meanwhile is passed over, which `Path.rglob`
    does not do before Python 3.13.
    """
    for folder in folders:
        for found, _, names in os.walk(folder):
            for name in names:
                yield Path(found, name)


class FolderBytes(NamedTuple):
    """Of the files in some folders."""

    all: int
    own: int
    """Of those that stand nowhere else: what their removal would give back."""


def bytes_in(folders: Iterable[Path]) -> FolderBytes:
    """What lies in ``folders`` together; a file that stands in several of them counts once."""
    found = list(_regular(files_below(*folders)))
    names = Counter((one.st_dev, one.st_ino) for one in found)
    files = {(one.st_dev, one.st_ino): one for one in found}
    own = sum(one.st_size for inode, one in files.items() if names[inode] == one.st_nlink)
    return FolderBytes(sum(one.st_size for one in files.values()), own)


def _taken(files: Iterable[Path]) -> dict[tuple[int, int], int]:
    """By device and inode."""
    return {(one.st_dev, one.st_ino): min(one.st_size, one.st_blocks * 512) for one in _regular(files)}


def _regular(files: Iterable[Path]) -> Iterator[os.stat_result]:
    return (found for found in _found(files) if S_ISREG(found.st_mode))


def _found(files: Iterable[Path]) -> Iterator[os.stat_result]:
    for file in files:
        with suppress(FileNotFoundError):  # a checkpoint or a prune took it away just now
            yield file.lstat()
