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
    """Of the store with this file and these folders, now. A file that goes away meanwhile counts as gone."""
    return StoreSizes(
        database=_bytes([database]),
        log=_bytes(database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm")),
        blobs=bytes_of(blobs.glob("*")),
        journal=_bytes(journal.glob("*")),
        versions=_bytes(files_below(versions)),
        training=_bytes(files_below(training)),
    )


def bytes_of(files: Iterable[Path]) -> int:
    """What these files take, without the room that they have given back."""
    return sum(min(one.st_size, one.st_blocks * 512) for one in _found(files))


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


def _bytes(files: Iterable[Path]) -> int:
    """Of regular files; one that stands under several names counts once."""
    return sum({(one.st_dev, one.st_ino): one.st_size for one in _regular(files)}.values())


def _regular(files: Iterable[Path]) -> Iterator[os.stat_result]:
    return (found for found in _found(files) if S_ISREG(found.st_mode))


def _found(files: Iterable[Path]) -> Iterator[os.stat_result]:
    for file in files:
        with suppress(FileNotFoundError):  # a checkpoint or a prune took it away just now
            yield file.lstat()
