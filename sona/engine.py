"""The engine: the parts put together, and what a host embeds."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from sona.bank.bank import Bank
from sona.checks import Float32, check_id, pack_vector
from sona.config import Config, settings_of
from sona.errors import ClosedError, CycleError, ModelError, UnknownIdError
from sona.hooks.jsonl import read_jsonl
from sona.hooks.trajectory import OpenTrajectory
from sona.loops.background import run_forever
from sona.loops.micro import MicroCounts
from sona.parts import Parts
from sona.ports import Report, StoreCounts, Stored, ignore_progress
from sona.stoppable import StoppableWork
from sona.types import (
    CycleReport,
    Feedback,
    Message,
    Recall,
    Reply,
    Trajectory,
    Version,
    new_id,
    to_messages,
)

if TYPE_CHECKING:
    from sona.serving.local import LocalModel

log = logging.getLogger("sona.engine")

Conversation = str | Sequence[Message | Mapping[str, Any]]
Receipt = Literal["recorded", "rejected"]
T = TypeVar("T")


def open(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    config: Config | str | os.PathLike[str] | None = None,
) -> Engine:
    """An engine on the store in folder ``path``; ``async with`` starts it.

    Args:
        path: made where it does not exist. One process at a time writes to a store.
        model: folder or hub id of a transformers causal language model, ``"tiny"`` for the small one that comes with
            sona, or None for a host that serves its own model and only records.
        config: settings, or the path of a TOML file with them.

    Raises:
        ConfigError: of ``config``. What starting raises, see :class:`Engine`.
    """
    return Engine(Path(path), model, settings_of(config))


class Engine:
    """Records, learns, answers. Made by :func:`sona.open`; every method may be called from any thread or task.

    ``async with`` raises, and leaves nothing half open:
        StoreLockedError: another process has the store open for writing.
        StoreReadOnlyError, StoreCorruptError, StoreVersionError: of the store.
        ModelNotFoundError, ModelError: of the model, also where the store has learned adapters for another base model.
    """

    def __init__(self, path: Path, model: str | os.PathLike[str] | None, config: Config) -> None:
        self.path, self.config = path, config
        self._model_name = model
        self._parts: Parts | None = None
        self._open: dict[str, OpenTrajectory] = {}
        self._cycle: StoppableWork | None = None
        self._runs: list[anyio.CancelScope] = []
        self._learning = threading.Lock()
        self._hook_errors = 0

    async def __aenter__(self) -> Self:
        opened: list[Parts] = []
        work = StoppableWork()
        try:
            await work.run(lambda _: opened.append(Parts.start(self.path, self._model_name, self.config)))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                for parts in opened:  # it was open by the time that nobody waited for it any more
                    await anyio.to_thread.run_sync(parts.close)
            raise
        (self._parts,) = opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        parts, self._parts = self._parts, None
        if parts is None:
            return
        for scope in self._runs:
            scope.cancel()
        with anyio.CancelScope(shield=True):  # Ctrl-C must not lose what waits for the disk
            if self._cycle is not None:
                await self._cycle.stop()
            await anyio.to_thread.run_sync(parts.close)

    # ------------------------------------------------------------------------------------------------ recording

    def trajectory(
        self,
        messages: Conversation,
        *,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> OpenTrajectory:
        """A block in which one query is handled, recorded when it ends: see :class:`OpenTrajectory`.

        Raises:
            InvalidInputError: an argument that can't be recorded.
        """
        self._started()
        return OpenTrajectory(self, messages, source=source, id=id, metadata=metadata)

    def record(self, trajectory: Trajectory, *, quality: float | None = None, giver: str = "host") -> Receipt:
        """Hand over a whole trajectory, in microseconds, with a quality if there is one already.

        Returns:
            ``recorded``; or ``rejected`` where more waits for the disk than ``store.queue_bytes``. Durable after
            :meth:`flush`.

        Raises:
            DimensionMismatchError, UnknownTokenError: it does not fit this store or model.
            InvalidInputError: ``quality`` is outside [0, 1].
        """
        feedback = None if quality is None else Feedback(trajectory_id=trajectory.id, quality=quality, giver=giver)
        return "recorded" if self._started().fast.record(trajectory, feedback) else "rejected"

    def feedback(
        self,
        trajectory_id: str,
        quality: float,
        *,
        id: str | None = None,
        giver: str = "host",
        comment: str = "",
    ) -> Receipt:
        """A quality for a trajectory, now or days later. The latest one counts; the same ``id`` twice counts once.

        Raises:
            UnknownIdError: no such trajectory.
            InvalidInputError: ``quality`` is outside [0, 1].
        """
        parts = self._started()
        feedback = Feedback(
            trajectory_id=trajectory_id,
            quality=quality,
            id=new_id() if id is None else id,
            giver=giver,
            comment=comment,
        )
        if (handle := self._open.get(trajectory_id)) is not None and handle.hold(feedback):
            return "recorded"
        if not parts.writer.knows(trajectory_id) and trajectory_id not in parts.store:
            raise UnknownIdError(
                f"trajectory {trajectory_id!r} is not in this store; feedback needs the id of a recorded one"
            )
        return "recorded" if parts.fast.feedback(feedback) else "rejected"

    async def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything recorded before is on the disk and survives a power cut.

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: why it can't be; the records stay in the queue.
        """
        await self._in_thread(self._started().writer.flush, timeout_s)

    def get(self, trajectory_id: str) -> Stored:
        """A trajectory as it lies in the store, with its effective quality; what was just recorded needs a flush first.

        Raises:
            UnknownIdError: no such trajectory.
        """
        check_id(trajectory_id, "trajectory id")
        return self._started().store.get(trajectory_id)

    async def import_jsonl(self, path: str | os.PathLike[str], *, source: str | None = None) -> ImportCounts:
        """Store the trajectories of a file of JSON lines: see :mod:`sona.hooks.jsonl` for the form. Durable when it
        returns.

        The same file can be imported again: what is there already stays as it is. A line whose id is taken by other
        content is left out, counted in ``status().conflicts`` and logged.

        Raises:
            InvalidInputError: a line that can't be a trajectory, by its number; the lines before it are stored.
        """
        return await self._in_thread(self._import, Path(path), source)

    def _import(self, path: Path, source: str | None) -> ImportCounts:
        parts = self._started()
        new = rated = known = 0
        for row in read_jsonl(path, source):
            if row.trajectory.id in parts.store or parts.writer.knows(row.trajectory.id):
                known += 1
            else:
                new += 1
            rated += row.feedback is not None
            for record in (row.trajectory, row.feedback):
                self._put_patiently(parts, record)
        parts.writer.flush()
        return ImportCounts(new=new, rated=rated, known=known)

    def _put_patiently(self, parts: Parts, record: Trajectory | Feedback | None) -> None:
        """An import can wait for the disk. What is in the store already is sent again, which changes nothing."""
        if isinstance(record, Trajectory):
            while not parts.fast.record(record):
                parts.writer.flush()
        elif record is not None:
            while not parts.writer.put(record):  # not through the fast loop: it is no news to the fast weights
                parts.writer.flush()

    # ------------------------------------------------------------------------------------------------ asking

    async def generate(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """An answer of the served model that is not recorded; ``reply.version`` made it. Greedy at temperature 0.

        Raises:
            ModelError: the engine has no model, or its template refuses the conversation.
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is out of range.
        """
        model = self._served()
        return await self._in_thread(
            functools.partial(
                model.generate,
                max_new_tokens=self._limit(max_new_tokens),
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
            ),
            model.encode_prompt(to_messages(messages)),
        )

    async def generate_batch(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int | None = None
    ) -> list[Reply]:
        """Greedy answers to all, in one batch and by one version; not recorded. Raises as :meth:`generate`."""
        model = self._served()
        prompts = [model.encode_prompt(to_messages(messages)) for messages in conversations]
        limit = self._limit(max_new_tokens)
        return await self._in_thread(functools.partial(model.generate_batch, max_new_tokens=limit), prompts)

    async def recall(self, query: Conversation | Float32, k: int = 5) -> list[Recall]:
        """The ``k`` patterns nearest to a query, nearest first; [] before the first cycle.

        Args:
            query: a text or conversation, embedded by the model; or an embedding, float32 (width,), of the host's own.
            k: at most so many.

        Raises:
            ModelError: a text, and the engine has no model to embed it with.
            DimensionMismatchError: an embedding of another width than the store's.
            InvalidInputError: an embedding that is not finite, or an empty text.
        """
        if isinstance(query, np.ndarray):
            vector = np.frombuffer(pack_vector(query, "query"), dtype="<f4")
        else:
            model = self._served()
            vector = (await self._in_thread(model.embed, [model.encode_prompt(to_messages(query))]))[0]
        return self._started().bank.recall(vector, k)

    @property
    def bank(self) -> Bank:
        """The reasoning bank of the version in force."""
        return self._started().bank

    @property
    def version(self) -> Version:
        """The version in force."""
        return self._started().store.current()

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return self._started().store.versions()

    def status(self) -> EngineStatus:
        """Counted now: what is stored, what waits, what went wrong."""
        parts = self._started()
        return EngineStatus(
            store=parts.store.counts(),
            version=parts.store.current().id,
            patterns=len(parts.bank.patterns),
            pending=parts.writer.pending,
            rejected=parts.writer.counts().rejected,
            conflicts=parts.writer.counts().conflicts,
            degraded=parts.writer.degraded,
            hook_errors=self._hook_errors,
            micro=None if parts.micro is None else parts.micro.counts(),
        )

    # ------------------------------------------------------------------------------------------------ learning

    async def learn(self, on_progress: Report = ignore_progress) -> CycleReport:
        """One cycle: learn what is new, judge it, and serve it if it holds.

        Cancelling it leaves everything as it was, until it publishes: that one step is taken to its end.

        Args:
            on_progress: called from the learning thread; what it raises ends the cycle.

        Raises:
            CycleError: training failed, a rollback came in between, or another cycle is under way; nothing has changed.
            ConfigError: ``config.lora`` is not what this store's adapter is.
            SwapError: the published adapter could not be served; the version before is in force again.
        """
        if not self._learning.acquire(blocking=False):
            raise CycleError("a cycle is under way in this engine; await it before the next")
        try:
            await self.flush()
            self._cycle = StoppableWork(on_progress)
            return await self._cycle.run(functools.partial(self._learn, self._started()))
        finally:
            self._cycle = None
            self._learning.release()

    def _learn(self, parts: Parts, report: Report) -> CycleReport:
        from sona.loops.cycle import CycleContext, run_cycle  # torch takes seconds to import; recording never needs it

        outcome = run_cycle(CycleContext(parts.store, parts.folders, parts.model, self.config), report)
        if outcome.version is not None:
            parts.serve_current(fall_back=outcome.parent)
            parts.prune(self.config.store.keep_versions)
        return outcome

    async def run(self) -> None:
        """A cycle every ``cycle.interval_s`` seconds, until it is cancelled or the engine is closed.

        One that fails is logged and tried again later.
        """
        with anyio.CancelScope() as scope:
            self._runs.append(scope)
            await run_forever(self.learn, self.config.cycle.interval_s)

    def roll_back(self, to: str | None = None) -> Version:
        """Put an earlier version in force, whole: adapter, optimizer, Fisher information and bank. From now on it
        answers.

        Trajectories that later versions learned from stay in the store, but are neither new nor replayed while those
        versions are not in force's past.

        Args:
            to: its id; None for the parent of the one in force.

        Returns:
            The version now in force.

        Raises:
            NothingToRollBackError: the base version is in force already.
            UnknownIdError: no such version, or its files are gone.
            SwapError, StoreCorruptError: its files are damaged; what was in force stays so.

        The version that was served before the current one is still in memory, and takes over at once. To load another,
        this waits for the answer that is being written.
        """
        return self._started().roll_back(to)

    # ------------------------------------------------------------------------------------------------ for hooks

    async def embed_quietly(self, messages: Sequence[Message]) -> Float32 | None:
        """The query's embedding; None without a model, in a store of other embeddings, or, counted, where it failed."""
        parts = self._started()
        model = parts.model
        if model is None or parts.fast.width not in (None, model.hidden_size):
            return None
        try:
            vectors: Float32 = await self._in_thread(lambda: model.embed([model.encode_prompt(messages)]))
        except Exception:  # a failed embedding must not fail the host's query; the cycle makes it up
            self._hook_errors += 1
            log.exception("a query could not be embedded")
            return None
        return np.asarray(vectors[0])

    def opened(self, trajectory: OpenTrajectory) -> None:
        """A block began: feedback for it is held until it ends."""
        self._open[trajectory.id] = trajectory

    def closed(self, trajectory: OpenTrajectory, record: Trajectory | None) -> None:
        """A block ended: hand over what it made of itself, then the feedback that was held for it. Never raises."""
        try:
            if record is None or self.record(record) == "rejected":
                self._hook_errors += 1
            for feedback in trajectory.end():
                self._started().fast.feedback(feedback)
        except ClosedError:
            self._hook_errors += 1
            log.error("trajectory %s ended after the engine was closed, and is not recorded", trajectory.id)
        except Exception:  # the host's answer is out already
            self._hook_errors += 1
            log.exception("trajectory %s could not be recorded", trajectory.id)
        finally:
            self._open.pop(trajectory.id, None)

    def _started(self) -> Parts:
        if self._parts is None:
            raise ClosedError("the engine is not open; use it inside 'async with sona.open(...)'")
        return self._parts

    def _served(self) -> LocalModel:
        model = self._started().model
        if model is None:
            raise ModelError("this engine has no model; open it with model='path/or/hub-id' (or 'tiny')")
        return model

    def _limit(self, max_new_tokens: int | None) -> int:
        return self.config.serve.max_new_tokens if max_new_tokens is None else max_new_tokens

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(function, *arguments)


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`Engine.status` counts."""

    store: StoreCounts
    version: str
    patterns: int
    pending: int
    """Records that are not yet durable."""
    rejected: int
    """Records turned away since the start, because the queue was full."""
    conflicts: int
    """Records left out since the start, because their id is taken by other content."""
    degraded: str | None
    """Why the store can't be written to at the moment."""
    hook_errors: int
    """What went wrong behind open trajectories since the start, and was kept from the host."""
    micro: MicroCounts | None = None
    """What feedbacks did to the fast weights; None where ``micro.enabled`` is off."""


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Lines with a quality."""
    known: int
    """Lines whose id was in the store already."""
