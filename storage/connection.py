"""Connections to the database, and SQLite's errors as the store's.

Nothing that runs beside these connections opens the database file by itself: closing a second file descriptor on it
would drop the POSIX locks that SQLite holds (sqlite.org/howtocorrupt.html, 2.2). Only the doctor does (`pages.py`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from sona.errors import (
    ClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreVersionError,
)
from sona.storage.blob_files import Content
from sona.storage.layout import BLOBS
from sona.storage.presence import EMPTY
from sona.storage.schema import CREATION_PRAGMAS, READER_PRAGMAS, SCHEMA_VERSION, WRITER_PRAGMAS, form_of, migrate
from sona.storage.snapshot_gate import SnapshotGate
from sona.storage.wal import write_again

FAILURES = (apsw.Error, UnicodeDecodeError)
"""What a statement fails with for the store's sake; the second one for a text that is none."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# An SQLError too: the statements are the store's own, so it is the schema that lacks what they name.
_DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, UnicodeDecodeError)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def store_error(error: apsw.Error | UnicodeDecodeError | OSError, path: Path, number: int = 0) -> StoreError:
    """``error`` as the store's own; ``number`` is the errno behind an I/O error of SQLite, where it is known."""
    if isinstance(error, OSError):
        number = error.errno or 0
    what = f"{path}: {_told(error, path)}"
    if isinstance(error, apsw.FullError) or number in _FULL or _lacks_room(error):
        return StoreFullError(f"{what}; no room is left: free space on its disk, and what is queued will be stored")
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError)) or number in _READ_ONLY:
        return StoreReadOnlyError(f"{what}; it can't be written to: grant write permission to the folder and its files")
    if isinstance(error, _DAMAGE) or is_cut_short(error):
        return StoreCorruptError(
            f"{what}; it is damaged or no store: 'sona doctor' says which, and repairs what can be"
        )
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return StoreLockedError(f"{what}; another program keeps it locked: end that one")
    return StoreError(f"{what}; see that its folder exists and can be read, and that its disk works")


def _told(error: Exception, path: Path) -> str:
    """An error without its number, and without the path where that is told already."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([error.strerror, *(name for name in names if name != str(path))])


def _lacks_room(error: Exception) -> bool:
    """Whether SQLite can't make what a log's readers share (`store.db-shm`): on a full disk the first thing to fail."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE


def is_cut_short(error: Exception) -> bool:
    """Whether a file ends within what it should hold. Of most pages SQLite takes the rest for zeros; of an overflow
    page, which it reads past its cache, this is an I/O error.
    """
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHORT_READ  # of errors not SQLite's it is missing


class Connection(apsw.Connection):
    """A connection in whose statements ``content(column)`` gives what a column holds, also where that lies in a blob
    file of the store in ``folder``; NULL where it is not there.
    """

    def __init__(
        self, filename: str, folder: Path, flags: int = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    ) -> None:
        super().__init__(filename, flags)
        self._content = content = Content(folder / BLOBS)
        self.create_scalar_function("content", content, 1)  # type: ignore[arg-type]

    def close(self, force: bool = False) -> None:
        """Close it, and the files that it reads from."""
        try:
            super().close(force)
        finally:
            self._content.close()


def _configure(connection: apsw.Connection, pragmas: tuple[str, ...]) -> None:
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def make_private(path: Path) -> None:
    """An empty database, where there is none, that its owner alone may read; its log is made like it."""
    if path.exists():
        return
    with suppress(OSError):  # whatever is wrong SQLite says better
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def open_writer(path: Path) -> apsw.Connection:
    """The one writing connection to the database at ``path``, which is made or migrated if it has to be.

    What it sees is durable, whatever became of the connection before it.
    """
    _check_writable(path)
    write_again(path)
    make_private(path)
    connection = Connection(os.fspath(path), path.parent)
    try:
        if form_of(connection, path) == 0:
            _configure(connection, CREATION_PRAGMAS)
        _configure(connection, WRITER_PRAGMAS)
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_writable(database: Path) -> None:
    """SQLite opens it all the same, and tells only whoever writes."""
    for file in (database, Path(f"{database}-wal")):
        if file.exists() and not os.access(file, os.W_OK, effective_ids=True):
            raise StoreReadOnlyError(f"{file}: it can't be written to: grant write permission to it")


def open_reader(path: Path) -> apsw.Connection:
    """A reading connection, which can't change anything; as :func:`open_reader_of_any_form`, and:

    Raises:
        StoreVersionError: its tables are of another version of sona.
    """
    connection = open_reader_of_any_form(path)
    try:
        if (form := form_of(connection, path)) == 0:
            raise StoreVersionError(f"{path}: {EMPTY}")
        if form != SCHEMA_VERSION:
            raise StoreVersionError(
                f"{path}: schema {form}; open it once for writing, which brings it to {SCHEMA_VERSION}"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader_of_any_form(path: Path) -> apsw.Connection:
    """A reading connection, whatever tables there are.

    In a folder without write permission SQLite can't make the shared memory beside the database that readers of a WAL
    need. If there is no WAL, all is in the database and nobody writes to it, so it is read as it lies.

    Raises:
        StoreReadOnlyError: there is a WAL that can't be read without write permission.
    """
    try:
        return _reader(path, "mode=ro")
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        if not path.exists() or os.access(path.parent, os.W_OK):
            raise
        if Path(f"{path}-wal").exists():
            raise StoreReadOnlyError(
                f"{path}: its newest records are in {path.name}-wal, which can't be read without write permission to "
                "the folder; grant it, copy the folder, or close the store's writer first"
            ) from None
        return _reader(path, "mode=ro&immutable=1")


def _reader(path: Path, how: str) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = Connection(f"{path.absolute().as_uri()}?{how}", path.parent, flags)
    try:
        _configure(connection, READER_PRAGMAS)
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()  # opens the files that it needs
    except BaseException:
        connection.close()
        raise
    return connection


def leak(connection: apsw.Connection) -> None:
    """Keep a parent's connection from ever being closed in a forked child, where that would end the parent's WAL."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _close(connection: apsw.Connection) -> None:
    """A disk that fails may say so once more as its files are closed; closed they are."""
    with suppress(apsw.Error):
        connection.close()


class Readers:
    """A pool of reading connections; each is lent to one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.gate = SnapshotGate(path.parent / BLOBS)
        """Entered by each snapshot: what it may still see is not overwritten."""
        self._idle: deque[apsw.Connection] = deque()
        self._closed = False

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """A connection inside a read transaction: all that the block reads is of one moment."""
        with self._entered():
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
            except FAILURES as error:
                raise store_error(error, self._path, connection.system_errno) from error
            finally:
                self._give_back(connection)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """The gate, with what the disk does as the store's own error."""
        try:
            with self.gate.shared():
                yield
        except OSError as error:
            raise store_error(error, self._path) from error

    def _borrow(self) -> apsw.Connection:
        if self._closed:
            raise ClosedError(f"{self._path.parent}: used after close(); open the store again")
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return open_reader(self._path)
        except FAILURES as error:
            raise store_error(error, self._path) from error

    def _give_back(self, connection: apsw.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error:
            _close(connection)
            return
        self._idle.append(connection)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        self._closed = True
        while self._idle:
            _close(self._idle.pop())

    def forked(self) -> None:
        """In a forked child: touch nothing of the parent's."""
        self._closed = True
        while self._idle:
            leak(self._idle.pop())
