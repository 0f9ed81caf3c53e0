"""The cycles of an open engine: one at a time, by hand or every hour, told as they come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.to_thread

from sona.bank.lessons import Distiller
from sona.config import Config
from sona.errors import ClosedError, CycleError, StoreError, SwapError
from sona.event_loop import EventLoop
from sona.events import CycleFinished, CycleStarted, Event, VersionPublished
from sona.in_training import InTraining
from sona.loops.attendance import Host
from sona.loops.background import LearnerStatus, Triggers, run_forever
from sona.loops.learner_process import LearnerProcess
from sona.loops.readiness import too_few
from sona.parts import Parts
from sona.ports import Report
from sona.serving.resolve import resolve
from sona.stoppable import StoppableWork
from sona.types import CycleReport


class Cycles:
    """Runs them for one engine, from any event loop."""

    def __init__(
        self,
        parts: Parts,
        config: Config,
        model_name: str | os.PathLike[str] | None = None,
        distill: Distiller | None = None,
    ) -> None:
        self._parts, self._config, self._distill = parts, config, distill
        self.in_training = InTraining()
        """Candidates that the cycle under way learns from."""
        self._learner: LearnerProcess | None = None
        if config.learner.mode == "process":
            model = parts.model
            place = None if model is None or model_name is None else place_of(model_name)
            fingerprint = None if model is None else model.fingerprint
            host = Host(parts.store, parts.folders, place, fingerprint, config, distill, on_taken=self.in_training.take)
            self._learner = LearnerProcess(host)
        self._cycle: int | None = None
        self._failed, self._last_failure = 0, ""
        self._left = 0  # of what the last cycle could have collected, what it left
        self._under_way = threading.Lock()
        self._work: StoppableWork | None = None
        self._stopped = False
        own = config.learner
        self._triggers = Triggers(own.after_count, own.after_quiet_s, config.cycle.min_trajectories)
        self._runs: list[tuple[EventLoop, anyio.CancelScope]] = []

    async def learn(self, flush: Callable[[], Awaitable[None]], on_progress: Report) -> CycleReport:
        """See :meth:`sona.Engine.learn`; what waits for the disk is flushed first."""
        with self.alone("the next"):
            await flush()
            work = self._work = StoppableWork(on_progress, self._config.learner.budget_s)
            if self._stopped:  # looked at once the work can be stopped, and the other way round in stop()
                raise ClosedError("the engine was closed before the cycle began; nothing has changed")
            try:
                return await work.run(self._learn)
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
        parts = self._parts
        self._cycle = cycle = parts.store.next_cycle()
        self._tell(CycleStarted(cycle=cycle))
        try:
            with self.in_training.cycle(cycle):
                outcome = self._run(report)
        except BaseException as error:
            self._failed, self._last_failure = self._failed + 1, _told(error)
            self._tell(CycleFinished(cycle=cycle, status="failed", reason=_told(error)))
            raise
        finally:
            self._cycle = None
            if self._triggers:
                with suppress(StoreError):  # whatever is wrong with the store, the cycle has ended as it has
                    self._left = parts.store.uncollected()
        try:
            self._put_in_force(outcome)
        except BaseException as error:  # it is committed all the same: what it took is taken
            self._tell(_finished(outcome, _told(error)))
            raise
        self._tell(_finished(outcome))
        return outcome

    def _run(self, report: Report) -> CycleReport:
        """The cycle itself: here, or in its own process."""
        parts = self._parts
        if self._learner is not None:
            assert self._work is not None
            return too_few(parts.store, self._config) or self._learner.run(report, self._work.check)
        from sona.loops.cycle import CycleContext, run_cycle  # recording never needs it

        context = CycleContext(
            parts.store, parts.folders, parts.model, self._config, self._distill, self.in_training.take
        )
        return run_cycle(context, report)

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
                await run_forever(learn, self._config.cycle.interval_s, self._is_due if self._triggers else None)
            finally:
                self._runs.remove(run)

    async def _is_due(self) -> bool:
        waiting = await anyio.to_thread.run_sync(self._parts.store.uncollected)
        return self._triggers.fire(waiting, self._left, self._parts.fast.quiet_s)

    def status(self) -> LearnerStatus:
        """How it goes."""
        return LearnerStatus(
            mode="thread" if self._learner is None else "process",
            pid=None if self._learner is None else self._learner.pid,
            cycle=self._cycle,
            failed=self._failed,
            last_failure=self._last_failure or None,
        )

    def activity(self) -> str:
        """What is done, in a few words; "" where nothing is."""
        return "" if self._cycle is None else f"cycle {self._cycle} is under way"

    async def stop(self) -> None:
        """End the runs, the cycle under way, and the process that learns, for good; return when that has ended."""
        self._stopped = True
        for loop, scope in list(self._runs):
            loop.soon(scope.cancel)  # a scope may be touched on its own loop alone
        if self._work is not None:
            await self._work.stop()
        if self._learner is not None:
            await anyio.to_thread.run_sync(self._learner.close)


def place_of(model: str | os.PathLike[str]) -> str:
    """Where a model is loaded from, also once the host works in another folder."""
    place = resolve(model)
    return os.path.abspath(place) if os.path.isdir(place) else place


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
