"""An event loop, seen from other threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio.lowlevel import current_token


class EventLoop:
    """The event loop that runs where this is made, asyncio's or trio's."""

    def __init__(self) -> None:
        native: Any = current_token().native_token
        # asyncio's loop and trio's token each have one method for this; anyio has none that does not wait.
        soon = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        self._soon: Callable[[Callable[[], object]], object] = soon

    def soon(self, function: Callable[[], object]) -> None:
        """Have the loop call ``function``. From any thread; waits for nothing; nothing is done once the loop has
        ended.
        """
        with suppress(RuntimeError):  # both say so with one
            self._soon(function)
