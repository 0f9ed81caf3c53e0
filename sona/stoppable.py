"""Long work in a thread that a cancellation really ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from sona.errors import CycleError
from sona.ports import Report, ignore_progress
from sona.types import Progress

T = TypeVar("T")


class StoppableWork:
    """Work in a thread that a cancellation ends, and that has ended when the cancellation goes on.

    anyio shields such a thread from its own cancel scopes and tells it of them, but an asyncio ``task.cancel()`` would
    leave it running unseen, to publish a version that nobody waits for any more.
    """

    def __init__(self, on_progress: Report = ignore_progress, budget_s: float = 0.0) -> None:
        """``budget_s``: the work is ended, with a CycleError, once it has taken so long; 0: it may take its time."""
        self._on_progress, self._budget_s, self._began_s = on_progress, budget_s, time.monotonic()
        self._began, self._stop, self._ended = threading.Event(), threading.Event(), threading.Event()

    async def run(self, work: Callable[[Report], T]) -> T:
        """``work`` is given a Report to call now and then; that is where it can be stopped."""
        try:
            return await anyio.to_thread.run_sync(self._work, work)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.stop()
            raise

    async def stop(self) -> None:
        """End the work at its next report, and return when it has ended."""
        self._stop.set()
        if self._began.is_set():
            await anyio.to_thread.run_sync(self._ended.wait)

    def _work(self, work: Callable[[Report], T]) -> T:
        self._began_s = time.monotonic()  # the wait for a thread is none of the work's time
        self._began.set()
        try:
            self.check()
            return work(self._report)
        finally:
            self._ended.set()

    def _report(self, progress: Progress) -> None:
        self.check()
        self._on_progress(progress)

    def check(self) -> None:
        """Raise what ends the work, where it is to end; for work that has no progress to report for a while."""
        if self._stop.is_set():
            raise CycleError("stopped before it was done; nothing has changed")
        if self._budget_s and time.monotonic() - self._began_s > self._budget_s:
            raise CycleError(
                f"not done within learner.budget_s ({self._budget_s:g} s), and stopped; nothing has changed: "
                "raise it, or lower cycle.max_trajectories"
            )
        anyio.from_thread.check_cancelled()


async def open_or_close(open: Callable[[], T], close: Callable[[T], None]) -> T:
    """What ``open`` gives, in a thread; a cancellation waits for it, and has it closed."""
    opened: list[T] = []
    try:
        await StoppableWork().run(lambda _: opened.append(open()))
        await anyio.lowlevel.checkpoint_if_cancelled()  # which what waits for a thread is not, in a cancelled scope
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            for one in opened:  # it was open by the time that nobody waited for it any more
                await anyio.to_thread.run_sync(close, one)
        raise
    return opened[0]
