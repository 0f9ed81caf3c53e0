"""The cycles of an open engine: one at a time, by hand or every hour, told as they come and go."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

from sona.bank.lessons import Distiller
from sona.config import Config
from sona.errors import ClosedError, CycleError, SwapError
from sona.event_loop import EventLoop
from sona.events import CycleFinished, CycleStarted, Event, VersionPublished
from sona.loops.background import run_forever
from sona.parts import Parts
from sona.ports import Report
from sona.stoppable import StoppableWork
from sona.types import CycleReport


class Cycles:
    """Runs them for one engine, from any event loop."""

    def __init__(self, parts: Parts, config: Config, distill: Distiller | None = None) -> None:
        self._parts, self._config, self._distill = parts, config, distill
        self._under_way = threading.Lock()
        self._work: StoppableWork | None = None
        self._stopped = False
        self._runs: list[tuple[EventLoop, anyio.CancelScope]] = []

    async def learn(self, flush: Callable[[], Awaitable[None]], on_progress: Report) -> CycleReport:
        """See :meth:`sona.Engine.learn`; what waits for the disk is flushed first."""
        with self.alone("the next"):
            await flush()
            self._work = StoppableWork(on_progress)
            if self._stopped:  # looked at once the work can be stopped, and the other way round in stop()
                raise ClosedError("the engine was closed before the cycle began; nothing has changed")
            try:
                return await self._work.run(self._learn)
            finally:
                self._work = None

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """No cycle runs in the block; CycleError where one does, which says to await it before ``what``."""
        if not self._under_way.acquire(blocking=False):
            raise CycleError(f"a cycle is under way in this engine; await it before {what}")
        try:
            yield
        finally:
            self._under_way.release()

    def _learn(self, report: Report) -> CycleReport:
        from sona.loops.cycle import CycleContext, run_cycle  # torch takes seconds to import; recording never needs it

        parts = self._parts
        cycle = parts.store.next_cycle()
        self._tell(CycleStarted(cycle=cycle))
        try:
            context = CycleContext(parts.store, parts.folders, parts.model, self._config, self._distill)
            outcome = run_cycle(context, report)
        except BaseException as error:
            self._tell(CycleFinished(cycle=cycle, status="failed", reason=_told(error)))
            raise
        try:
            self._put_in_force(outcome)
        except BaseException as error:  # it is committed all the same: what it took is taken
            self._tell(_finished(outcome, _told(error)))
            raise
        self._tell(_finished(outcome))
        return outcome

    def _put_in_force(self, outcome: CycleReport) -> None:
        """What follows a cycle that is committed."""
        parts = self._parts
        if outcome.version is not None:
            self._tell(VersionPublished(version=outcome.version, parent=outcome.parent, cycle=outcome.cycle))
            try:
                parts.serve_current(fall_back=outcome.parent)
            except Exception as error:
                raise SwapError(
                    f"version {outcome.version} was published and can't be served ({_told(error)}); "
                    f"{outcome.parent} answers, and what cycle {outcome.cycle} took stays taken"
                ) from error
            parts.prune()
        parts.keep_limits()

    def _tell(self, event: Event) -> None:
        if self._parts.events.mailboxes:
            self._parts.events.tell(event)

    async def run(self, learn: Callable[[], Awaitable[CycleReport]]) -> None:
        """See :meth:`sona.Engine.run`."""
        with anyio.CancelScope() as scope:
            run = (EventLoop(), scope)
            self._runs.append(run)
            try:
                await run_forever(learn, self._config.cycle.interval_s)
            finally:
                self._runs.remove(run)

    async def stop(self) -> None:
        """End the runs, and the cycle under way, for good; return when that has ended."""
        self._stopped = True
        for loop, scope in list(self._runs):
            loop.soon(scope.cancel)  # a scope may be touched on its own loop alone
        if self._work is not None:
            await self._work.stop()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _finished(outcome: CycleReport, trouble: str | None = None) -> CycleFinished:
    """A report as an event."""
    return CycleFinished(
        cycle=outcome.cycle,
        status=outcome.status,
        reason=outcome.reason,
        version=outcome.version,
        trouble=trouble,
    )
