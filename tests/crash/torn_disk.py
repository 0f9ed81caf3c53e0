"""A disk that keeps what was synced, and of everything else whatever it pleases: for SQLite, and for blob files.

What is written shows at once, as in the system's cache. When the power fails, each 512-byte sector that was written
since the last sync of its file is there or not, by chance; so is each change of length, and each file that was made or
deleted since the last sync of its folder. After a failed sync the system takes its pages for clean
(danluu.com/fsyncgate): what they held still shows, and no later sync writes it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import apsw

from sona.storage.blob_files import BlobFile, Content, Place
from sona.storage.layout import BLOBS, DATABASE

SECTOR = 512

Name = str | apsw.URIFilename | None


class Platter:
    """What the disk holds of one file."""

    def __init__(self, synced: bytes) -> None:
        self._synced = bytearray(synced)
        self._pending: list[tuple[int, bytes | None]] = []  # an offset and what is written there, or a length to cut to

    def write(self, offset: int, data: bytes) -> None:
        self._pending.append((offset, data))

    def truncate(self, size: int) -> None:
        self._pending.append((size, None))

    def sync(self) -> None:
        for change in self._pending:
            _apply(self._synced, *change)
        self._pending.clear()

    def fail_to_sync(self, rng: Random) -> None:
        self._synced = self.surviving(rng)
        self._pending.clear()

    def surviving(self, rng: Random) -> bytearray:
        """What would be there after a power cut."""
        share = rng.choice((0.0, 0.05, 0.5, 0.95, 1.0))
        image = bytearray(self._synced)
        for offset, data in self._pending:
            for change in _sectors(offset, data):
                if rng.random() < share:
                    _apply(image, *change)
        return image


def _sectors(offset: int, data: bytes | None) -> Iterator[tuple[int, bytes | None]]:
    """A write, sector by sector."""
    if data is None:
        yield offset, None
        return
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR - (offset + start) % SECTOR)
        yield offset + start, data[start:end]
        start = end


def _apply(image: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del image[offset:]
        return
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


class Disk:
    """All files of one folder, and what shall happen to them."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._lock = threading.RLock()  # the writer's thread and the host's both come here
        self._platters: dict[str, Platter] = {}
        self._made: set[str] = set()  # since the folder was synced
        self._deleted: dict[str, Platter] = {}
        self.operations = 0
        self.before_operation: Callable[[], None] = lambda: None
        """Called at every write, sync, truncation and deletion, with all that was written before it still unsynced."""
        self.failure: Callable[[str], apsw.Error | None] = lambda operation: None
        """What a ``write``, ``sync``, ``truncate`` or ``read`` fails with."""

    def power_off(self, folder: Path) -> None:
        """Lay into ``folder`` what the disk would hold."""
        with self._lock:
            for file in self._untouched():
                (folder / BLOBS).mkdir(exist_ok=True)
                shutil.copy(file, folder / BLOBS / file.name)
            unsure = self._made | (self._deleted.keys() - self._platters.keys())
            for path, platter in (self._deleted | self._platters).items():
                if path not in unsure or self._rng.random() < 0.5:
                    place = folder / BLOBS if path.endswith(".blob") else folder
                    place.mkdir(exist_ok=True)
                    (place / os.path.basename(path)).write_bytes(platter.surviving(self._rng))

    def _untouched(self) -> list[Path]:
        """Blob files that were not opened to be written to."""
        blobs = {Path(path).parent / BLOBS for path in self._platters if path.endswith(DATABASE)}
        return [path for folder in blobs for path in folder.glob("*.blob") if str(path) not in self._platters]

    def folder_synced(self) -> None:
        """The names are as they show."""
        with self._lock:
            self._made.clear()
            self._deleted.clear()

    # What the files below report

    def opened(self, path: str, *, is_new: bool) -> None:
        if not path:  # SQLite's own scratch, which no power cut leaves
            return
        database = path.removesuffix("-wal").removesuffix("-journal")
        with self._lock:
            for one in (database, f"{database}-wal", f"{database}-journal"):  # a power cut may come before the others
                if one not in self._platters and os.path.exists(one):
                    self._platters[one] = Platter(Path(one).read_bytes())
            if is_new:
                self._made.add(path)

    def deleted(self, path: str) -> None:
        with self._step():
            if path in self._platters:
                self._deleted[path] = self._platters.pop(path)
                self._made.discard(path)

    def written(self, path: str, offset: int, data: bytes) -> None:
        with self._step():
            if path:
                self._platters[path].write(offset, data)

    def truncated(self, path: str, size: int) -> None:
        with self._step():
            if path:
                self._platters[path].truncate(size)

    def synced(self, path: str, *, well: bool) -> None:
        with self._step():
            if not path:
                return
            if well:
                self._platters[path].sync()
                if path in self._made and path.endswith(("-wal", "-journal")):
                    self.folder_synced()  # SQLite does so with the first sync of either
            else:
                self._platters[path].fail_to_sync(self._rng)

    @contextmanager
    def _step(self) -> Iterator[None]:
        with self._lock:
            self.operations += 1
            self.before_operation()
            yield

    def part(self, data: bytes) -> bytes:
        """As much of ``data`` as a write that fails may have written."""
        return data[: self._rng.randrange(len(data) + 1)]


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Name, flags: list[int]) -> None:
        self._disk = disk
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        is_new = not os.path.exists(self._path)
        super().__init__("unix", name, flags)
        disk.opened(self._path, is_new=is_new)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        error = self._disk.failure("write")
        if error is not None:
            data = self._disk.part(data)
        super().xWrite(data, offset)
        self._disk.written(self._path, offset, bytes(data))
        if error is not None:
            raise error

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        if (error := self._disk.failure("read")) is not None:
            raise error
        return super().xRead(amount, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if (error := self._disk.failure("truncate")) is not None:
            raise error
        super().xTruncate(size)
        self._disk.truncated(self._path, size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        error = self._disk.failure("sync")
        self._disk.synced(self._path, well=error is None)
        if error is not None:
            raise error


class _Blob(BlobFile):
    """A blob file on the disk."""

    disk: Disk

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        super().__init__(path)
        self.disk.opened(str(path), is_new=is_new)

    def write(self, data: bytes | bytearray, start: int) -> None:
        error = self.disk.failure("write")
        if error is not None:
            data = self.disk.part(bytes(data))
        super().write(data, start)
        self.disk.written(str(self.path), start, bytes(data))
        _refuse(error)

    def truncate(self, size: int) -> None:
        _refuse(self.disk.failure("truncate"))
        super().truncate(size)
        self.disk.truncated(str(self.path), size)

    def sync(self) -> None:
        error = self.disk.failure("sync")
        self.disk.synced(str(self.path), well=error is None)
        _refuse(error)

    def remove(self) -> None:
        super().remove()
        self.disk.deleted(str(self.path))


class _Content(Content):
    disk: Disk

    def read(self, place: Place) -> bytes:
        _refuse(self.disk.failure("read"))
        return super().read(place)


def _refuse(error: apsw.Error | None) -> None:
    """As the system does it."""
    if error is not None:
        raise OSError(errno.ENOSPC if isinstance(error, apsw.FullError) else errno.EIO, str(error))


class _FileLayer(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__("torn", "unix", makedefault=True)
        self._disk = disk

    def xOpen(self, name: Name, flags: list[int]) -> _File:  # noqa: N802
        return _File(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self._disk.deleted(filename)


@contextmanager
def torn_disk(rng: Random) -> Iterator[Disk]:
    """All databases opened in the block lie on this disk; close them before its end."""
    disk = Disk(rng)
    layer = _FileLayer(disk)
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            disk.folder_synced()

    try:
        # A failure that SQLite passes over, such as one while it closes a file, apsw would print by the hook.
        with (
            mock.patch("os.fsync", watched),
            mock.patch("sys.excepthook"),
            mock.patch("sona.storage.blobs.BlobFile", type("_Blob", (_Blob,), {"disk": disk})),
            mock.patch("sona.storage.connection.Content", type("_Content", (_Content,), {"disk": disk})),
        ):
            yield disk
    finally:
        layer.unregister()
