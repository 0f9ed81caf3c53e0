"""Which blob files there are, and how much of each is in use: appending to them, and overwriting what was deleted.

The table ``blobs`` has a row a file: how far it is written, how many of its bytes rows name, and how many of the
others are overwritten. All of it moves with the transaction that changes the rows, so whatever is cut short is found
again: beyond ``size`` lies what a failed transaction left, and where ``live + wiped`` falls short of ``size``
something that was deleted waits to be overwritten. A file that nothing names is let be, but by an erasure: the database
that named it may have been lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from sona.errors import InvalidInputError
from sona.storage.blob_files import (
    MOST_BYTES,
    PLACE_BYTES,
    BlobFile,
    Place,
    numbers_in,
    path_of,
    place_of,
)
from sona.storage.rows import Value, check_crc, damaged, encode, row_crc
from sona.storage.syncing import sync_path
from sona.types import Trajectory

_COLUMNS = "file, size, live, wiped, first"
_LAST = f"SELECT {_COLUMNS}, crc FROM blobs ORDER BY file DESC LIMIT 1"
_ONE = f"SELECT {_COLUMNS}, crc FROM blobs WHERE file = ?"
_ALL = f"SELECT {_COLUMNS}, crc FROM blobs ORDER BY file"
_WRITE = f"INSERT OR REPLACE INTO blobs ({_COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?)"
_KNOWN = "SELECT EXISTS (SELECT 1 FROM trajectories WHERE id = ?)"
# SQLite tells a blob's length without reading it.
_NAMED = f"""
SELECT seq, payload FROM trajectories WHERE seq >= ? AND seq < ? AND length(payload) = {PLACE_BYTES} ORDER BY seq
"""
_BEYOND = 2**63 - 1


class BlobRow(NamedTuple):
    """What the store knows of a blob file."""

    file: int
    """Its number; none is given twice while anything may name it."""
    size: int
    """Where the next part goes."""
    live: int
    """Bytes that rows name."""
    wiped: int
    """Of the others: overwritten."""
    first: int
    """Rows that name it have this ``seq`` or a later one, up to the next file's."""


