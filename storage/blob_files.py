"""Blob files: what large batches of trajectories consist of, each byte written once.

A blob file is only appended to. A row names its part of one (:class:`Place`) where it would else hold the bytes, and
its checksum is over the bytes, wherever they lie. What is appended is synced before the transaction that names it, so
that no row ever names what is not there; of a transaction that failed, bytes are left that no row names. The scheme is
that of WiscKey (Lu et al., FAST 2016, section 3.2) without its garbage collection: what was deleted is overwritten in
its place (`sona.storage.blobs`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sona.storage.rows import Value

_PLACE = struct.Struct(">cIII")
_MARK = b"\xc1"
PLACE_BYTES = _PLACE.size
"""13: no embedding has so many bytes, being float32, and no msgpack begins with 0xc1, which its format never uses."""
MOST_BYTES = 1 << 32
"""No place lies beyond."""
_ENDING = ".blob"
_OPEN = 8
_ZEROS = bytes(1 << 20)
_POLL_S = 0.005
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
        """What lies there, shorter where the file ends before; raises OSError."""
        return os.pread(self._file(place.file), place.length, place.start)

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


class BlobFile:
    """A blob file that is written to. Every call raises OSError where the disk fails."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

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
        """Put zeros from ``start`` to ``end``."""
        for at in range(start, end, len(_ZEROS)):
            self.write(_ZEROS[: end - at], at)

    def give_back(self, start: int, end: int) -> None:
        """Return the room from ``start`` to ``end``, where zeros are, to the disk, if it can be."""
        call = getattr(ctypes.CDLL(None), "fallocate", None)
        if call is not None:
            where = (ctypes.c_int64(start), ctypes.c_int64(end - start))
            call(ctypes.c_int(self._fd), ctypes.c_int(_KEEP_SIZE_PUNCH_HOLE), *where)

    def remove(self) -> None:
        """Delete it, and let go of it."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Gate:
    """Keeps what was deleted from being overwritten while somebody, in whatever process, reads a snapshot from before:
    a lock (``flock``) on the folder, which its owner's end gives back.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._readers = 0
        self._fd = -1

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For a reader; to be entered before its snapshot begins.

        Raises:
            OSError: the folder can't be opened or locked.
        """
        with self._lock:
            if self._fd < 0:  # there was no folder yet, or no reader
                self._fd = self._taken()
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._let_go()

    def _taken(self) -> int:
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # no snapshot that begins now names a file
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _let_go(self) -> None:
        """By closing, and not by unlocking: in a forked child that would end the parent's lock too."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[bool]:
        """For who overwrites: whether no reader is left, within ``timeout_s`` seconds, and none comes before the end.

        Raises:
            OSError: the folder can't be opened or locked.
        """
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield _locked(fd, time.monotonic() + timeout_s)
        finally:
            os.close(fd)

    def forked(self) -> None:
        """In a forked child: the lock stays the parent's."""
        self._lock = threading.Lock()
        self._readers = 0
        with suppress(OSError):
            self._let_go()


def _locked(fd: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        else:
            return True
