"""The events of an engine as iterators: one for event loops, one for threads."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Self

import anyio
from anyio.lowlevel import checkpoint

from sona.bell import Bell
from sona.broadcast import Broadcast, EndOfEventsError
from sona.checks import check_number, shown
from sona.errors import InvalidInputError
from sona.event_loop import EventLoop
from sona.events import Event

BUFFER = 1024
"""Events that a subscriber may lag behind, unless it asks for another number."""
MAX_BUFFER = 1_000_000


class EventStream:
    """``async for event in stream``, on asyncio or trio. Subscribed from the moment it is made.

    It ends when the engine is closed, after what was told before. A loop that is left, by ``break`` or by a
    cancellation, drops the stream and with it the subscription; one that is kept goes on where it was, until
    :meth:`close`.

    Raises:
        InvalidInputError: ``buffer`` is no number from 1 to 1,000,000.
    """

    def __init__(self, events: Broadcast, buffer: int = BUFFER) -> None:
        self.mailbox = events.subscribe(_checked(buffer))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await checkpoint()  # however fast events come, other tasks get their turn, and a cancellation comes through
        try:
            while (event := self.mailbox.take()) is None:
                await self._wait()
        except EndOfEventsError:
            raise StopAsyncIteration from None
        return event

    async def _wait(self) -> None:
        arrived = anyio.Event()
        with self.mailbox.waiting(partial(EventLoop().soon, arrived.set)):
            await arrived.wait()

    def close(self) -> None:
        """Listen no more; iteration ends. A second call does nothing."""
        self.mailbox.close(forget=True)


class SyncEventStream:
    """``for event in stream``, for threads; otherwise as the :class:`EventStream` that it takes over.

    Args:
        stream: just made.
        timeout_s: iteration also ends when nothing came for so many seconds; another ``for`` over the same stream
            then goes on, and has missed nothing. None waits for as long as the engine is open.
    """

    def __init__(self, stream: EventStream, timeout_s: float | None = None) -> None:
        self._timeout_s = None if timeout_s is None else check_number(timeout_s, "timeout_s", 0.0)
        self._mailbox = stream.mailbox

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        try:
            while (event := self._mailbox.take()) is None:
                if not self._wait(deadline):
                    raise StopIteration
        except EndOfEventsError:
            raise StopIteration from None
        return event

    def _wait(self, deadline: float | None) -> bool:
        """Whether something arrived in time."""
        arrived = Bell()
        with self._mailbox.waiting(arrived.ring):
            if deadline is None:
                return arrived.wait()
            return arrived.wait(min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Listen no more; iteration ends. A second call does nothing."""
        self._mailbox.close(forget=True)


def _checked(buffer: object) -> int:
    if type(buffer) is not int or not 1 <= buffer <= MAX_BUFFER:
        raise InvalidInputError(f"buffer: {shown(buffer)}; a whole number of events from 1 to {MAX_BUFFER} is allowed")
    return buffer
