"""Whether a lock is held here, which a signal handler has to know before it waits for another thread."""

from __future__ import annotations

import threading


def is_held_here(lock: threading.RLock) -> bool:
    """Whether the calling thread has the lock: what it guards is in the midst of a call of this very thread."""
    held: bool = lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition asks
    return held
