"""Who still reads a snapshot from before: what was deleted is overwritten once nobody does.

A reader, in whatever process, holds a shared lock (``flock``) on one of two files while its snapshot lasts: the one
that the file ``generation`` names. Who wants to overwrite lets it name the other one, and then waits until nobody holds
the first. So those that come later, whose snapshots are later too, neither wait nor are waited for.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sona.held import is_held_here

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
        # Reentrant: a signal handler may read while its thread is in here, behind any call. What it has entered it has
        # left when it ends; so at each call a generation that is in `_held` has a reader.
        self._lock = threading.RLock()
        self._held: dict[int, list[int]] = {}  # by generation, the descriptor of its lock, and how many readers have it

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in the midst of a call here: it asks in a signal handler, or a finaliser."""
        return is_held_here(self._lock)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For a reader; to be entered before its snapshot begins. Where the files are missing nobody overwrites.

        Raises:
            OSError: the files can't be opened or locked.
        """
        generation = self._enter()
        try:
            yield
        finally:
            if generation is not None:
                self._leave(generation)

    def _enter(self) -> int | None:
        with self._lock, suppress(FileNotFoundError):
            while True:
                generation = self._generation()
                if generation in self._held:
                    self._held[generation][1] += 1
                else:
                    self._held[generation] = [_locked(self._folder / READERS[generation]), 1]
                try:
                    has_changed = self._generation() != generation
                except BaseException:
                    self._leave(generation)
                    raise
                if not has_changed:
                    return generation
                self._leave(generation)
        return None

    def _leave(self, generation: int) -> None:
        with self._lock:
            if generation not in self._held:  # in a forked child
                return
            held = self._held[generation]
            if held[1] > 1:
                held[1] -= 1
                return
            del self._held[generation]
            fcntl.flock(held[0], fcntl.LOCK_UN)  # closing would not do while a forked child has the descriptor too
            os.close(held[0])

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

    def forked(self) -> None:
        """In a forked child: the locks stay the parent's."""
        self._lock = threading.RLock()
        held, self._held = self._held, {}
        for fd, _ in held.values():
            with suppress(OSError):
                os.close(fd)


def _write(path: Path, byte: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, byte, 0)  # in place: a reader finds the one or the other
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
