"""Who still reads a snapshot from before: what was deleted is overwritten once nobody does.

A reader, in whatever process, holds a shared lock (``flock``) on one of two files while its snapshot lasts: the one
that the file ``generation`` names. Who wants to overwrite lets it name the other one, and then waits until nobody holds
the first. So those that come later, whose snapshots are later too, neither wait nor are waited for.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

GENERATION = "generation"
READERS = ("readers-0", "readers-1")
_POLL_S = 0.005


def make_gate(folder: Path) -> None:
    """The files in ``folder``, which is made where it is missing; raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in (GENERATION, *READERS):
        os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


class SnapshotGate:
    """Of a store's blob folder. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For a reader; to be entered before its snapshot begins. Where the files are missing nobody overwrites.

        Raises:
            OSError: the files can't be opened or locked.
        """
        # Each reader has a file of its own, which lets go of the lock when nothing refers to it any more: a Ctrl-C may
        # come between any two steps here, and a count of readers would stay one too high.
        process, lock = os.getpid(), self._entered()
        try:
            yield
        finally:
            if lock is not None and os.getpid() == process:
                _let_go(lock)
            elif lock is not None:  # in a forked child it is the parent's
                lock.close()

    def _entered(self) -> FileIO | None:
        with suppress(FileNotFoundError):
            while True:
                generation = self._generation()
                lock = _locked(self._folder / READERS[generation])
                if self._generation() == generation:
                    return lock
                _let_go(lock)
        return None

    def _generation(self) -> int:
        return int((self._folder / GENERATION).read_bytes() == b"1")

    def passed(self, timeout_s: float) -> bool:
        """For who overwrites, one at a time: whether within ``timeout_s`` seconds all have ended that read before now.
        What was deleted before the call nobody sees any more then.

        Raises:
            OSError: the files can't be opened, written or locked.
        """
        make_gate(self._folder)
        until = time.monotonic() + timeout_s
        # Both in turn: that of a call before, which did not wait long enough, may be held too.
        for _ in READERS:
            before = self._generation()
            _write(self._folder / GENERATION, b"0" if before else b"1")
            if not _was_free(self._folder / READERS[before], until):
                return False
        return True


def _write(path: Path, byte: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, byte, 0)  # in place: a reader finds the one or the other
    finally:
        os.close(fd)


def _locked(path: Path) -> FileIO:
    lock = FileIO(path)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _let_go(lock: FileIO) -> None:
    fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do while a forked child has the descriptor too
    lock.close()


def _was_free(path: Path, until: float) -> bool:
    """Whether at some moment up to ``until`` nobody held the lock."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(_POLL_S)
            else:
                fcntl.flock(fd, fcntl.LOCK_UN)
                return True
    finally:
        os.close(fd)
