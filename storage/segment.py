"""One file of the journal: a mapped, preallocated piece of disk that frames are copied into.

A file begins with a head (magic, epoch, checksum) and a mark (how far its frames are no longer needed, checksum). Then
follow the frames, each at a multiple of 8 bytes: epoch, length and kind, check, payload. The check is the CRC-32C of
the payload and of the two fields before it, and the header is written after the payload: killed in between, there is
no frame. A file that is used again gets a new epoch, which makes all frames that still lie in it invalid at once.

The system keeps what was copied when the process is killed, and may lose it when the power fails.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

MAGIC = b"SONAJRN1"
_HEAD = struct.Struct("<8sQI")
_MARK = struct.Struct("<QI")
_MARK_AT = 32
FIRST = 64
"""Where the first frame begins."""
_HEADER = struct.Struct("<QII")  # epoch; length, with the kind in its highest bit; check
_FIELDS = struct.Struct("<QI")
HEADER_BYTES = _HEADER.size
_KIND = 1 << 31
_ZEROS = bytes(1 << 18)


class Frame(NamedTuple):
    """What :func:`read_frames` found."""

    kind: int
    payload: bytes
    end: int
    """Where the next frame would begin."""


class Scan(NamedTuple):
    """What a file of the journal holds."""

    epoch: int
    frames: list[Frame]
    skipped: int
    """Bytes that lie between frames and are none: damage."""


class Segment:
    """A segment that is written to."""

    def __init__(self, path: Path, size: int) -> None:
        """Make the file at ``path``, of ``size`` bytes that the disk has reserved.

        Raises:
            OSError: it can't be made, or the disk has no room.
        """
        self.path, self.size = path, size
        self.epoch = 0
        self.end = FIRST
        """Where the next frame begins."""
        self.waiting = 0
        """How many of its frames are still needed."""
        self.reusable = True
        """Whether it may be begun again; otherwise it is wiped when its frames are no longer needed."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a hole in a mapped file on a full disk is a SIGBUS
            for start in range(0, size, len(_ZEROS)):  # the pages are there before the first record comes
                os.pwrite(fd, _ZEROS[: size - start], start)
            self._map = mmap.mmap(fd, size)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)

    def begin(self, epoch: int) -> None:
        """Use it from the start, under a new epoch. Killed in between, no frame is both needed and out of sight."""
        self.epoch, self.end, self.waiting = epoch, FIRST, 0
        head = MAGIC + epoch.to_bytes(8, "little")
        self._map[: _HEAD.size] = head + crc32c(head).to_bytes(4, "little")
        self.mark(FIRST)

    @staticmethod
    def bytes_for(payload_bytes: int) -> int:
        """The size of a file for one frame, in whole pages."""
        return -(-frame_end(FIRST, payload_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE

    def fits(self, payload_bytes: int) -> bool:
        """Whether there is room for one more frame."""
        return self.end + HEADER_BYTES + payload_bytes <= self.size

    def append(self, kind: int, payload: bytes, payload_crc: int) -> int:
        """Copy a frame in; there must be room. Returns where it ends."""
        at, length = self.end, len(payload)
        self._map[at + HEADER_BYTES : at + HEADER_BYTES + length] = payload
        size = length | _KIND if kind else length
        check = crc32c(_FIELDS.pack(self.epoch, size), payload_crc)
        _HEADER.pack_into(self._map, at, self.epoch, size, check)  # last: from here on there is a frame
        self.end = end = frame_end(at, length)
        self.waiting += 1
        return end

    def mark(self, released: int) -> None:
        """Frames before ``released`` are no longer needed."""
        self._map[_MARK_AT : _MARK_AT + _MARK.size] = _mark(released)

    def wipe(self) -> None:
        """Overwrite all frames: nothing in it is needed, and what was recorded must not lie around."""
        for start in range(FIRST, self.size, len(_ZEROS)):
            piece = min(len(_ZEROS), self.size - start)
            self._map[start : start + piece] = _ZEROS[:piece]
        self._map.flush()

    def remove(self) -> None:
        """Unmap it, and delete the file."""
        if not self.reusable:
            self.wipe()
        self._map.close()
        _delete(self.path)

    def close(self) -> None:
        """Unmap it; the file stays."""
        self._map.close()


class Remains:
    """A file that an earlier process left: its frames wait here too, and nothing is added to it."""

    reusable = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = 0

    def mark(self, released: int) -> None:
        """As :meth:`Segment.mark`; where it can't be, they are stored once more, which changes nothing."""
        with suppress(OSError), self.path.open("r+b") as file:
            file.seek(_MARK_AT)
            file.write(_mark(released))

    def remove(self) -> None:
        """Delete the file, overwritten."""
        with suppress(OSError), self.path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for start in range(0, size, len(_ZEROS)):
                file.write(_ZEROS[: size - start])
            file.flush()
            os.fsync(file.fileno())  # of a file that is gone the system may write nothing
        _delete(self.path)

    def wipe(self) -> None:
        """Nothing: it is overwritten when it is removed."""

    def close(self) -> None:
        """Nothing: it is not open."""


def _mark(released: int) -> bytes:
    packed = released.to_bytes(8, "little")
    return packed + crc32c(packed).to_bytes(4, "little")


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def frame_end(start: int, payload_bytes: int) -> int:
    """Where a frame that begins at ``start`` ends: at the next multiple of 8."""
    return (start + HEADER_BYTES + payload_bytes + 7) & ~7


def scan(data: bytes) -> Scan:
    """The frames of a segment's ``data`` that are still needed, in order.

    Where the mark or the head are damaged, all frames count that are whole: storing one again changes nothing. Behind
    a damaged frame the search goes on.
    """
    epoch, at = _epoch(data), _released(data)
    frames: list[Frame] = []
    skipped = 0
    while True:
        if (frame := _frame(data, at, epoch)) is not None:
            frames.append(frame)
            at = frame.end
        elif (found := _next(data, at + 1, epoch)) is not None:
            skipped += found - at
            at = found
        else:
            # Nothing but damage leaves a header of this epoch without its frame: it is written last.
            torn = epoch > 0 and data[at : at + 8] == epoch.to_bytes(8, "little")
            return Scan(epoch, frames, skipped + HEADER_BYTES * torn)


def _epoch(data: bytes) -> int:
    """The one it was begun with. Where the head is damaged, that of the youngest frame: each tells its own, checked."""
    if len(data) >= _HEAD.size:
        magic, epoch, crc = _HEAD.unpack_from(data)
        if magic == MAGIC and crc == crc32c(data[: _HEAD.size - 4]):
            return int(epoch)
    if not data.strip(b"\0"):  # made ready, and never begun
        return 0
    places = range(FIRST, len(data) - HEADER_BYTES, 8)
    epochs = ((at, int.from_bytes(data[at : at + 8], "little")) for at in places)
    return max((epoch for at, epoch in epochs if _frame(data, at, epoch) is not None), default=0)


def _released(data: bytes) -> int:
    if len(data) < FIRST:
        return FIRST
    released, crc = _MARK.unpack_from(data, _MARK_AT)
    sound = crc == crc32c(data[_MARK_AT : _MARK_AT + 8])
    return int(released) if sound else FIRST


def _frame(data: bytes, at: int, epoch: int) -> Frame | None:
    """The frame that begins at ``at``, if a whole one does."""
    if at + HEADER_BYTES > len(data):
        return None
    _, size, check = _HEADER.unpack_from(data, at)  # the check knows the epoch too
    length = size & ~_KIND
    begin = at + HEADER_BYTES
    if not 0 < length <= len(data) - begin:
        return None
    payload = data[begin : begin + length]
    if check != crc32c(_FIELDS.pack(epoch, size), crc32c(payload)):
        return None
    return Frame(int(bool(size & _KIND)), payload, frame_end(at, length))


def _next(data: bytes, start: int, epoch: int) -> int | None:
    """Where the next whole frame begins, from ``start`` on."""
    return next((at for at in _places(data, start, epoch) if _frame(data, at, epoch) is not None), None)


def _places(data: bytes, start: int, epoch: int) -> Iterator[int]:
    """Multiples of 8 at which the epoch stands."""
    sought = epoch.to_bytes(8, "little")
    at = data.find(sought, start)
    while at >= 0:
        if at % 8 == 0:
            yield at
        at = data.find(sought, at + 1)
