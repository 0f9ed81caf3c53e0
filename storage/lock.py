"""One writer to a store, and one learner: locks on files beside the database."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from sona.errors import StoreLockedError

LOOK_S = 0.1


class WriterLock:
    """``flock`` on a file that holds the owner's process id.

    The system drops it when its owner ends, however it ends, so no lock is ever stale and the file is never removed.
    """

    role = "writes to it"
    remedy = (
        "and a store has one writer; close that one, or read beside it, as 'sona status' and other commands do (in "
        "Python: Store.open with read_only=True)"
    )

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreLockedError: another process has it, or another store in this one.
            OSError: the file can't be made or locked.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(path)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path) -> None:
        if not self._taken():
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            where = "this process" if owner == str(os.getpid()) else "another process"
            raise StoreLockedError(f"{path.parent}: {where} {self.role} (pid {owner}), {self.remedy}")
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def _taken(self) -> bool:
        """Tried for a moment: :func:`owner_of` shares the lock while it looks."""
        until = time.monotonic() + LOOK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(LOOK_S / 20)
            else:
                return True

    def release(self) -> None:
        """Give the lock back; in a forked child: only let go of it, it stays the parent's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LearnerLock(WriterLock):
    """... of the process that learns for a store's writer: what one whose host died has begun must have ended."""

    role = "learns for it"
    remedy = "and a store has one learner; it ends by itself once its host has, so try again, or end it"


class TrainerLock(WriterLock):
    """... of the process that trains full weights for a store's writer."""

    role = "trains for it"
    remedy = "and a store has one trainer; it ends by itself once its host has, so try again, or end it"


def owner_of(path: Path) -> str | None:
    """The process id of who has the lock; None where nobody has."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(fd)
    return None
