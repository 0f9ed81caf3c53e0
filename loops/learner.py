"""The process that learns: it reads the store, trains, and has its host write down what came of it.

Started by :mod:`sona.loops.learner_process`, never by hand. The store has one writer, its host; here it is opened to be
read, for one cycle at a time. Between cycles the base model stays loaded, until none was asked for within
``learner.idle_s``. The end of the socket ends this process at once, in the middle of anything: all that it leaves is a
draft that the next start removes.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from sona.config import config_from
from sona.errors import CycleError, LearnerError, ModelError, SonaError
from sona.loops.host_line import PREDECESSOR_S, HostLine, give_way, locked
from sona.loops.learner_ports import Asking, HostedFolders, HostedStore, asked_of_host, raised
from sona.loops.messages import (
    KINDS,
    RELEASE,
    Answer,
    Begun,
    Done,
    Failed,
    Progressed,
    Refused,
    RunCycle,
    Setup,
    Taken,
)
from sona.loops.readiness import not_yet
from sona.storage.layout import LEARNER_LOCK
from sona.storage.lock import LearnerLock
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import CycleReport, Progress, Record

if TYPE_CHECKING:
    from sona.serving.local import LocalModel


def main(descriptor: int) -> NoReturn:
    """Serve the host at the other end of the socket ``descriptor``."""
    line = _Line(descriptor, KINDS)
    setup = line.next(None)
    if not isinstance(setup, Setup):
        raise LearnerError(f"the host began with {type(setup).__name__}")
    if setup.release != RELEASE:
        raise LearnerError(f"this is sona {RELEASE}, its host is {setup.release}: restart the host")
    worker = _Worker(setup, line)
    give_way(worker.config.learner.nice)
    while (command := line.next(worker.config.learner.idle_s)) is not None:
        if isinstance(command, RunCycle):
            worker.run()
    os._exit(0)


class _Line(HostLine):
    """... with what a cycle asks of it."""

    def ask(self, message: Record) -> Answer:
        """The host's answer.

        Raises:
            SonaError: what was asked for failed there.
        """
        self.tell(message)
        match self.next(None):
            case Answer() as answer:
                return answer
            case Refused(error=name, text=text):
                raise raised(name, text)
            case other:
                raise LearnerError(f"the host answered with {type(other).__name__}")

    def report(self, progress: Progress) -> None:
        """The cycle's Report."""
        if self.stopped.is_set():
            raise CycleError("stopped before it was done; nothing has changed")
        self.tell(Progressed(progress=progress))


@dataclass
class _Worker:
    """What it has, and keeps from cycle to cycle."""

    setup: Setup
    line: _Line
    model: LocalModel | None = None
    lock: LearnerLock | None = None

    def __post_init__(self) -> None:
        self.config = config_from(self.setup.settings)
        self.line.log_here()

    def run(self) -> None:
        """One cycle, and how it ended."""
        self.line.stopped.clear()
        self.line.tell(Begun())
        try:
            self.line.tell(Done(report=self._cycle()))
        except BaseException as error:
            expected = isinstance(error, SonaError)
            trace = "" if expected else traceback.format_exc()
            self.line.tell(Failed(error=type(error).__name__, text=str(error), trace=trace))
            if not expected:  # whatever that was, the next cycle begins in a process that it has not touched
                os._exit(1)

    def _cycle(self) -> CycleReport:
        self.lock = self.lock or _lock(Path(self.setup.store))
        with Store.open(self.setup.store, config=self.config.store, read_only=True) as opened:
            store, folders = HostedStore(opened, self.line), HostedFolders(Versions(opened.path), self.line)
            if (report := not_yet(store, self.config)) is not None:
                return report  # it takes neither torch nor a model to see that
            return self._run(store, folders, self.line)

    def _run(self, store: HostedStore, folders: HostedFolders, asking: Asking) -> CycleReport:
        from sona.loops.cycle import CycleContext, run_cycle
        from sona.loops.version_files import read_served

        self.model = self.model or self._load()
        distill = asked_of_host(asking) if self.setup.distills else None
        if self.model is not None and distill is None and self.config.lessons.by_model:
            current = store.current().id  # who writes the lessons
            self.model.swap(current, read_served(folders, current))

        def on_taken(ids: Collection[int]) -> None:
            asking.ask(Taken(ids=tuple(ids)))

        context = CycleContext(store, folders, self.model, self.config, distill, on_taken)
        return run_cycle(context, self.line.report)

    def _load(self) -> LocalModel | None:
        if self.setup.model is None:
            return None
        from sona.serving.local import LocalModel

        self.line.report(Progress(stage="load the model", done=0, total=1))
        own, served = self.config.learner, self.config.serve
        settings = replace(
            served, device=own.device or served.device, dtype=own.dtype or served.dtype, threads=own.threads
        )
        model = LocalModel(self.setup.model, settings)
        if model.fingerprint != self.setup.fingerprint:
            raise ModelError(
                f"{self.setup.model}: it is another model than the one that answers (its files have changed, or "
                "learner.dtype rounds them); open the engine again, or leave learner.dtype as it is"
            )
        self.line.report(Progress(stage="load the model", done=1, total=1))
        return model


def _lock(store: Path) -> LearnerLock:
    """Once a learner whose host was killed has ended."""
    return locked(lambda: LearnerLock(store / LEARNER_LOCK), PREDECESSOR_S)