class Blobs:
    """The blob files of a store, for its writer."""

    def __init__(self, folder: Path, *, batch_bytes: int, file_bytes: int) -> None:
        """Args:
        folder: of the files.
        batch_bytes: a batch below it keeps its payloads in its rows, where one sync covers all.
        file_bytes: once a file is so long, the next one is begun.
        """
        self.folder = folder
        self._batch_bytes, self._file_bytes = batch_bytes, file_bytes
        self._open: BlobFile | None = None
        self._begun = 0
        """The newest file that was made here, which holds nothing before a row says so."""
        self._named: set[Path] = set()
        """Files and folders whose names are known to be on the disk."""
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None

    def begin(self) -> None:
        """In a new transaction: wait for what one that was given up has put, and forget how that ended. What comes now
        is written to the same place.
        """
        with suppress(Exception):
            self.wait()

    def takes(self, connection: apsw.Connection, records: Sequence[Trajectory]) -> bool:
        """Whether a batch of these is to be put into a file: it is large, by its first record's size, and not one that
        is sent again, as a whole most often, which would fill the disk with bytes that no row names.

        Raises:
            InvalidInputError: the first record has no stored form.
        """
        if not records or not self._batch_bytes <= len(records) * len(encode(records[0])) < MOST_BYTES:
            return False
        return not any(connection.execute(_KNOWN, (one.id,)).get for one in (records[0], records[-1]))

    def put(self, connection: apsw.Connection, data: bytearray, after_seq: int) -> Place:
        """Where in a file ``data`` lies, which is written there from now on, beside what else there is to do in the
        transaction under way. To be preceded by :meth:`begin`, and followed by :meth:`wait`; it is not to be changed
        before.

        Args:
            connection: the writing one.
            data: the payloads of new trajectories, one behind the other.
            after_seq: they will have later ones.

        Raises:
            InvalidInputError: it is of 2 GiB or more.
            StoreCorruptError: what is known of the last file is damaged.
            OSError: of the disk; the transaction must be given up.
        """
        if len(data) >= MOST_BYTES:
            raise InvalidInputError(f"a batch of {MOST_BYTES} bytes or more; give it in parts")
        tail = self._tail(connection, after_seq)
        self._submit(self._file(tail.file), data, tail.size)
        _write(connection, tail._replace(size=tail.size + len(data), live=tail.live + len(data)))
        return Place(tail.file, tail.size, len(data))

    def _tail(self, connection: apsw.Connection, after_seq: int) -> BlobRow:
        """The file to append to."""
        row = connection.execute(_LAST).get
        last = BlobRow(0, self._file_bytes, 0, 0, 0) if row is None else _read(row)
        if last.size < self._file_bytes:
            return last
        if self._begun <= last.file:  # a file that nothing names is somebody's, unless it was made here
            self._begun = max([last.file, *numbers_in(self.folder)]) + 1
        return BlobRow(self._begun, 0, 0, 0, after_seq + 1)

    def _file(self, number: int) -> BlobFile:
        path = path_of(self.folder, number)
        if self._open is None or self._open.path != path:
            self._close_file()
            self._open = BlobFile(path)
        return self._open

    def _submit(self, file: BlobFile, data: bytearray, start: int) -> None:
        """To a thread of its own, so that the rows go in while the disk works."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "sona-blobs")
        try:
            self._written = self._thread.submit(self._append, file, data, start)
        except RuntimeError:  # the program ends, and its writer stores what waits; or the system has no more threads
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
            self._append(file, data, start)

    def _append(self, file: BlobFile, data: bytearray, start: int) -> None:
        file.write(data, start)
        file.sync()
        for path in (self.folder, file.path):
            if path not in self._named:
                sync_path(path.parent)
                self._named.add(path)

    def wait(self) -> None:
        """Until what was put is on the disk; to be called before the transaction is committed.

        Raises:
            OSError: it is not; the transaction must be given up.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def close(self) -> None:
        """Let go of the file under way, and of the thread; the next part takes both up again."""
        self.begin()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._close_file()

    def _close_file(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def forked(self) -> None:
        """In a forked child, where the thread does not run."""
        self._thread = self._written = None
        self._close_file()

    def unclean(self, connection: apsw.Connection) -> list[int]:
        """The files in which something waits to be overwritten, or that may go."""
        rows = read_blobs(connection)
        return [row.file for row in rows if _waits(row, rows[-1].file) or _size(self.folder, row.file) > row.size]

    def all(self, connection: apsw.Connection) -> list[int]:
        """All files, also those that nothing names."""
        return sorted({*numbers_in(self.folder), *(row.file for row in read_blobs(connection))})

    def wipe(self, connection: apsw.Connection, file: int) -> int:
        """Overwrite what no row names in a file, in the transaction under way, and return the room to the disk; no
        reader may be left that began before it was deleted. What a transaction that failed has left beyond its end is
        cut off, and a file goes of which nothing is named. Returns how many bytes were overwritten for the first time.

        Raises:
            StoreCorruptError: what is known of the files is damaged.
            OSError: of the disk.
        """
        self.begin()
        rows = {row.file: row for row in read_blobs(connection)}
        row = rows.get(file, BlobRow(file, 0, 0, 0, 0))
        path = path_of(self.folder, file)
        if goes := not row.live and file != max(rows, default=0):
            self._close_file()
            self._named.discard(path)
        if path.exists():
            until = min((one.first for one in rows.values() if one.file > file), default=_BEYOND)
            named = [] if goes else _places(connection, row.first, until, file)
            _overwrite(path, named, row.size, goes=goes)
        if goes:
            connection.execute("DELETE FROM blobs WHERE file = ?", (file,))
        else:
            _write(connection, row._replace(wiped=row.size - row.live))
        return row.size - row.live - row.wiped


def free(connection: apsw.Connection, lengths: Mapping[int, int]) -> None:
    """So many bytes of each file are not named any more, in the transaction under way.

    Raises:
        StoreCorruptError: what is known of the file is damaged.
    """
    for file, length in lengths.items():
        row = connection.execute(_ONE, (file,)).get
        if row is None:
            raise damaged(f"blob file {file}", "its row is missing")
        known = _read(row)
        _write(connection, known._replace(live=known.live - length))


def lengths_of(payload: Value) -> Counter[int]:
    """By file, how many bytes of it a row's payload names: of one, or of none."""
    place = place_of(payload)
    return Counter() if place is None else Counter({place.file: place.length})


def read_blobs(connection: apsw.Connection) -> list[BlobRow]:
    """What is known of all files, by number; StoreCorruptError where it is damaged."""
    rows: list[Any] = connection.execute(_ALL).fetchall()
    return [_read(row) for row in rows]


class Named(NamedTuple):
    """What rows name of a blob file."""

    live: int
    """Bytes."""
    end: int
    """Where the last of it ends."""
    first: int
    """The ``seq`` of the first row that does."""


def count_named(connection: apsw.Connection) -> dict[int, Named]:
    """By file, what the rows name of it."""
    found: dict[int, Named] = {}
    rows: Iterator[Any] = connection.execute(_NAMED, (0, _BEYOND))
    for seq, payload in rows:
        if (place := place_of(payload)) is not None:
            known = found.get(place.file, Named(0, 0, seq))
            found[place.file] = Named(known.live + place.length, max(known.end, place.end), known.first)
    return found


def lacking(named: Mapping[int, Named], folder: Path) -> dict[Path, str]:
    """The files that lack what rows name of them, and what is wrong with each."""
    found = {}
    for file, of in named.items():
        path = path_of(folder, file)
        size = path.stat().st_size if path.exists() else None
        if size is None or size < of.end:
            how = "is missing" if size is None else f"ends at byte {size}"
            found[path] = f"{how}, and rows name {of.live} bytes of it, up to byte {of.end}"
    return found


def count_blobs(connection: apsw.Connection, folder: Path) -> list[BlobRow]:
    """The table counted anew from the rows and the files. What no row names counts as overwritten, so that no retention
    takes from a damaged store what somebody may still get out of it; an erasure does not ask.
    """
    counted = []
    for file, (live, end, first) in sorted(count_named(connection).items()):
        size = max(end, _size(folder, file))
        counted.append(BlobRow(file, size, live, size - live, first))
    return counted


def write_blobs(connection: apsw.Connection, rows: Iterable[BlobRow]) -> None:
    """Replace what is known of all files, in the transaction under way."""
    connection.execute("DELETE FROM blobs")
    for row in rows:
        _write(connection, row)


def _waits(row: BlobRow, last: int) -> bool:
    """Whether something in a file waits to be overwritten, or the file to be removed: all but the last one may be."""
    return row.live + row.wiped < row.size or (not row.live and row.file != last)


def _read(row: Any) -> BlobRow:
    *values, crc = row
    check_crc(crc, *values, row=f"blob file {values[0]!r}")
    return BlobRow(*values)


def _write(connection: apsw.Connection, row: BlobRow) -> None:
    connection.execute(_WRITE, (*row, row_crc(*row)))


def _places(connection: apsw.Connection, first: int, until: int, file: int) -> list[Place]:
    rows: Iterator[Any] = connection.execute(_NAMED, (first, until))
    found = (place_of(payload) for _, payload in rows)
    return [place for place in found if place is not None and place.file == file]


def _gaps(places: Iterable[Place], size: int) -> Iterator[tuple[int, int]]:
    """Where nothing lies, from the start to ``size``."""
    at = 0
    for place in sorted(places):
        if place.start > at:
            yield at, place.start
        at = max(at, place.end)
    if at < size:
        yield at, size


def _overwrite(path: Path, named: Iterable[Place], size: int, *, goes: bool) -> None:
    file = BlobFile(path)
    try:
        gaps = [*_gaps(named, size), (size, max(file.size, size))]
        for start, end in gaps:
            file.overwrite(start, end)
        file.sync()  # before the room is given back: of a hole the system writes nothing
        if goes:
            file.remove()
            return
        for start, end in gaps:
            file.give_back(start, end)
        file.truncate(min(file.size, size))
    finally:
        file.close()


def _size(folder: Path, file: int) -> int:
    try:
        return path_of(folder, file).stat().st_size
    except FileNotFoundError:
        return 0
