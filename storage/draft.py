"""A file that is written under another name, and gets its own in one step, when all of it is on the disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sona.storage.syncing import sync_path
from sona.storage.versions import DRAFT
from sona.types import new_id


class Draft:
    """Within the block it is written; at its end it is gone, unless it was published."""

    def __init__(self, folder: Path) -> None:
        """In ``folder``, where its last name will be too.

        Raises:
            OSError: it can't be made, as any call here where the disk fails.
        """
        self.sha256 = hashlib.sha256()
        """Over what was written."""
        self.size = 0
        """Bytes written."""
        self._path = folder / f"{DRAFT}{new_id()}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self.sha256.update(data)
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def publish(self, name: str) -> None:
        """Sync it, give it ``name`` in place of what had it, and sync the folder.

        Cut short, the folder has the old file or the new one under the name, and no half. Where the last sync fails it
        has the new one, and after a power cut perhaps the old one.
        """
        os.fsync(self._fd)
        os.replace(self._path, self._path.parent / name)
        sync_path(self._path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.close(self._fd)
        with suppress(OSError):  # also where it was published, and has this name no more
            self._path.unlink()


def make_folder(folder: Path) -> None:
    """Make ``folder``, its owner's alone, and those above it where they are missing, with their names synced.

    Raises:
        OSError: it can't be made.
    """
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        sync_path(made.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what crashes have left in ``folder``.

    Raises:
        OSError: the disk does not let it go.
    """
    for path in folder.glob(f"{DRAFT}*"):
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder in ``folder``, and itself; its own name is its parent's to sync.

    Raises:
        OSError: the disk's trouble.
    """
    for path in (*folder.rglob("*"), folder):
        sync_path(path)


def rename_folder(draft: Path, target: Path) -> None:
    """Give a whole folder its name, when all of it is on the disk; raises OSError."""
    sync_tree(draft)
    draft.rename(target)
    sync_path(target.parent)
