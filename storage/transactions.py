"""Durable transactions on the one writing connection, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol, TypeVar, cast

import apsw

from sona.errors import StoreError, StoreFullError, StoreReadOnlyError
from sona.storage.connection import FAILURES, leak, open_writer, store_error

_T = TypeVar("_T")
Snapshot = Callable[[], AbstractContextManager[apsw.Connection]]
"""A reading connection, of one moment."""


class Transact(Protocol):
    """Does work in one durable transaction, and returns what it returned."""

    def __call__(self, work: Callable[[apsw.Connection], _T], /) -> _T:
        """Raises StoreError, and whatever ``work`` raises; nothing was changed then."""


class _CommitError(Exception):
    """A COMMIT failed, and nobody knows yet how it ended."""

    def __init__(self, cause: StoreError, result: object) -> None:
        self.cause = cause
        self.result = result


_File = tuple[int, int]
"""Device and inode."""


def _file_at(path: Path) -> _File | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Transactions:
    """Runs one transaction at a time; the caller sees to that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: apsw.Connection | None = None  # opened when it is needed: a failed commit does away with it
        self._file: _File | None = None  # that was opened first

    def run(self, work: Callable[[apsw.Connection], _T], landed: Callable[[apsw.Connection], bool] | None = None) -> _T:
        """What ``work`` returns, once its transaction is durable.

        A failed COMMIT may have reached the disk or not. Then the connection is made anew, and ``work`` is done once
        more, unless ``landed`` finds that it was done; without ``landed`` doing it twice must come to the same.

        Raises:
            StoreError: the store's trouble, in the form of one of its subclasses; nothing was acknowledged.
            Exception: whatever ``work`` raised; nothing was changed.
        """
        try:
            return self._attempt(work)
        except _CommitError as failure:
            error, result = failure.cause, failure.result
        if isinstance(error, (StoreFullError, StoreReadOnlyError)):
            raise error  # trying again at once would not help
        if landed is not None and self._ask(landed):
            return cast(_T, result)
        try:
            return self._attempt(work)
        except _CommitError as failure:
            raise failure.cause from error

    def apart(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """What ``work`` returns that can't be done in a transaction, such as writing the whole database anew.

        Raises:
            StoreError: in the form of one of its subclasses. What was committed before stays so.
        """
        return self._ask(work)

    def close(self) -> None:
        """Close the connection; the next transaction opens another."""
        if self._writer is not None:
            with suppress(apsw.Error):
                self._writer.close()
            self._writer = None

    def forked(self) -> None:
        """In a forked child: leave the connection to the parent."""
        if self._writer is not None:
            leak(self._writer)

    def _attempt(self, work: Callable[[apsw.Connection], _T]) -> _T:
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
        except (*FAILURES, OSError) as error:
            translated = self._translated(error, connection)
            self._undo(connection)
            raise translated from error
        except BaseException:
            self._undo(connection)
            raise
        try:
            connection.execute("COMMIT")
        except apsw.Error as error:
            translated = self._translated(error, connection)
            translated.__cause__ = error
            self.close()
            raise _CommitError(translated, result) from None
        return result

    def _ask(self, work: Callable[[apsw.Connection], _T]) -> _T:
        connection = self._connection()
        try:
            return work(connection)
        except (*FAILURES, OSError) as error:
            raise self._translated(error, connection) from error

    def _undo(self, connection: apsw.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error:
            self.close()

    def _connection(self) -> apsw.Connection:
        self._check_in_place()
        if self._writer is None:
            try:
                self._writer = open_writer(self._path)
                self._file = _file_at(self._path)
            except (*FAILURES, OSError) as error:
                raise store_error(error, self._path) from error
        return self._writer

    def _check_in_place(self) -> None:
        """What is written to a file that was deleted is gone with its last user, and nothing else tells. 2 us."""
        if self._file is not None and _file_at(self._path) != self._file:
            raise StoreError(
                f"{self._path}: it is not the file that was opened: the store was moved, deleted or replaced while it "
                "is in use; put it back, or close it and open the store where it lies now"
            )

    def _translated(
        self, error: apsw.Error | UnicodeDecodeError | OSError, connection: apsw.Connection | None
    ) -> StoreError:
        return store_error(error, self._path, 0 if connection is None else connection.system_errno)
