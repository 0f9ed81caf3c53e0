"""A database's file read without SQLite, page by page: what still lies there where SQLite can't find its way any more.

The forms are those of sqlite.org/fileformat2.html: 1.6 (pages of a tree), 1.7 (overflow), 2.1 (records), 4 (the WAL).
Nothing is believed: a row counts only when its checksum says so.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sona.storage.rows import Value

PAGE_SIZE = 16384
"""Of the stores that sona makes; taken where the file's header is damaged."""
_HEADER = 100
_WAL_HEADER, _FRAME_HEADER = 32, 24
_WAL_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER = 0x0D, 0x0A, 0x02


class Cell(NamedTuple):
    """What lies in one place of a tree."""

    has_rowid: bool
    number: int | None
    """The row's, in a tree of rows by number."""
    values: list[Value]


class Pages:
    """The pages of a database and of its WAL, as of the last transaction there.

    It opens the database file itself, and closing it drops the locks that SQLite has on it in this process: nothing
    else may have it open here (sqlite.org/howtocorrupt.html, 2.2).
    """

    def __init__(self, database: Path) -> None:
        self._fd = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        self._wal = -1
        self._frames: dict[int, int] = {}
        self.transactions_beyond = 0
        """How many lie in the WAL beyond damage, where SQLite no longer looks."""
        try:
            self.size = _page_size(os.pread(self._fd, _HEADER, 0))
            self.count = -(-os.fstat(self._fd).st_size // self.size)
            wal = Path(f"{database}-wal")
            if wal.is_file():
                self._wal = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
                self._read_wal()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files."""
        for fd in (self._fd, self._wal):
            if fd >= 0:
                os.close(fd)
        self._fd = self._wal = -1

    def page(self, number: int) -> bytes:
        """One page, from 1; shorter where the file ends within it."""
        if (offset := self._frames.get(number)) is not None:
            return os.pread(self._wal, self.size, offset)
        return os.pread(self._fd, self.size, (number - 1) * self.size)

    def cells(self) -> Iterator[Cell]:
        """All that lies in the leaves, in the order of the pages; what can't be read as a cell is passed over."""
        for number in range(1, self.count + 1):
            yield from self._cells_of(number)

    def _cells_of(self, number: int) -> Iterator[Cell]:
        page = self.page(number)
        start = _HEADER if number == 1 else 0
        if len(page) < self.size or page[start] not in (_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER):
            return
        is_inner, has_rowid = page[start] == _INDEX_INNER, page[start] == _TABLE_LEAF
        first = start + (12 if is_inner else 8)
        for place in range(int.from_bytes(page[start + 3 : start + 5], "big")):
            at = int.from_bytes(page[first + 2 * place : first + 2 * place + 2], "big")
            try:
                yield self._cell(page, at + (4 if is_inner else 0), has_rowid)
            except (ValueError, IndexError):
                continue

    def _cell(self, page: bytes, at: int, has_rowid: bool) -> Cell:
        length, at = _varint(page, at)
        number: int | None = None
        if has_rowid:
            number, at = _varint(page, at)
            number -= (number >> 63) << 64
        local = self._local(length, has_rowid)
        payload = page[at : at + local]
        if local < length:
            payload += self._overflow(int.from_bytes(page[at + local : at + local + 4], "big"), length - local)
        if len(payload) != length:
            raise ValueError("the payload is cut short")
        return Cell(has_rowid, number, _record(payload))

    def _local(self, length: int, has_rowid: bool) -> int:
        """How many bytes of a payload lie in the page itself (1.6)."""
        most = self.size - 35 if has_rowid else (self.size - 12) * 64 // 255 - 23
        if length <= most:
            return length
        least = (self.size - 12) * 32 // 255 - 23
        wanted = least + (length - least) % (self.size - 4)
        return wanted if wanted <= most else least

    def _overflow(self, number: int, length: int) -> bytes:
        parts = []
        seen = set[int]()
        while length > 0:
            page = self.page(number) if 0 < number <= self.count and number not in seen else b""
            if len(page) < self.size:
                raise ValueError("an overflow page is missing, or names one before it")
            seen.add(number)
            parts.append(page[4 : 4 + length])
            length -= len(parts[-1])
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)

    def _read_wal(self) -> None:
        """Where the newest copy of each page is that a whole transaction wrote, or, beyond damage, that is whole.

        Each frame's checksum goes on from the one before, which stands in that one's header: so beyond a damaged frame
        the next ones can be told to be whole again, where SQLite stops.
        """
        header = os.pread(self._wal, _WAL_HEADER, 0)
        if len(header) < _WAL_HEADER:
            return
        magic, _, page_size = struct.unpack(">3I", header[:12])
        order = _WAL_MAGIC.get(magic, "<")
        sums = struct.unpack(">2I", header[24:])
        is_broken = magic not in _WAL_MAGIC or _sum(header[:24], (0, 0), order) != sums
        if not is_broken:
            self.size = page_size
        pending: dict[int, int] = {}
        end = os.fstat(self._wal).st_size
        for at in range(_WAL_HEADER, end - self.size - _FRAME_HEADER + 1, self.size + _FRAME_HEADER):
            frame = os.pread(self._wal, _FRAME_HEADER + self.size, at)
            is_whole = _sum(frame[_FRAME_HEADER:], _sum(frame[:8], sums, order), order) == struct.unpack(
                ">2I", frame[16:24]
            )
            sums = struct.unpack(">2I", frame[16:24])
            number, pages_after = struct.unpack(">2I", frame[:8])
            if frame[8:16] != header[16:24]:  # of an earlier round, unless whole ones follow
                is_broken = True
                continue
            is_broken |= not is_whole
            if is_whole:
                pending[number] = at + _FRAME_HEADER
            if pages_after and pending:
                self._frames |= pending
                self.transactions_beyond += is_broken
                self.count = pages_after if is_whole else max(self.count, *pending)
                pending = {}


def _page_size(header: bytes) -> int:
    found = int.from_bytes(header[16:18], "big")
    found = 65536 if found == 1 else found
    return found if 512 <= found <= 65536 and found & (found - 1) == 0 else PAGE_SIZE


def _sum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The WAL's checksum over ``data``, going on from ``sums`` (4.2)."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for place in range(0, len(words), 2):
        first = (first + words[place] + second) & 0xFFFFFFFF
        second = (second + words[place + 1] + first) & 0xFFFFFFFF
    return first, second


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9


_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _record(payload: bytes) -> list[Value]:
    """A record's values; ValueError where it is none."""
    end, at = _varint(payload, 0)
    kinds, values, place = [], [], end
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    for kind in kinds:
        value, place = _value(payload, kind, place)
        values.append(value)
    if at != end or place != len(payload):
        raise ValueError("the record's parts do not add up")
    return values


def _value(payload: bytes, kind: int, at: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11):
        raise ValueError("no such kind of value")
    length = 8 if kind == 7 else _INTEGER_BYTES.get(kind, (kind - 12) // 2)
    data = payload[at : at + length]
    if len(data) < length:
        raise ValueError("a value is longer than what is left of the record")
    if kind == 7:
        return float(struct.unpack(">d", data)[0]), at + length
    if kind < 12:
        return int.from_bytes(data, "big", signed=True), at + length
    return (data.decode(errors="surrogateescape") if kind % 2 else data), at + length
