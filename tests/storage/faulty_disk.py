"""A disk that fails on demand: SQLite's own file layer, with syncs and writes that can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import apsw


class Disk:
    """What shall fail next."""

    def __init__(self) -> None:
        self.failing_syncs = 0
        """So many syncs of the WAL fail from now on."""
        self.lose_after_sync = False
        """The sync works but is said to have failed: the commit is on disk and nobody knows."""
        self.full = False
        """Every write that makes a file longer fails."""
        self.synced: list[str] = []
        """The files whose syncs worked, by name, in order."""


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        self._name = os.path.basename(path)
        self._disk = disk

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._name.endswith("-wal") and self._disk.failing_syncs:
            self._disk.failing_syncs -= 1
            if self._disk.lose_after_sync:
                super().xSync(flags)
            raise apsw.IOError("the disk failed to sync")
        super().xSync(flags)
        self._disk.synced.append(self._name)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._disk.full and offset + len(data) > self.xFileSize():
            raise apsw.FullError("the disk is full")
        super().xWrite(data, offset)


class _FileLayer(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__("faulty", "unix", makedefault=True)
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        return _File(self._disk, name, flags)


@contextmanager
def faulty_disk() -> Iterator[Disk]:
    """All databases opened in the block lie on this disk; close them before its end."""
    disk = Disk()
    layer = _FileLayer(disk)
    try:
        yield disk
    finally:
        layer.unregister()
