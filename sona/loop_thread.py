"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from sona.errors import ClosedError

T = TypeVar("T")

CLOSED = "the engine was closed meanwhile; open it again"


class LoopThread:
    """Runs an event loop until it is closed. A program that ends without closing it is not held up: anyio's
    ``start_blocking_portal`` would wait, when it is torn down, for a thread that the interpreter has stopped already.

    Nor is its portal used, or any future: a signal that comes while a thread holds a future's condition, and raises or
    makes another call, leaves the loop waiting for that condition for good. A plain lock is held by nobody.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self._changed = threading.Condition()
        self._calls, self._closed = Counter[int](), False
        """Under way, by the thread that waits for them."""
        self._open: dict[_Call[Any], asyncio.Task[None]] = {}
        ready = _silent()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve, ready), name="sona-loop", daemon=True)
        self._thread.start()
        ready.acquire()

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any, cancel: bool = False) -> T:
        """The result of a coroutine function, run on the loop; this thread waits for it.

        Args:
            function: what to call.
            arguments: what with.
            cancel: whether a Ctrl-C that comes meanwhile cancels it, where waiting for it alone would leave it running.

        Raises:
            ClosedError: the loop was closed. Whatever ``function`` raises goes on.
        """
        call = _Call(partial(function, *arguments))
        with self._changed:
            if self._closed:
                raise ClosedError(CLOSED)
            self._calls[threading.get_ident()] += 1
        try:
            self._loop.call_soon_threadsafe(self._begin, call)
            try:
                call.done.acquire()
            except KeyboardInterrupt:
                if cancel:
                    self._loop.call_soon_threadsafe(call.cancel)
                raise
        finally:
            with self._changed:
                self._calls[threading.get_ident()] -= 1
                self._changed.notify_all()
        return call.outcome()

    def close(self) -> None:
        """Take no more calls, wait for those under way, and end the loop. A call of this very thread, in the midst of
        which a signal handler closes, is cancelled.
        """
        own = threading.get_ident()
        with self._changed:
            self._closed = True
            # A call that came just as the loop ended would never return.
            self._changed.wait_for(lambda: not any(calls for thread, calls in self._calls.items() if thread != own))
            nested = self._calls[own] > 0
        self._loop.call_soon_threadsafe(self._finish, nested)
        self._thread.join()

    # On the loop

    async def _serve(self, ready: threading.Lock) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        ready.release()
        await self._end.wait()
        if self._open:  # whoever waited was interrupted
            await asyncio.wait(self._open.values())

    def _begin(self, call: _Call[Any]) -> None:
        self._open[call] = task = self._loop.create_task(call.run())
        task.add_done_callback(lambda _: self._open.pop(call))

    def _finish(self, cancel: bool) -> None:
        self._end.set()
        for call in self._open if cancel else ():
            call.cancel()


class _Call(Generic[T]):
    """One call, and what came of it."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._results: list[T] = []
        self._errors: list[Exception] = []
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self.done = _silent()
        """Rings at its end."""

    async def run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                self._results.append(await self._function())
        except Exception as error:
            self._errors.append(error)
        finally:
            self.done.release()

    def cancel(self) -> None:
        """On the loop."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def outcome(self) -> T:
        """Its result; raises what it raised, and ClosedError where it was cancelled."""
        if self._errors:
            raise self._errors.pop()  # not kept: an error keeps the frames that it went through
        if not self._results:
            raise ClosedError(CLOSED)
        return self._results[0]


def _silent() -> threading.Lock:
    """A lock that somebody may wait for until another releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock
