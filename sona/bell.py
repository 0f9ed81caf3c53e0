"""What wakes a thread."""

from __future__ import annotations

import threading
from contextlib import suppress

FOREVER = -1.0
"""A time limit that is none."""


class Bell:
    """Wakes the one thread that waits for it. A plain lock: an Event takes four times as long, hangs where a signal
    handler rings it in the midst of being rung, and may stay locked where a Ctrl-C ends the wait: then whoever sets it
    hangs.
    """

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        with suppress(RuntimeError):  # it rings already
            self._silent.release()

    def wait(self, timeout_s: float = FOREVER) -> bool:
        """Whether it rang, within so long."""
        return self._silent.acquire(timeout=timeout_s)

    def silence(self) -> None:
        """Let it ring no more."""
        self._silent.acquire(blocking=False)
