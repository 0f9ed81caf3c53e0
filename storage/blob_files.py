"""Blob files: what large batches of trajectories consist of, each byte written once.

A blob file is only appended to. A row names its part of one (:class:`Place`) where it would else hold the bytes, and
its checksum is over the bytes, wherever they lie. What is appended is synced before the transaction that names it, so
that no row ever names what is not there; of a transaction that failed, bytes are left that no row names. The scheme is
that of WiscKey (Lu et al., FAST 2016, section 3.2) without its garbage collection: what was deleted is overwritten in
its place (`sona.storage.blobs`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sona.errors import StoreError
from sona.storage.rows import Value
from sona.storage.syncing import sync_path

_PLACE = struct.Struct(">cIII")
_MARK = b"\xc1"
PLACE_BYTES = _PLACE.size
"""13: no embedding has so many bytes, being float32, and no msgpack begins with 0xc1, which its format never uses."""
MOST_BYTES = 1 << 31
"""A batch in a file is no longer; a place holds numbers up to 2^32."""
_ENDING = ".blob"
_OPEN = 8
_ZEROS = bytes(1 << 20)
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h


class Place(NamedTuple):
    """A part of a blob file."""

    file: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.length


def pack_place(file: int, start: int, length: int) -> bytes:
    """A place as it stands in a column."""
    return _PLACE.pack(_MARK, file, start, length)


def place_of(value: Value) -> Place | None:
    """The place that a column's value names; None where it is the bytes themselves."""
    if not isinstance(value, bytes) or len(value) != PLACE_BYTES or not value.startswith(_MARK):
        return None
    return Place(*_PLACE.unpack(value)[1:])


def path_of(folder: Path, file: int) -> Path:
    """The path of a blob file, by its number."""
    return folder / f"{file:08d}{_ENDING}"


def numbers_in(folder: Path) -> list[int]:
    """Of all blob files in ``folder``, in order; none where there is no folder."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_ENDING}") if path.stem.isdigit())


class Content:
    """What columns hold, wherever it lies. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: of the blob files; it may be missing.
        """
        self._folder = folder
        self._open: dict[int, int] = {}

    def __call__(self, value: Value) -> Value:
        """The bytes that ``value`` names, or else ``value``; None where they are not there any more, which no row's
        checksum takes for content.

        Raises:
            OSError: they can't be read.
        """
        place = place_of(value)
        if place is None:
            return value
        try:
            data = self.read(place)
        except FileNotFoundError:
            return None
        return data if len(data) == place.length else None

    def read(self, place: Place) -> bytes:
        """What lies there, shorter where the file ends before.

        Raises:
            StoreError: it may not be read.
            OSError: it can't be.
        """
        try:
            return os.pread(self._file(place.file), place.length, place.start)
        except PermissionError as error:
            raise StoreError(
                f"{error.filename}: it can't be read; grant read permission to it, as to store.db"
            ) from error

    def _file(self, number: int) -> int:
        if (file := self._open.get(number)) is None:
            if len(self._open) >= _OPEN:
                self.close()
            file = self._open[number] = os.open(path_of(self._folder, number), os.O_RDONLY | os.O_CLOEXEC)
        return file

    def close(self) -> None:
        """Let go of the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        """Of a connection that nobody closed."""
        if hasattr(self, "_open"):  # a Ctrl-C may have come before it
            self.close()


class BlobFile:
    """A blob file that is written to. Every call raises OSError where the disk fails."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self._fd).st_size

    def write(self, data: bytes | bytearray, start: int) -> None:
        """Put ``data`` at ``start``."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, start)
            rest, start = rest[written:], start + written

    def sync(self) -> None:
        """What was written is on the disk when this returns."""
        os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        """Cut it off at ``size``."""
        os.ftruncate(self._fd, size)

    def overwrite(self, start: int, end: int) -> None:
        """Put zeros from ``start`` to ``end``, but where the room was given back: it would be taken again."""
        for first, last in list(data_in(self._fd, start, end)):
            for at in range(first, last, len(_ZEROS)):
                self.write(_ZEROS[: last - at], at)

    def give_back(self, start: int, end: int) -> None:
        """Return the room from ``start`` to ``end``, where zeros are, to the disk, if it can be."""
        if (fallocate := _fallocate()) is not None:
            where = (ctypes.c_int64(start), ctypes.c_int64(end - start))
            fallocate(ctypes.c_int(self._fd), ctypes.c_int(_KEEP_SIZE_PUNCH_HOLE), *where)

    def remove(self) -> None:
        """Delete it, durably, and let go of it."""
        self.path.unlink()
        self.close()
        sync_path(self.path.parent)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def copy_data(source: Path, target: Path, size: int) -> None:
    """Copy the first ``size`` bytes to a new file, without the room that was given back; raises OSError."""
    copy = BlobFile(target)
    try:
        with source.open("rb") as file:
            for start, end in data_in(file.fileno(), 0, size):
                for at in range(start, end, len(_ZEROS)):
                    copy.write(os.pread(file.fileno(), min(len(_ZEROS), end - at), at), at)
        copy.truncate(size)
    finally:
        copy.close()


def data_in(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where between ``start`` and ``end`` a file has room on the disk; all of it where that can't be told."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            until = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from there on
                return
            until = end
        if start < end:
            yield start, min(until, end)
        start = until


@cache
def _fallocate() -> Callable[..., int] | None:
    """The system's call, where it has one."""
    return getattr(ctypes.CDLL(None), "fallocate", None)
