"""The engine for hosts without an event loop: the same engine, on an event loop in a thread of its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import sona.engine
from sona.answer_stream import SyncAnswerStream
from sona.bank.bank import Bank
from sona.bank.lessons import Distiller
from sona.checks import TokensLike, VectorLike
from sona.config import Config
from sona.engine import Conversation, Engine, Query
from sona.erasure import Erased
from sona.errors import ClosedError
from sona.event_stream import BUFFER, SyncEventStream
from sona.hooks.trajectory import OpenTrajectory
from sona.importing import ImportCounts
from sona.intake import Receipt
from sona.loop_thread import LoopThread
from sona.loops.background import LearnerStatus
from sona.loops.full.desk import TrainingDesk
from sona.memories import Memories
from sona.patterns import BestRoute, Recall
from sona.ports import Report, Stored, ignore_progress
from sona.reviewing import Review
from sona.status import EngineStatus
from sona.storage.backup import Backup
from sona.types import Attestation, CycleReport, Feedback, Reply, Trajectory, Version

if TYPE_CHECKING:
    from sona.serving.local import LocalModel


def open_sync(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    distill: Distiller | None = None,
) -> SyncEngine:
    """As :func:`sona.open`, for ``with``."""
    return SyncEngine(sona.engine.open(path, model=model, config=config, distill=distill))


class SyncEngine:
    """:class:`sona.Engine` with every ``await`` done for you; arguments, results and errors are the same."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stack = ExitStack()
        self._loop: LoopThread | None = None
        self._process = os.getpid()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Open it, as ``with`` does; :meth:`close` it in the end. Nothing happens where it is open already.

        A program that ends without closing it loses no more than the trajectories that are still open.
        """
        if self._loop is not None:
            return self
        with ExitStack() as stack:
            loop = LoopThread()
            stack.callback(loop.close)
            loop.start()
            stack.callback(loop.call, self._engine.aclose)  # before it is open: a Ctrl-C may come right behind that
            loop.call(self._engine.start, cancel=True)
            self._loop, self._stack, self._process = loop, stack.pop_all(), os.getpid()
        return self

    def close(self) -> None:
        """See :meth:`sona.Engine.aclose`. In a forked child it does nothing: the engine stays the parent's.

        Raises:
            StoreError: also where a signal handler calls it in the midst of another call: let the handler raise
                SystemExit, and close behind that.
        """
        if (loop := self._loop) is not None:
            loop.check_elsewhere()
        self._engine._check_outside("close", also=loop is not None and loop.is_inside)
        self._loop, stack, self._stack = None, self._stack, ExitStack()
        if os.getpid() == self._process:
            stack.close()
        else:
            stack.pop_all()  # the event loop's thread is not here, so nothing could be waited for

    def trajectory(
        self,
        messages: Conversation,
        *,
        prompt_ids: TokensLike | None = None,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        recalled: Sequence[str] = (),
    ) -> SyncTrajectory:
        """See :meth:`sona.Engine.trajectory`."""
        handle = self._engine.trajectory(
            messages, prompt_ids=prompt_ids, source=source, id=id, metadata=metadata, recalled=recalled
        )
        return SyncTrajectory(handle, self._started)

    def record(
        self,
        trajectory: Trajectory,
        quality: float | None = None,
        giver: str = "host",
        wait_s: float | None = 0.0,
    ) -> Receipt:
        """See :meth:`sona.Engine.record`."""
        return self._engine.record(trajectory, quality, giver, wait_s)

    def feedback(
        self,
        trajectory_id: str,
        quality: float,
        *,
        id: str | None = None,
        giver: str = "host",
        comment: str = "",
        wait_s: float | None = 0.0,
    ) -> Receipt:
        """See :meth:`sona.Engine.feedback`."""
        return self._engine.feedback(trajectory_id, quality, id=id, giver=giver, comment=comment, wait_s=wait_s)

    def flush(self, timeout_s: float | None = None) -> None:
        """See :meth:`sona.Engine.flush`."""
        self._engine._check_outside("flush")
        self._started().call(self._engine.flush, timeout_s)

    def events(self, *, buffer: int = BUFFER, timeout_s: float | None = None) -> SyncEventStream:
        """See :meth:`sona.Engine.events`, for a plain ``for``, which also ends when nothing came for ``timeout_s``."""
        return SyncEventStream(self._engine.events(buffer=buffer), timeout_s)

    def get(self, trajectory_id: str) -> Stored:
        """See :meth:`sona.Engine.get`."""
        return self._engine.get(trajectory_id)

    def feedback_of(self, trajectory_id: str) -> list[Feedback]:
        """See :meth:`sona.Engine.feedback_of`."""
        return self._engine.feedback_of(trajectory_id)

    def import_jsonl(self, path: str | os.PathLike[str], *, source: str | None = None) -> ImportCounts:
        """See :meth:`sona.Engine.import_jsonl`."""
        return self._started().call(functools.partial(self._engine.import_jsonl, path, source=source))

    def generate(self, messages: Conversation, **sampling: Any) -> Reply:
        """See :meth:`sona.Engine.generate`."""
        return self._started().call(functools.partial(self._engine.generate, messages, **sampling), cancel=True)

    def stream(self, messages: Conversation, **sampling: Any) -> SyncAnswerStream:
        """See :meth:`sona.Engine.stream`, for a plain ``for``."""
        return SyncAnswerStream(self._engine.stream(messages, **sampling))

    def generate_batch(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int | None = None
    ) -> list[Reply]:
        """See :meth:`sona.Engine.generate_batch`."""
        return self._started().call(
            functools.partial(self._engine.generate_batch, conversations, max_new_tokens=max_new_tokens)
        )

    def recall(self, query: Query, k: int = 5, *, source: str = "default") -> list[Recall]:
        """See :meth:`sona.Engine.recall`."""
        return self._started().call(functools.partial(self._engine.recall, query, k, source=source))

    def best_route(
        self,
        query: Query,
        kind: str | None = None,
        *,
        among: Sequence[str] | None = None,
        explore: np.random.Generator | None = None,
    ) -> BestRoute | None:
        """See :meth:`sona.Engine.best_route`."""
        asked = functools.partial(self._engine.best_route, query, kind, among=among, explore=explore)
        return self._started().call(asked)

    def expected_quality(self, query: Query) -> float:
        """See :meth:`sona.Engine.expected_quality`."""
        return self._started().call(self._engine.expected_quality, query)

    def remote_name(self, messages: Conversation) -> str | None:
        """See :meth:`sona.Engine.remote_name`."""
        return self._started().call(self._engine.remote_name, messages)

    def count_tokens(self, text: str) -> int:
        """See :meth:`sona.Engine.count_tokens`."""
        return self._engine.count_tokens(text)

    def learn(self, on_progress: Report = ignore_progress) -> CycleReport:
        """See :meth:`sona.Engine.learn`. Ctrl-C cancels it, and leaves everything as it was, unless it published before
        it was stopped: :attr:`version` tells once the engine is opened again, and so do :mod:`sona.events`.
        """
        return self._started().call(self._engine.learn, on_progress, cancel=True)

    def run(self) -> None:
        """See :meth:`sona.Engine.run`; until Ctrl-C."""
        self._started().call(self._engine.run, cancel=True)

    def roll_back(self, to: str | None = None) -> Version:
        """See :meth:`sona.Engine.roll_back`."""
        return self._engine.roll_back(to)

    def pin(self, version: str) -> None:
        """See :meth:`sona.Engine.pin`."""
        self._engine.pin(version)

    def unpin(self, version: str) -> None:
        """See :meth:`sona.Engine.unpin`."""
        self._engine.unpin(version)

    def pinned(self) -> list[str]:
        """See :meth:`sona.Engine.pinned`."""
        return self._engine.pinned()

    def backup(self, target: str | os.PathLike[str]) -> Backup:
        """See :meth:`sona.Engine.backup`."""
        return self._started().call(self._engine.backup, target)

    def erase(self, source: str) -> Erased:
        """See :meth:`sona.Engine.erase`."""
        return self._started().call(self._engine.erase, source)

    @property
    def model(self) -> LocalModel:
        """See :attr:`sona.Engine.model`."""
        return self._engine.model

    @property
    def bank(self) -> Bank:
        """See :attr:`sona.Engine.bank`."""
        return self._engine.bank

    @property
    def candidates(self) -> Review:
        """See :attr:`sona.Engine.candidates`."""
        return self._engine.candidates

    @property
    def learner(self) -> LearnerStatus:
        """See :attr:`sona.Engine.learner`."""
        return self._engine.learner

    @property
    def training(self) -> TrainingDesk:
        """See :attr:`sona.Engine.training`."""
        return self._engine.training

    @property
    def memories(self) -> Memories:
        """See :attr:`sona.Engine.memories`."""
        return self._engine.memories

    @property
    def version(self) -> Version:
        """See :attr:`sona.Engine.version`."""
        return self._engine.version

    def attest(self) -> Attestation:
        """See :meth:`sona.Engine.attest`."""
        return self._started().call(self._engine.attest)

    def versions(self) -> list[Version]:
        """See :meth:`sona.Engine.versions`."""
        return self._engine.versions()

    @property
    def degraded(self) -> str | None:
        """See :attr:`sona.Engine.degraded`."""
        return self._engine.degraded

    def status(self) -> EngineStatus:
        """See :meth:`sona.Engine.status`."""
        return self._engine.status()

    def _started(self) -> LoopThread:
        if self._loop is None:
            raise ClosedError("the engine is not open; use it inside 'with sona.open_sync(...)', or call start()")
        if os.getpid() != self._process:
            raise ClosedError("the engine was opened before this process was forked; open another store here")
        return self._loop


class SyncTrajectory:
    """:class:`sona.hooks.trajectory.OpenTrajectory` with its ``await`` done for you."""

    def __init__(self, handle: OpenTrajectory, loop: Callable[[], LoopThread]) -> None:
        self._handle, self._loop = handle, loop

    def __enter__(self) -> Self:
        self._handle.begin()
        try:
            if self._handle.embeds:  # the way through the event loop takes longer than all the rest
                self._loop().call(self._handle.embed)
        except BaseException:  # Ctrl-C before the block could begin: the query came all the same
            self._handle.finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.finish("failed" if kind is not None else None)

    @property
    def id(self) -> str:
        """The trajectory's id, for feedback now or days later."""
        return self._handle.id

    def recall(self, k: int = 5, *, embedding: VectorLike | None = None) -> list[Recall]:
        """See :meth:`OpenTrajectory.recall`."""
        return self._loop().call(functools.partial(self._handle.recall, k, embedding=embedding))

    def used(self, ids: Sequence[str]) -> None:
        """See :meth:`OpenTrajectory.used`."""
        self._handle.used(ids)

    def generate(self, **sampling: Any) -> Reply:
        """See :meth:`OpenTrajectory.generate`."""
        return self._loop().call(functools.partial(self._handle.generate, **sampling))

    def respond(
        self,
        text: str,
        *,
        token_ids: TokensLike | None = None,
        prompt_ids: TokensLike | None = None,
        version: str | None = None,
        memories: Mapping[str, str] | None = None,
    ) -> None:
        """See :meth:`OpenTrajectory.respond`."""
        self._handle.respond(text, token_ids=token_ids, prompt_ids=prompt_ids, version=version, memories=memories)

    def step(
        self, name: str, *, reward: float | None = None, latency_s: float | None = None, content: str = ""
    ) -> None:
        """See :meth:`OpenTrajectory.step`."""
        self._handle.step(name, reward=reward, latency_s=latency_s, content=content)

    def durable(self) -> None:
        """See :meth:`OpenTrajectory.durable`."""
        self._loop().call(self._handle.durable)
