"""One file of the journal: a mapped, preallocated piece of disk that frames are copied into.

A file begins with a head (magic, epoch, checksum), a mark (how far its frames are no longer needed, checksum) and a
tail (how far its frames reach). Then follow the frames, each at a multiple of 8 bytes: epoch, length and kind, check,
payload. The check is the CRC-32C of the payload, begun from a quarter of the epoch's own plus the field of length and
kind. It is written after the payload: killed in between, there is no frame. The tail follows it, so frames that do not
reach as far are lost. A file that is used again gets a new epoch, which makes all frames that still lie in it invalid
at once. A file has a head from before it has its name, so one without has lost it. Epochs of frames, checks and the
tail are in the byte order of the machine, which no journal leaves.

The system keeps what was copied when the process is killed, and may lose it when the power fails.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from sys import byteorder
from typing import NamedTuple

from crc32c import crc32c

from sona.storage.syncing import sync_path

MAGIC = b"SONAJRN2"
_BEFORE = b"SONAJRN1"
"""Of a sona from before, whose checks are the CRC-32C of the payload and of the two fields behind it."""
_HEAD = struct.Struct("<8sQI")
_MARK = struct.Struct("<QI")
_MARK_AT = 32
_TAIL = struct.Struct("=QQ")  # and its complement
_TAIL_AT = 48
_TAIL_WORD = _TAIL_AT // 8
_ONES = 2**64 - 1
FIRST = 64
"""Where the first frame begins."""
UNNAMED = ".new"
"""The suffix of a file that is being made."""
_HEADER = struct.Struct("=QQ")  # epoch; length, with the kind in its highest bit, and from the 32nd bit on the check
_FIELDS = struct.Struct("<QI")
HEADER_BYTES = _HEADER.size
_KIND = 1 << 31
_ABOVE = 2**32
_ZEROS = bytes(1 << 18)


class Frame(NamedTuple):
    """What :func:`scan` found."""

    kind: int
    payload: bytes
    end: int
    """Where the next frame would begin."""


class Scan(NamedTuple):
    """What a file of the journal holds."""

    epoch: int
    frames: list[Frame]
    released: int
    """Where the first of them begins, or would begin."""
    skipped: int
    """Bytes that should be frames and are none, or of a file that has lost its head, also where no more than zeros are
    left of it: damage, or what a power cut has kept from the disk.
    """


class Segment:
    """A segment that is written to."""

    def __init__(self, path: Path, size: int) -> None:
        """Make the file at ``path``, of ``size`` bytes, in whole pages, that the disk has reserved.

        Raises:
            OSError: it can't be made, or the disk has no room.
        """
        self.path, self.size = path, size
        self.epoch = 0
        self.end = FIRST
        """Where the next frame begins."""
        self.released = FIRST
        """How far its frames are no longer needed."""
        self.waiting = 0
        """How many of its frames are still needed."""
        self._reached = FIRST  # behind it are zeros
        unnamed = path.with_suffix(UNNAMED)
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a hole in a mapped file on a full disk is a SIGBUS
            for start in range(0, size, len(_ZEROS)):  # the pages are there before the first record comes
                os.pwrite(fd, _ZEROS[: size - start], start)
            self._map = mmap.mmap(fd, size)
            self._words = memoryview(self._map).cast("Q")
            self._identity = _identity(os.fstat(fd))
            self.begin(0)
            unnamed.rename(path)
        except BaseException:
            with suppress(OSError):
                unnamed.unlink()
            raise
        finally:
            os.close(fd)

    def begin(self, epoch: int) -> None:
        """Use it from the start, under a new epoch; 0: not yet. Killed in between, no frame is both needed and out of
        sight.
        """
        self._reached = self._used
        self.epoch, self._seed, self.end, self.waiting = epoch, _seed(epoch), FIRST, 0
        head = MAGIC + epoch.to_bytes(8, "little")
        self._map[: _HEAD.size] = head + crc32c(head).to_bytes(4, "little")
        _TAIL.pack_into(self._map, _TAIL_AT, FIRST, FIRST ^ _ONES)
        self.mark(FIRST)

    @staticmethod
    def bytes_for(payload_bytes: int) -> int:
        """The size of a file for one frame."""
        return whole_pages(frame_end(FIRST, payload_bytes))

    def append(self, is_feedback: bool, payload: bytes | bytearray) -> int:
        """Copy a frame in; there must be room. Returns where it ends."""
        at, length, words = self.end, len(payload), self._words
        self._map[at + HEADER_BYTES : at + HEADER_BYTES + length] = payload
        size = length | _KIND if is_feedback else length
        place = at // 8
        words[place] = self.epoch
        words[place + 1] = crc32c(payload, self._seed + size) * _ABOVE + size  # from here on there is a frame
        end = (at + HEADER_BYTES + length + 7) // 8 * 8  # frame_end(), in its place: see MappedJournal.append
        words[_TAIL_WORD] = end
        words[_TAIL_WORD + 1] = _ONES - end
        self.end = end
        self.waiting += 1
        return end

    def mark(self, released: int) -> None:
        """Frames before ``released`` are no longer needed."""
        self.released = released
        self._map[_MARK_AT : _MARK_AT + _MARK.size] = _mark(released)

    @property
    def _used(self) -> int:
        """How far any frame has reached since there were zeros."""
        return max(self._reached, self.end)

    def blank(self) -> None:
        """Overwrite all that is not needed: what was released, and what lies behind the frames from before the file was
        begun.
        """
        for begin, stop in _around(self, self._used):
            for start in range(begin, stop, len(_ZEROS)):
                piece = min(len(_ZEROS), stop - start)
                self._map[start : start + piece] = _ZEROS[:piece]
        self._reached = self.end

    def sync(self, *, whole: bool) -> None:
        """Have the mark on the disk, so that what lies before it is never taken up again; or the ``whole`` file."""
        self._map.flush() if whole else self._map.flush(0, mmap.PAGESIZE)

    def is_there(self) -> bool:
        """Whether the file is where the next process looks for it."""
        return _is_at(self.path, self._identity)

    def remove(self) -> None:
        """Unmap it, and delete the file."""
        self._words.release()
        self._map.close()
        _delete(self.path)

    def close(self) -> None:
        """Unmap it; the file stays."""
        self._words.release()
        self._map.close()


class Remains:
    """A file that an earlier process left: its frames wait here too, and nothing is added to it."""

    def __init__(self, path: Path, found: Scan, keep: Path | None = None) -> None:
        """``found`` in it; where that is not all that should be in it, the file is moved to ``keep`` in the end."""
        self.path, self._keep = path, keep if found.skipped else None
        self.waiting = 0
        self.released = found.released
        stat = path.stat()
        self.size, self._identity = stat.st_size, _identity(stat)
        self.end = found.frames[-1].end if found.frames else found.released

    def mark(self, released: int) -> None:
        """As :meth:`Segment.mark`; where it can't be, they are stored once more, which changes nothing. So they may in
        a file that is kept: whoever takes it up after a kill is to find the damage again.
        """
        self.released = released
        if self._keep is None:
            self._mark()

    def _mark(self) -> None:
        with suppress(OSError), self.path.open("r+b") as file:
            file.seek(_MARK_AT)
            file.write(_mark(self.released))

    def blank(self) -> None:
        """As :meth:`Segment.blank`, but for a file that is kept: what is in it can't be told."""
        if self._keep is None:
            self._mark()
            _overwrite(self.path, _around(self, self.size))

    def sync(self, *, whole: bool) -> None:
        """As :meth:`Segment.sync`, of the whole file."""
        with suppress(FileNotFoundError):
            sync_path(self.path)

    def is_there(self) -> bool:
        """As :meth:`Segment.is_there`."""
        return _is_at(self.path, self._identity)

    def remove(self) -> None:
        """Delete the file, overwritten; or move it to where it is kept."""
        if self._keep is None:
            self._mark()  # killed from here on, nothing in it is missed
            with suppress(OSError):  # of a file that is gone the system may write nothing
                _overwrite(self.path, [(FIRST, self.size)])
                self.sync(whole=True)
            _delete(self.path)
            return
        try:
            self._keep.parent.mkdir(mode=0o700, exist_ok=True)
            self.path.rename(self._keep)
            sync_path(self._keep.parent)
        except OSError:
            self._mark()  # it stays, and what it held may be deleted from the store before the next start

    def close(self) -> None:
        """Nothing: it is not open."""


