"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from sona.errors import ClosedError

T = TypeVar("T")


class LoopThread:
    """Runs an event loop until it is closed. A program that ends without closing it is not held up: anyio's
    ``start_blocking_portal`` would wait, when it is torn down, for a thread that the interpreter has stopped already.
    """

    def __init__(self) -> None:
        ready = Future[BlockingPortal]()
        self._thread = threading.Thread(target=anyio.run, args=(_serve, ready), name="sona-loop", daemon=True)
        self._thread.start()
        self._portal = ready.result()
        self._changed = threading.Condition()
        self._calls: list[int] = []  # under way, by the thread that waits
        self._closed = False

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any, cancel: bool = False) -> T:
        """The result of a coroutine function, run on the loop; this thread waits for it.

        Args:
            function: what to call.
            arguments: what with.
            cancel: whether a Ctrl-C that comes meanwhile cancels it, where waiting for it alone would leave it running.

        Raises:
            ClosedError: the loop was closed. Whatever ``function`` raises goes on.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the engine was closed meanwhile; open it again")
            self._calls.append(threading.get_ident())
        try:
            future = self._portal.start_task_soon(function, *arguments)
            try:
                return future.result()
            except KeyboardInterrupt:
                if cancel:
                    future.cancel()
                raise
        finally:
            with self._changed:
                self._calls.remove(threading.get_ident())
                self._changed.notify_all()

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread waits for a call: it asks in a signal handler, or a finaliser."""
        return threading.get_ident() in self._calls

    def close(self) -> None:
        """Take no more calls, wait for those under way, and end the loop."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(
                lambda: not self._calls
            )  # a call that came just as the loop ended would never return
        self._portal.call(self._portal.stop)
        self._thread.join()


async def _serve(ready: Future[BlockingPortal]) -> None:
    async with BlockingPortal() as portal:
        ready.set_result(portal)
        await portal.sleep_until_stopped()
