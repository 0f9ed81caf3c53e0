"""The engine: the parts put together, and what a host embeds."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from sona.answer_stream import AnswerStream
from sona.bank.bank import Bank
from sona.bank.lessons import Distiller
from sona.checks import (
    Float32,
    TokensLike,
    check_function,
    check_id,
    check_number,
    check_text,
    file_of,
    folder_of,
    pack_vector,
    shown,
)
from sona.config import Config, settings_of
from sona.cycles import Cycles, place_of
from sona.erasure import Erased, erase
from sona.errors import ClosedError, InvalidInputError
from sona.event_stream import BUFFER, EventStream
from sona.hooks.trajectory import OpenTrajectory
from sona.importing import ImportCounts, import_file
from sona.intake import Intake, Receipt
from sona.loops.full.base import TrainableBase
from sona.loops.full.desk import TrainingDesk
from sona.memories import Memories, check_watch
from sona.memory_spans import show
from sona.parts import Parts
from sona.patterns import BestRoute, Recall
from sona.ports import Report, Stored, ignore_progress
from sona.reviewing import Review
from sona.status import EngineStatus, read_status
from sona.stoppable import open_or_close
from sona.storage.backup import Backup
from sona.trajectory_host import TrajectoryHost
from sona.types import (
    Attestation,
    CycleReport,
    Feedback,
    Message,
    Reply,
    Trajectory,
    Version,
    new_id,
    no_trajectory,
    to_messages,
)

if TYPE_CHECKING:
    from sona.serving.local import LocalModel

Conversation = str | Sequence[Message | Mapping[str, Any]]
Query = Conversation | Float32 | Sequence[float]
"""A text or conversation, or its embedding (width,)."""
T = TypeVar("T")


def open(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    distill: Distiller | None = None,
) -> Engine:
    """An engine on the store in folder ``path``; ``async with``, or :meth:`Engine.start`, opens it.

    Args:
        path: made where it does not exist. One process at a time writes to a store.
        model: folder or hub id of a transformers causal language model, ``"tiny"`` for the small one that comes with
            sona, or None for a host that serves its own model and only records.
        config: settings, as a :class:`sona.Config` or nested mappings, or the path of a TOML file with them.
        distill: writes lessons from a pattern's best and worst trajectories: see :mod:`sona.bank.lessons`. It is called
            in a cycle, from its thread; what it raises costs that pattern's lessons alone. None: the model does, where
            ``lessons.by_model`` is on.

    Raises:
        ConfigError: of ``config``. What starting raises, see :class:`Engine`.
        InvalidInputError: ``path`` is empty, or no path; ``model`` is neither a text nor a path, or none where
            ``candidates.watch`` wants one; or ``distill`` is no function, or one that has to be awaited.
    """
    _check_distiller(distill)
    _check_model(model)
    settings = settings_of(config)
    check_watch(settings.candidates, model)
    return Engine(folder_of(path), model, settings, distill)


def _check_distiller(distill: object) -> None:
    if distill is not None and (not callable(distill) or inspect.iscoroutinefunction(distill)):
        raise InvalidInputError(
            f"distill: {shown(distill)}; a plain function from a LessonRequest to lessons is allowed, and no async "
            "one: a cycle calls it from a thread of its own"
        )


def _check_model(model: object) -> None:
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise InvalidInputError(
            f"model: {shown(model)}; the folder or hub id of a model, 'tiny', or None for no model is allowed"
        )


def _checked(query: Query) -> Sequence[Message] | Float32:
    """An embedding of finite float32 numbers, or messages."""
    if isinstance(query, np.ndarray) or (isinstance(query, (list, tuple)) and query and isinstance(query[0], float)):
        return np.frombuffer(pack_vector(query, "query"), dtype="<f4")
    return to_messages(query)


class Engine:
    """Records, learns, answers. Made by :func:`sona.open`; every method may be called from any thread or task.

    ``async with`` opens and closes it; a host that has no place for such a block calls :meth:`start` and
    :meth:`aclose`. Opening raises, and leaves nothing half open:
        StoreLockedError: another process has the store open for writing.
        StoreReadOnlyError, StoreCorruptError, StoreVersionError: of the store.
        ModelNotFoundError, ModelError: of the model, also where the store has learned adapters for another base model.
    """

    def __init__(
        self, path: Path, model: str | os.PathLike[str] | None, config: Config, distill: Distiller | None = None
    ) -> None:
        self.path, self.config = path, config
        self._distill = distill
        self._model_name = model
        self._parts: Parts | None = None
        # Made anew with the parts; they stay after closing, for blocks that end later.
        self._intake: Intake
        self._cycles: Cycles
        self._host: TrajectoryHost
        self._memories: Memories
        self._review: Review
        self._training: TrainingDesk

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> Self:
        """Open it, as ``async with`` does; :meth:`aclose` it in the end. Nothing happens where it is open already."""
        if self._parts is not None:
            return self
        parts = await open_or_close(lambda: Parts.start(self.path, self._model_name, self.config), Parts.close)
        self._intake = Intake(parts, self.config.recording)
        self._cycles = Cycles(parts, self.config, self._model_name, self._distill)
        self._memories = Memories(parts.store.memory_weights, parts.model, self.config.candidates, parts.store.get)
        parts.on_swap.append(self._memories.forget_read)
        self._host = TrajectoryHost(parts, self._intake, self.config.serve, self._memories.ranking)
        self._review = Review(
            parts.store,
            self.config.candidates,
            model=parts.model,
            activity=self._cycles.activity,
            alone=self._cycles.alone,
            listen=parts.fast.tell_trajectories,
            in_training=self._cycles.in_training,
        )
        self._training = TrainingDesk(self.path, self._trainable, self.config)
        self._parts = parts
        if self.config.candidates.watch:
            await self._in_thread(self._review.watch, self._memories)
        return self

    async def aclose(self) -> None:
        """Stop a cycle under way, record as abandoned the trajectories that are open, store what waits, and let go of
        the files. A second call does nothing.

        Raises:
            StoreError: something could not be stored within ``store.close_timeout_s``; it says how much, and why.
        """
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with anyio.CancelScope(shield=True):  # Ctrl-C must not lose what waits for the disk
            await self._cycles.stop()
            self._memories.close()
            await self._in_thread(self._review.close)
            await self._in_thread(self._training.close)
            await self._in_thread(self._intake.close)

    # ------------------------------------------------------------------------------------------------ recording

    def trajectory(
        self,
        messages: Conversation,
        *,
        prompt_ids: TokensLike | None = None,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        recalled: Sequence[str] = (),
    ) -> OpenTrajectory:
        """A block in which one query is handled, recorded when it ends: see :class:`OpenTrajectory`. What was recalled
        for it before, by :meth:`recall`, may be named by its ``ids`` in ``recalled``.

        Where the model is asked by token ids, no messages are needed; such a query gets its embedding in the cycle.

        Raises:
            InvalidInputError: an argument that can't be recorded.
        """
        self._started()
        return OpenTrajectory(
            self._host,
            messages,
            prompt_ids=prompt_ids,
            source=source,
            id=id,
            metadata=metadata,
            recalled=recalled,
        )

    def record(
        self,
        trajectory: Trajectory,
        *,
        quality: float | None = None,
        giver: str = "host",
        wait_s: float | None = 0.0,
    ) -> Receipt:
        """Hand over a whole trajectory, in microseconds, with a quality if there is one already.

        Args:
            trajectory: what to record.
            quality: from 0 (useless) to 1 (right).
            giver: who gave that.
            wait_s: where the queue is full, block this thread until there is room, so many seconds at most; None: for
                as long as it takes. In a coroutine ``await engine.flush()`` and record again: that lets others run.

        Returns:
            ``recorded``; or ``rejected`` where more waits for the disk than ``store.queue_bytes``: the same call again
            then does no harm. Durable after :meth:`flush`.

        Raises:
            DimensionMismatchError, UnknownTokenError: it does not fit this store or model.
            InvalidInputError: ``trajectory`` is none, ``quality`` is outside [0, 1], or ``wait_s`` is negative.
            StoreError: with ``wait_s=None``, why nothing can be stored.
        """
        if not isinstance(trajectory, Trajectory):
            raise no_trajectory(trajectory)
        feedback = None if quality is None else Feedback(trajectory_id=trajectory.id, quality=quality, giver=giver)
        if wait_s:
            check_number(wait_s, "wait_s", 0.0)
        return self._open_intake().record(trajectory, feedback, wait_s)

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
        """A quality for a trajectory, now or days later. The latest one counts; the same ``id`` twice counts once.

        Returns, waits and raises as :meth:`record`, and:
            UnknownIdError: no such trajectory.
        """
        if wait_s:
            check_number(wait_s, "wait_s", 0.0)
        given = Feedback(
            trajectory_id=trajectory_id,
            quality=quality,
            id=new_id() if id is None else id,
            giver=giver,
            comment=comment,
        )
        return self._open_intake().feedback(given, wait_s)

    async def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything recorded before is on the disk and survives a power cut.

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: why it can't be; the records stay in the queue.
            InvalidInputError: ``timeout_s`` is no number of seconds from 0 on, nor None.
        """
        if timeout_s is not None:
            check_number(timeout_s, "timeout_s", 0.0, math.inf)
        self._open_intake().sweep()
        await self._in_thread(self._started().writer.flush, timeout_s)

    def events(self, *, buffer: int = BUFFER) -> EventStream:
        """What happens from now on, as it happens: ``async for event in engine.events()``; see :mod:`sona.events`.

        Any number of tasks may listen, each on a stream of its own. Who lags behind by more than ``buffer`` events
        misses the oldest, and is told how many (:class:`sona.events.Missed`). It ends when the engine is closed.

        Raises:
            InvalidInputError: ``buffer`` is no number from 1 to 1,000,000.
        """
        return EventStream(self._started().events, buffer)

    def get(self, trajectory_id: str) -> Stored:
        """A trajectory as it lies in the store, with its effective quality; what was just recorded needs a flush first.

        Raises:
            UnknownIdError: no such trajectory.
        """
        check_id(trajectory_id, "trajectory id")
        return self._started().store.get(trajectory_id)

    def feedback_of(self, trajectory_id: str) -> list[Feedback]:
        """All feedback for a trajectory as it lies in the store, in the order of arrival; what was just given needs a
        flush first.

        Raises:
            UnknownIdError: no such trajectory.
        """
        check_id(trajectory_id, "trajectory id")
        return self._started().store.feedback_of(trajectory_id)

    async def import_jsonl(self, path: str | os.PathLike[str], *, source: str | None = None) -> ImportCounts:
        """Store the trajectories of a file of JSON lines: see :mod:`sona.hooks.jsonl` for the form. Durable when it
        returns.

        The same file can be imported again: what is there already stays as it is. A line whose id is taken by other
        content is left out, counted in ``status().conflicts`` and logged.

        Raises:
            InvalidInputError: ``path`` is none, or a line can't be a trajectory, or not one of this store: its number;
                the lines before it are stored.
        """
        file = file_of(path, "path")
        return await self._in_thread(import_file, self._started(), self._open_intake(), file, source)

    # ------------------------------------------------------------------------------------------------ asking

    async def generate(
        self,
        messages: Conversation,
        *,
        memories: Mapping[str, str] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        logprobs: int | None = None,
    ) -> Reply:
        """An answer of the served model that is not recorded; ``reply.version`` made it. Greedy at temperature 0.

        Many may be asked for at once: they are written together, and no thread waits for them. Cancelling the call
        ends the request.

        Args:
            messages: a text or a conversation.
            memories: texts that are no part of the question, by names of yours: the model reads them, where they stand
                in ``messages`` word for word, or else at the end of the system's message; which adapter answers is
                decided without them.
            max_new_tokens: at most so many; None: ``serve.max_new_tokens``.
            temperature: 0 is greedy.
            top_p: choose among the fewest tokens that together have this probability.
            top_k: choose among so many of the likeliest tokens; 0: among all.
            seed: of this answer's random choices, which no other request has a part in; None takes a fresh one.
            logprobs: with each token of ``reply.tokens`` its log-probability and those of so many of the likeliest (0:
                of none); None: ``reply.tokens`` is empty.

        Raises:
            ModelError: the engine has no model, or its template refuses the conversation.
            QueueFullError: as many requests wait as ``serve.max_waiting`` allows.
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is out of range.
            ClosedError: the engine was closed before the answer was whole.
        """
        self._started()
        shown = show(to_messages(messages), memories)
        return await self._host.generate(
            shown.messages,
            question=shown.question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            logprobs=logprobs,
        )

    def stream(
        self,
        messages: Conversation,
        *,
        memories: Mapping[str, str] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        logprobs: int | None = None,
    ) -> AnswerStream:
        """The same as it is written: ``async for piece in (stream := engine.stream("..."))``, then ``stream.reply``.

        Arguments and errors are those of :meth:`generate`; what comes up after the start is raised by the iteration.
        """
        self._started()
        shown = show(to_messages(messages), memories)
        return self._host.stream(
            shown.messages,
            shown.question,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            logprobs=logprobs,
        )

    async def generate_batch(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int | None = None
    ) -> list[Reply]:
        """Greedy answers to all, by one version; not recorded. It waits where the queue is full. Raises as
        :meth:`generate`.
        """
        model = self._served()
        prompts = [model.encode_prompt(to_messages(messages)) for messages in conversations]
        limit = self._host.limit(max_new_tokens)
        return await self._in_thread(functools.partial(model.generate_batch, max_new_tokens=limit), prompts)

    async def recall(self, query: Query, k: int = 5, *, source: str = "default") -> list[Recall]:
        """The ``k`` patterns nearest to a query, nearest first, each with what is known of it as text for a prompt; []
        before the first cycle. Where a pattern was given to the model as a memory under its id, and scored, what it was
        worth to ``source`` counts as well (:meth:`sona.memories.Memories.ranking`).
        :func:`sona.bank.prompting.in_prompt` puts several into a number of tokens; ``engine.bank.recall`` finds them
        without texts, in microseconds.

        Args:
            query: a text or conversation, embedded by the model; or an embedding (width,) of the host's own, as an
                array or a list of floats.
            k: at most so many.
            source: whose memories.

        Raises:
            ModelError: a text, and the engine has no model to embed it with.
            DimensionMismatchError: an embedding of another width than the store's.
            InvalidInputError: an embedding that is not finite, or an empty text.
        """
        self._started()
        return await self._host.recall(_checked(query), k, source)

    async def best_route(
        self,
        query: Query,
        kind: str | None = None,
        *,
        among: Sequence[str] | None = None,
        explore: np.random.Generator | None = None,
    ) -> BestRoute | None:
        """Which route to take for a query, by how the routes (see :attr:`sona.Trajectory.steps`) went for queries like
        it: see :meth:`sona.bank.bank.Bank.best_route`. Takes a query, and raises, as :meth:`recall`.
        """
        self._started()
        return await self._host.ask(
            _checked(query), lambda bank, at: bank.best_route(at, kind, among=among, explore=explore)
        )

    async def expected_quality(self, query: Query) -> float:
        """How well an answer to a query is likely to go, from 0 to 1, by how answers to queries like it went: see
        :mod:`sona.bank.forecast`. Takes a query, and raises, as :meth:`recall`.
        """
        self._started()
        return await self._host.ask(_checked(query), lambda bank, at: float(bank.predict(at[None])[0]))

    async def remote_name(self, messages: Conversation) -> str | None:
        """Which LoRA adapter of the server at ``remote.url`` to ask for this prompt: its ``model`` (vLLM), or its
        ``lora_path`` (SGLang). None: the base model.

        It names only what was attested there, and the version whose names these are picks among them: for a while after
        a swap that is the one before.

        Raises:
            ConfigError: ``remote.kind`` is off.
            ModelError: the version has a router, and the engine no model to read the prompt for it.
        """
        self._started()
        return await self._host.remote_name(to_messages(messages))

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is to the served model, by itself.

        Raises:
            ModelError: the engine has no model.
            InvalidInputError: ``text`` is none, or no valid Unicode.
        """
        check_text(text, "text", empty=True)
        return self._served().count_tokens(text)

    @property
    def model(self) -> LocalModel:
        """The served model; ClosedError or ModelError where there is none."""
        return self._served()

    @property
    def training(self) -> TrainingDesk:
        """Full-weight training on call: jobs, checkpoints (docs/adr/0013-full-weights-exactly-once.md)."""
        self._started()
        return self._training

    @property
    def bank(self) -> Bank:
        """The reasoning bank of the version in force."""
        return self._started().bank

    @property
    def candidates(self) -> Review:
        """Answers that depend on memory, for a person to approve: see :mod:`sona.reviewing`."""
        self._started()
        return self._review

    @property
    def memories(self) -> Memories:
        """What memories are worth: weights so far, which to prune, and scores."""
        self._started()
        return self._memories

    @property
    def version(self) -> Version:
        """The version in force."""
        return self._started().store.current()

    async def attest(self) -> Attestation:
        """Ask the served model again what the version in force said of fixed prompts when it was published, and tell
        what was compared. A swap does the same before a version answers.

        Raises:
            SwapError: it says something else; ``roll_back()`` to another version, and open the store again.
            ModelError: the engine has no model.
        """
        return await self._in_thread(self._served().attest)

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return self._started().store.versions()

    @property
    def degraded(self) -> str | None:
        """Why nothing can be stored just now; None while all is well. Costs nothing, unlike :meth:`status`."""
        return self._started().writer.degraded

    def status(self) -> EngineStatus:
        """Counted now: what is stored, what waits, what went wrong."""
        intake = self._open_intake()
        intake.sweep()
        return read_status(self._started(), intake, self._cycles.status(), self._review.unconfirmed())

    # ------------------------------------------------------------------------------------------------ learning

    async def learn(self, on_progress: Report = ignore_progress) -> CycleReport:
        """One cycle: learn what is new, judge it, and serve it if it holds.

        Cancelling it leaves everything as it was, until it publishes: that one step is taken to its end.

        Args:
            on_progress: called from a thread of this process, wherever it learns; what it raises ends the cycle.

        Raises:
            CycleError: training failed, a rollback came in between, another cycle is under way, it took longer than
                ``learner.budget_s``, or (LearnerError) the process that learns has died; nothing has changed.
            ConfigError: ``config.lora`` is not what this store's adapter is.
            SwapError: a version was published and can't be served; the one before it is in force again, and what the
                cycle took stays taken.
            InvalidInputError: ``on_progress`` is no function, or one that has to be awaited.
        """
        check_function(on_progress, "on_progress", "a plain function that takes a sona.types.Progress")
        self._started()
        return await self._cycles.learn(self.flush, on_progress)

    async def run(self) -> None:
        """A cycle every ``cycle.interval_s`` seconds, and before its time by ``learner.after_count`` and
        ``learner.after_quiet_s``, until it is cancelled or the engine is closed.

        One that fails is logged and tried again later.
        """
        self._started()
        await self._cycles.run(self.learn)

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

        It waits for no answer that is being written. The version that was served before the current one is still in
        memory, and takes over at once; another is loaded first.
        """
        return self._started().roll_back(to)

    def pin(self, version: str) -> None:
        """Keep a version's files, however many versions follow (``store.keep_versions``), until :meth:`unpin`. A pinned
        one stays pinned.

        Raises:
            UnknownIdError: no such version, or its files are gone.
            StoreCorruptError: its files are damaged.
            StoreError: the store could not be written; nothing has changed.
        """
        self._started().pin(version)

    def unpin(self, version: str) -> None:
        """Let go of a pinned version: its files go once it is beyond ``store.keep_versions``. Nothing happens to one
        that is not pinned.

        Raises:
            UnknownIdError: no such version.
            StoreError: the store could not be written; nothing has changed.
        """
        self._started().store.unpin(version)

    def pinned(self) -> list[str]:
        """The ids of the versions that are pinned, the one that has been so for the longest first."""
        pins = self._started().store.pinned()
        return sorted(pins, key=lambda name: pins[name])

    # ------------------------------------------------------------------------------------------------ the store

    async def backup(self, target: str | os.PathLike[str]) -> Backup:
        """Copy all that was recorded before, and the versions' files, to the folder ``target``, which is made and is a
        store itself. Recording, answering and learning go on.

        Raises:
            InvalidInputError: there is something at ``target``, or it is no path.
            StoreError: of the store, or of the target's disk.
        """
        folder = folder_of(target, "target")
        await self.flush()
        return await self._in_thread(self._started().store.backup, folder)

    async def erase(self, source: str) -> Erased:
        """Erase all that a source has sent so far: trajectories, feedback, claims, and what the banks have of its
        words: exemplars, lessons that were written from them, names of routes that nobody else took.

        What its ``learned`` names has learned from the source all the same: weights can't be made to forget it, but a
        rollback takes them out of use. Backups are not touched.

        Raises:
            CycleError: a cycle is under way.
            UnknownIdError: no such source; nothing has changed.
            InvalidInputError, StoreError: see :func:`sona.erasure.erase`; call it again.
        """
        self._started()
        with self._cycles.alone("a source is erased"):
            await self.flush()
            return await self._in_thread(self._erase, source)

    def _erase(self, source: str) -> Erased:
        parts = self._started()
        with self._review.nothing_of(source), parts.unchanging():
            return erase(parts.store, parts.folders, source, parts.writer.wipe)

    def _started(self) -> Parts:
        parts = self._parts
        if parts is None:
            raise ClosedError("the engine is not open; use it inside 'async with sona.open(...)', or call start()")
        if parts.closed:
            raise ClosedError("the engine was opened before this process was forked; open another store here")
        return parts

    def _open_intake(self) -> Intake:
        if self._parts is None or self._parts.closed:
            self._started()  # says why not
        return self._intake

    def _trainable(self) -> TrainableBase | None:
        model = None if self._parts is None else self._parts.model
        if model is None or self._model_name is None:
            return None
        place = place_of(self._model_name)
        return TrainableBase(place, model.fingerprint, model.shapes, model.vocab_size, model.max_tokens)

    def _served(self) -> LocalModel:
        self._started()
        return self._host.model

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(function, *arguments)