class Nowhere:
    """In place of a file, for records that no file has room for: they are in memory alone."""

    path, size = None, 0

    def __init__(self) -> None:
        self.waiting = self.released = self.end = 0

    def mark(self, released: int) -> None:
        """Nothing."""

    def blank(self) -> None:
        """Nothing: memory is given back."""

    def sync(self, *, whole: bool) -> None:
        """Nothing."""

    def is_there(self) -> bool:
        """It never is."""
        return False

    def remove(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _seed(epoch: int) -> int:
    """What the checks of an epoch's frames begin from, with the frame's second field added: together below 2**32 for
    payloads below 1 GiB, and a CRC takes what is above it by its lower bits.
    """
    return int(crc32c(epoch.to_bytes(8, "little"))) >> 2


def _former(epoch: int, size: int, payload: bytes) -> int:
    """The check of a sona from before; a file whose head is damaged may be of it."""
    return int(crc32c(_FIELDS.pack(epoch, size), crc32c(payload)))


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _is_at(path: Path, identity: tuple[int, int]) -> bool:
    try:
        return _identity(path.stat()) == identity
    except OSError:
        return False


def _around(home: Segment | Remains, stop: int) -> list[tuple[int, int]]:
    """The stretches of a file up to ``stop`` that hold nothing that is needed."""
    if not home.waiting:
        return [(FIRST, stop)]
    return [(FIRST, home.released), (home.end, stop)]


def _overwrite(path: Path, stretches: list[tuple[int, int]]) -> None:
    with suppress(FileNotFoundError), path.open("r+b") as file:
        for begin, stop in stretches:
            file.seek(begin)
            for start in range(begin, stop, len(_ZEROS)):
                file.write(_ZEROS[: stop - start])


def _mark(released: int) -> bytes:
    packed = released.to_bytes(8, "little")
    return packed + crc32c(packed).to_bytes(4, "little")


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def whole_pages(size: int) -> int:
    """``size`` bytes, and what is left of the last page."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def frame_end(start: int, payload_bytes: int) -> int:
    """Where a frame that begins at ``start`` ends: at the next multiple of 8."""
    return (start + HEADER_BYTES + payload_bytes + 7) & ~7


def scan(data: bytes) -> Scan:
    """The frames of a segment's ``data`` that are still needed, in order.

    Where the mark or the head are damaged, all frames count that are whole: storing one again changes nothing. Behind
    a damaged frame the search goes on.
    """
    epoch, begin = _epoch(data), _released(data)
    at = begin
    frames: list[Frame] = []
    skipped = 0
    if not epoch:  # no frame has this one; and each of a spare file's zeros would be looked at, 1.6 s for 4 MiB
        return Scan(epoch, frames, begin, 0 if _head_of(data) == 0 else _held(data))
    while True:
        if (frame := _frame(data, at, epoch)) is not None:
            frames.append(frame)
            at = frame.end
        elif (found := _next(data, at + 1, epoch)) is not None:
            skipped += found - at
            at = found
        else:
            return Scan(epoch, frames, begin, skipped + _missing(data, at, epoch))


def _missing(data: bytes, at: int, epoch: int) -> int:
    """Bytes of frames that should lie behind ``at``, where the last whole one ends."""
    if (tail := _tail(data)) is not None:
        return max(tail - at, 0)
    # Nothing but damage leaves a header of this epoch without its frame: it is written last.
    return HEADER_BYTES if data[at : at + 8] == epoch.to_bytes(8, byteorder) else 0


def _held(data: bytes) -> int:
    """Bytes of a file without a head or a whole frame: none of ours, or damaged throughout. At least the head's."""
    return max(len(data.rstrip(b"\0")), FIRST)


def _tail(data: bytes) -> int | None:
    """How far frames reach; None where it is damaged, or was written by a sona that kept none."""
    if len(data) < FIRST:
        return None
    tail, complement = _TAIL.unpack_from(data, _TAIL_AT)
    return int(tail) if tail == complement ^ _ONES else None


def _head_of(data: bytes) -> int | None:
    """The epoch that a file was begun with, 0 where it never was; None where its head is damaged."""
    if len(data) < FIRST:
        return None
    magic, epoch, crc = _HEAD.unpack_from(data)
    return int(epoch) if magic in (MAGIC, _BEFORE) and crc == crc32c(data[: _HEAD.size - 4]) else None


def _epoch(data: bytes) -> int:
    """The one it was begun with. Where the head is damaged, that of the youngest frame: each tells its own, checked."""
    if (epoch := _head_of(data)) is not None:
        return epoch
    if not data.strip(b"\0"):  # zeros are no frames, and many
        return 0
    places = range(FIRST, len(data) - HEADER_BYTES, 8)
    epochs = ((at, int.from_bytes(data[at : at + 8], byteorder)) for at in places)
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
    _, word = _HEADER.unpack_from(data, at)  # the check knows the epoch too
    check, size = divmod(word, _ABOVE)
    length = size & ~_KIND
    begin = at + HEADER_BYTES
    if not 0 < length <= len(data) - begin:
        return None
    payload = data[begin : begin + length]
    if check != crc32c(payload, _seed(epoch) + size) and (data[:8] == MAGIC or check != _former(epoch, size, payload)):
        return None
    return Frame(int(bool(size & _KIND)), payload, frame_end(at, length))


def _next(data: bytes, start: int, epoch: int) -> int | None:
    """Where the next whole frame begins, from ``start`` on."""
    return next((at for at in _places(data, start, epoch) if _frame(data, at, epoch) is not None), None)


def _places(data: bytes, start: int, epoch: int) -> Iterator[int]:
    """Multiples of 8 at which the epoch stands."""
    sought = epoch.to_bytes(8, byteorder)
    at = data.find(sought, start)
    while at >= 0:
        if at % 8 == 0:
            yield at
        at = data.find(sought, at + 1)
