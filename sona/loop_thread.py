"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar, cast

import anyio

from sona.bell import Bell
from sona.errors import ClosedError, InvalidInputError
from sona.event_loop import EventLoop

T = TypeVar("T")

LOOK_S = 1.0
"""So often whoever waits looks whether the loop still runs."""


class LoopThread:
    """Runs an event loop until it is closed. A program that ends without closing it is not held up: anyio's
    ``start_blocking_portal`` would wait, when it is torn down, for a thread that the interpreter has stopped already.

    A Ctrl-C may come between any two steps that are Python. So threads that wait here wait for Bells: a Condition, and
    with it the Future that anyio's portal has for each call, might stay locked, and the loop would hang in setting it.
    """

    def __init__(self) -> None:
        ready = Bell()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve, ready.ring), name="sona-loop", daemon=True)
        self._calls: dict[object, int] = {}  # under way: the thread that waits
        self._asked: deque[tuple[Context, Callable[[], Coroutine[Any, Any, None]]]] = deque()
        self._ended = Bell()
        self._closed = self._stopped = False
        self._thread.start()
        self._wait(ready)

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any, cancel: bool = False) -> T:
        """The result of a coroutine function, run on the loop; this thread waits for it.

        Args:
            function: what to call.
            arguments: what with.
            cancel: whether a Ctrl-C that comes meanwhile cancels it, where waiting for it alone would leave it running.

        Raises:
            ClosedError: the loop was closed.
            InvalidInputError: this is the loop's own thread. Whatever ``function`` raises goes on.
        """
        if threading.get_ident() == self._thread.ident:
            raise InvalidInputError(
                "a SyncEngine was called on its own event loop, which would wait for itself; call it from another "
                "thread (anyio.to_thread.run_sync), or use an Engine and await its calls"
            )
        me, call = object(), _Call(function, arguments)
        try:
            self._calls[me] = threading.get_ident()
            if self._closed:  # in this order: close() waits for the calls that are there once it is set
                raise ClosedError("the engine was closed meanwhile; open it again")
            try:
                self._asked.append((copy_context(), call.run))
                self._loop.soon(self._look)
                self._wait(call.ended)
            except BaseException:
                if cancel:
                    self._loop.soon(call.cancel)
                raise
            return call.result()
        finally:
            self._calls.pop(me, None)
            self._ended.ring()

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread waits for a call: it asks in a signal handler, or a finaliser."""
        return threading.get_ident() in list(self._calls.values())

    def close(self) -> None:
        """Take no more calls, wait for those under way, and end the loop."""
        self._closed = True
        while self._calls:  # one that came just as the loop ended would never return
            self._ended.wait(LOOK_S)
        self._stopped = True
        self._loop.soon(self._look)
        self._thread.join()

    def _wait(self, bell: Bell) -> None:
        while not bell.wait(LOOK_S):
            if not self._thread.is_alive():
                raise ClosedError("the engine's event loop has ended; close the engine, and open it again")

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._loop, self._more = EventLoop(), anyio.Event()
        async with anyio.create_task_group() as group:
            ready()
            while not self._stopped:
                await self._more.wait()
                self._more = anyio.Event()
                while self._asked:
                    context, run = self._asked.popleft()
                    context.run(group.start_soon, run)

    def _look(self) -> None:
        self._more.set()


class _Call(Generic[T]):
    """A coroutine function that is run on the loop, and how it ended."""

    def __init__(self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._value: T | None = None
        self._error: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self.ended = Bell()

    async def run(self) -> None:
        """On the loop. What is raised goes to who waits, and the loop lives on."""
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                self._value = await self._function(*self._arguments)
        except BaseException as error:
            self._error = error
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        finally:
            self.ended.ring()

    def cancel(self) -> None:
        """On the loop."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def result(self) -> T:
        """Once it has ended."""
        error, self._error = self._error, None
        if error is None:
            return cast(T, self._value)
        try:
            raise error
        finally:
            del error  # or its traceback would hold it, and all that is on the stack
