"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

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
        self._ready = Bell()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,), name="sona-loop", daemon=True)
        self._loop: EventLoop | None = None
        self._calls: dict[object, int] = {}  # under way: the thread that waits
        self._asked: deque[tuple[Context, Callable[[], Coroutine[Any, Any, None]]]] = deque()
        self._ended = Bell()
        self._closed = self._stopped = False

    def start(self) -> None:
        """Begin; :meth:`close` it in the end, also where this was cut short."""
        self._thread.start()
        self._wait(self._ready)

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any, cancel: bool = False) -> T:
        """The result of a coroutine function, run on the loop; this thread waits for it. What it raises goes on.

        Args:
            function: what to call.
            arguments: what with.
            cancel: whether a Ctrl-C that comes meanwhile cancels it, where waiting for it alone would leave it running.

        Raises:
            ClosedError: the loop was closed.
            InvalidInputError: this is the loop's own thread.
        """
        self.check_elsewhere()
        me, call = object(), _Call(function, arguments)
        try:
            self._calls[me] = threading.get_ident()
            if self._closed:  # in this order: close() waits for the calls that are there once it is set
                raise ClosedError("the engine was closed meanwhile; open it again")
            try:
                self._asked.append((copy_context(), call.run))
                self._soon(self._look)
                self._wait(call.ended)
            except BaseException:
                self._soon(self._look)  # it may have been asked for alone, and is not to come with a later call
                if cancel:
                    self._soon(call.cancel)
                raise
            return call.result()
        finally:
            self._calls.pop(me, None)
            self._ended.ring()

    def check_elsewhere(self) -> None:
        """InvalidInputError on the loop's own thread."""
        if threading.current_thread() is self._thread:
            raise InvalidInputError(
                "a SyncEngine was called on its own event loop, which would wait for itself; call it from another "
                "thread (anyio.to_thread.run_sync), or use an Engine and await its calls"
            )

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
        self._soon(self._look)
        with suppress(RuntimeError):  # it was not started
            self._thread.join()

    def _wait(self, bell: Bell) -> None:
        while not bell.wait(LOOK_S):
            if not self._thread.is_alive():
                raise ClosedError("the engine's event loop has ended; close the engine, and open it again")

    def _soon(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            self._loop.soon(function)

    async def _serve(self) -> None:
        self._more, self._loop = anyio.Event(), EventLoop()
        async with anyio.create_task_group() as group:
            self._ready.ring()
            while not self._stopped:
                await self._more.wait()
                self._more = anyio.Event()
                while self._asked:
                    _begin(group, *self._asked.popleft())

    def _look(self) -> None:
        self._more.set()


def _begin(group: TaskGroup, context: Context, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In the host's context, but for what is the loop's own: a trio host's names its kind of loop there."""
    for variable, value in copy_context().items():
        context.run(variable.set, value)
    context.run(group.start_soon, run)


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
