"""A trajectory while it happens: the context manager that a host writes its handling of a query into."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from sona.checks import Float32, TokensLike, VectorLike, pack_tokens, pack_vector
from sona.errors import ConflictError, InvalidInputError, SonaError
from sona.held import is_held_here
from sona.memory_spans import Shown, show
from sona.patterns import Recall
from sona.record_size import size_of, size_of_answer, size_of_ids, size_of_messages, size_of_step
from sona.types import Feedback, Message, Outcome, Reply, Step, Trajectory, new_id, to_messages

log = logging.getLogger("sona.hooks")


class Host(Protocol):
    """What an open trajectory needs of the engine."""

    @property
    def embeds(self) -> bool:
        """Whether :meth:`embed_quietly` may give anything."""

    async def embed_quietly(self, messages: Sequence[Message]) -> Float32 | None:
        """The query's embedding; None, counted, where there is no model or it failed."""

    async def recall_quietly(self, query: Sequence[Message] | Float32, k: int, source: str) -> list[Recall]:
        """What is known of queries like this one, nearest first, by what it was worth to the source; [], counted, where
        something behind it failed.
        """

    async def generate(
        self,
        messages: Sequence[Message],
        *,
        question: Sequence[Message],
        max_new_tokens: int | None,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int | None,
    ) -> Reply:
        """One answer of the served model to ``messages``; by the adapter that ``question``, the same without memories,
        is like.
        """

    def opened(self, trajectory: OpenTrajectory) -> None:
        """Called when the block begins."""

    def grown(self, trajectory: OpenTrajectory, by: int) -> None:
        """Called when it holds so many bytes more; it, or others, may be abandoned for it. Must not raise."""

    def step_fits(self, trajectory: OpenTrajectory, size: int) -> bool:
        """Called before a step of so many bytes: whether it is still open then. Must not raise."""

    def closed(self, trajectory: OpenTrajectory, record: Trajectory | None, *, bear: bool) -> bool:
        """Called when it ends, with the record to store, or None where none could be made.

        Must raise what comes from outside alone, a Ctrl-C or a time limit of the host's; then it is called again, with
        ``bear``. What is raised there may be a time limit too, so an Exception that is no SonaError is logged and borne
        with ``bear`` alone. Returns whether there was one.
        """

    def ended_late(self, trajectory: OpenTrajectory) -> None:
        """Called when the block ends after it was abandoned. Must not raise."""

    async def wait_durable(self, trajectory: OpenTrajectory) -> None:
        """Return when what :meth:`OpenTrajectory.settled` names is committed and synced."""


class OpenTrajectory:
    """Made by ``engine.trajectory(...)``; recorded when its block ends, however it ends.

    A block that raises is recorded with outcome ``failed`` and its exception goes on; one without an answer is
    recorded as ``abandoned``, and so is one that is still open after ``recording.open_timeout_s``, or when the engine
    is closed, or that holds too much (``recording.max_open_bytes``): with what it held until then. It is recorded once:
    what such a block does later is counted, told as an event, and not stored. Nothing that goes wrong behind it
    reaches the host: it is counted and logged.

    Raises:
        InvalidInputError: of ``messages``, ``prompt_ids``, ``source``, ``metadata`` or ``recalled``, before the block
            begins; when it begins a second time; or by what is said to it before or after its block, which no record
            would hold. Within a block that was abandoned nothing is raised.
    """

    def __init__(
        self,
        host: Host,
        messages: str | Sequence[Message | Mapping[str, Any]],
        *,
        prompt_ids: TokensLike | None = None,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        recalled: Sequence[str] = (),
    ) -> None:
        self._host = host
        self.messages = to_messages(messages)
        self._prompt_ids = None if prompt_ids is None else pack_tokens(prompt_ids, "prompt_ids")
        if not self.messages and prompt_ids is None:
            raise InvalidInputError("messages: none; give at least one")
        self.id = id if id is not None else new_id()
        """The trajectory's id, for feedback now or days later."""
        self._created_ns = time.time_ns()
        # Checked here, so that a bad argument is the caller's error at the call rather than a lost record at the end.
        checked = Trajectory(
            id=self.id,
            source=source,
            messages=self.messages,
            prompt_ids=self._prompt_ids,
            metadata=metadata or {},
            recalled=recalled,
            outcome="abandoned",
        )
        self._source, self._metadata, self._recalled = source, checked.metadata, checked.recalled
        self._embedding: Float32 | None = None
        self._steps: list[Step] = []
        self._answer: dict[str, Any] = {}
        self._shown = show(self.messages, None)
        self.size = size_of(checked)
        """About the bytes that it holds. The host's to change."""
        self._answer_size = 0
        self._held: list[Feedback] = []
        self.unrated: deque[Feedback] = deque()
        """Of these what is not handed over yet. The host's to change."""
        self._lock = threading.RLock()
        self._begun = self._over = self._ending = self._settled = self._abandoned = False
        self._record: Trajectory | None = None
        self._refusal: Exception | None = None

    async def __aenter__(self) -> Self:
        self.begin()
        try:
            await self.embed()
        except BaseException:  # cancelled before the block could begin: the query came all the same
            self.finish()
            raise
        return self

    def begin(self) -> None:
        """What ``async with`` does first: from now on feedback is held for it.

        Raises:
            InvalidInputError: it has begun before.
        """
        if self._begun:
            raise InvalidInputError(
                f"trajectory {self.id!r}: its block runs once; make another with engine.trajectory()"
            )
        self._begun = True
        self._host.opened(self)

    async def embed(self) -> None:
        """... and then: the query's embedding, where there is a model for it."""
        if self.embeds:
            self._set_embedding(await self._host.embed_quietly(self.messages))

    @property
    def embeds(self) -> bool:
        """Whether :meth:`embed` has anything to do."""
        return self._host.embeds and bool(self.messages)

    async def recall(self, k: int = 5, *, embedding: VectorLike | None = None) -> list[Recall]:
        """The ``k`` patterns that its query is most like, nearest first, with what is known of them as text for a
        prompt; [] before the first cycle. Their ids and their lessons' are recorded with the trajectory, so that its
        quality shows what they are worth.

        Args:
            k: at most so many.
            embedding: of the query, where the engine has no model to make one. It is recorded too.

        Raises:
            ModelError: neither a model nor an embedding.
            InvalidInputError: an embedding that is not finite, or all zero.
            DimensionMismatchError: an embedding of another width than the store's.
        """
        self._check_in_block("recall()")
        own = self._embedding if embedding is None else np.frombuffer(pack_vector(embedding), dtype="<f4")
        found = await self._host.recall_quietly(self.messages if own is None else own, k, self._source)
        self._set_embedding(own)
        self._note_recalled((*self._recalled, *(name for one in found for name in one.ids)))
        return found

    def used(self, ids: Sequence[str]) -> None:
        """Of the patterns and lessons that were recalled these alone were used, where not all of them came into the
        prompt; or were recalled in another way than by :meth:`recall`.

        Raises:
            InvalidInputError: an id that is none.
        """
        self._check_in_block("used()")
        self._note_recalled(ids)

    def _note_recalled(self, ids: Sequence[str]) -> None:
        checked = Trajectory(
            messages=self.messages, prompt_ids=self._prompt_ids, outcome="abandoned", recalled=ids
        ).recalled
        before, self._recalled = self._recalled, tuple(dict.fromkeys(checked))
        self._host.grown(self, size_of_ids(self._recalled) - size_of_ids(before))

    async def generate(
        self,
        *,
        memories: Mapping[str, str] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """An answer of the served model to the messages, with what it has learned so far; it becomes this trajectory's
        response.

        Args:
            memories: texts by names of yours, such as what was recalled: the model reads them, where they stand in the
                messages word for word or else at the end of the system's, and the trajectory says where. What the
                query is like, for the bank and for the adapter that answers, is decided without them.
            max_new_tokens: and the rest: as for :meth:`sona.Engine.generate`.
            temperature: see there.
            top_p: see there.
            top_k: see there.
            seed: see there.

        Raises:
            ModelError: the engine has no model, or the template refuses the conversation.
            InvalidInputError: the prompt leaves no room for an answer, a sampling value is out of range, or a memory
                has no text.
        """
        self._check_in_block("generate()")
        shown = show(self.messages, memories)
        reply = await self._host.generate(
            shown.messages,
            question=shown.question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        answer = {
            "response": reply.text,
            "prompt_ids": list(reply.prompt_ids),
            "response_ids": list(reply.token_ids) or None,
            "version": reply.version,
        }
        self._set_answer(answer, shown)
        return reply

    def respond(
        self,
        text: str,
        *,
        token_ids: TokensLike | None = None,
        prompt_ids: TokensLike | None = None,
        version: str | None = None,
        memories: Mapping[str, str] | None = None,
    ) -> None:
        """The answer, where the host has it from elsewhere; it takes the place of a generated one.

        Args:
            text: as the asker saw it.
            token_ids: as a model wrote it.
            prompt_ids: what that model was asked.
            version: of the served model, where it was this engine's.
            memories: what the model read beside the question: see :meth:`generate`.

        Raises:
            InvalidInputError: no text, ids that are none, or a memory without a text.
        """
        self._check_in_block("respond()")
        answer: dict[str, Any] = {"response": text, "response_ids": token_ids, "version": version}
        answer["prompt_ids"] = self._prompt_ids if prompt_ids is None else prompt_ids
        shown = show(self.messages, memories)
        packed = Trajectory(messages=shown.messages, **answer)  # the caller's error, at the call
        answer |= {"response_ids": packed.response_ids, "prompt_ids": packed.prompt_ids}
        self._set_answer(answer, shown)

    def step(
        self, name: str, *, reward: float | None = None, latency_s: float | None = None, content: str = ""
    ) -> None:
        """One action on the way, such as a tool call, with its own reward.

        One that would make the trajectory larger than a record may be (``store.queue_bytes``) ends it: it is recorded
        as abandoned, without that step.

        Raises:
            InvalidInputError: an empty name, or a number that is not finite.
        """
        self._check_in_block("step()")
        step = Step(name=name, reward=reward, latency_s=latency_s, content=content)
        if self._host.step_fits(self, size_of_step(step)):
            self._steps.append(step)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("failed" if kind is not None else None)

    def finish(self, outcome: Outcome | None = None) -> None:
        """What the end of the block does: record it, ``completed`` where it was answered. Raises nothing of its own: a
        Ctrl-C or a time limit of the host's goes on when all is done.
        """
        self._over = True
        if not self._end_once(outcome or ("completed" if self._answered else "abandoned"), abandoned=False):
            self._host.ended_late(self)

    def abandon(self) -> bool:
        """Record it as it is, though its block has not ended; False where it has. Raises as :meth:`finish`."""
        return self._end_once("abandoned", abandoned=True)

    async def durable(self) -> None:
        """Return when this trajectory, and the feedback that was given while it was open, is committed and synced.

        Raises:
            InvalidInputError: its block has not ended yet, or what it was given makes no record.
            StoreError: it was rejected, because too much waits for the disk; or it can't be stored just now
                (StoreFullError and others): it is kept and tried again, and so may this be.
            ClosedError: the engine was closed before it ended, or before this was asked.
            ConflictError: its id is taken by other content; or it was recorded as abandoned before its block ended.
        """
        await self._host.wait_durable(self)

    def settled(self) -> tuple[Trajectory, list[Feedback]]:
        """What it was recorded as, and the feedback that was held for it. Raises as :meth:`durable`."""
        with self._lock:
            record, refusal, abandoned = self._record, self._refusal, self._abandoned
            if not self._settled:
                raise InvalidInputError(f"trajectory {self.id!r}: its block has not ended; ask after it")
        if refusal is not None:
            raise type(refusal)(*refusal.args) from refusal
        if abandoned or record is None:
            raise ConflictError(
                f"trajectory {self.id!r} was recorded as abandoned before its block ended; what came later is not "
                "stored (a longer recording.open_timeout_s or a larger recording.max_open or max_open_bytes lets it "
                "stay open; one alone may be as large as store.queue_bytes)"
            )
        return record, self._held

    # For the host

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in the midst of a call here: it asks in a signal handler, or a finaliser."""
        return is_held_here(self._lock)

    @property
    def is_settled(self) -> bool:
        """Whether it was handed over, or refused."""
        return self._settled

    @property
    def is_refused(self) -> bool:
        """Whether it could not be recorded."""
        return self._refusal is not None

    @property
    def is_open(self) -> bool:
        """Whether nothing has ended it."""
        return not self._ending

    def hold(self, feedback: Feedback) -> bool:
        """Keep feedback that came before the block ended, to be stored after the trajectory; False after its end."""
        with self._lock:
            if self._settled:
                return False
            self._held.append(feedback)
            self.unrated.append(feedback)
            return True

    def settle(self, refusal: Exception | None) -> list[Feedback]:
        """It was handed over, unless there is a ``refusal``. What was held; from now on :meth:`hold` refuses."""
        with self._lock:
            self._settled, self._refusal = True, refusal
            return self._held

    def forked(self) -> None:
        """In a forked child, where the lock may be one that a lost thread held."""
        self._lock = threading.RLock()

    def _check_in_block(self, call: str) -> None:
        """Without a block nothing would be recorded. Of its ends only its own counts: an agent that was slower
        than ``recording.open_timeout_s`` goes on.
        """
        if not self._begun:
            raise InvalidInputError(
                f"{call}: the block of trajectory {self.id!r} has not begun, and nothing is recorded without one; use "
                "'with engine.trajectory(...) as t:' ('async with' of an Engine), and call it within"
            )
        if self._over:
            raise InvalidInputError(
                f"{call}: the block of trajectory {self.id!r} has ended, and it was recorded as it was then; call it "
                "within the block, or open another one with engine.trajectory()"
            )

    def _end_once(self, outcome: Outcome, *, abandoned: bool) -> bool:
        """False where somebody has ended it, or does so now. Where a Ctrl-C or a time limit of the host's cuts it short
        it is taken to its end, and that goes on: the host's answer is out, and feedback for it was acknowledged. What
        fails once more is no time limit but ours, and the host is spared it. A Ctrl-C that comes once more leaves it to
        the sweep, or to who closes the engine.
        """
        first = False
        # No signal handler runs in another thread, so nothing comes from outside there.
        bear = threading.current_thread() is not threading.main_thread()
        try:
            with self._lock:
                first, self._ending = not self._ending, True
            if first:
                self._end(outcome, abandoned=abandoned, bear=bear)
        except BaseException as error:
            if not first:
                raise
            try:
                borne = self._end(outcome, abandoned=abandoned, bear=True)
            finally:
                self._ending = self._settled and (self.is_refused or not self.unrated)
            if not (borne and isinstance(error, Exception)):
                log.info(
                    "trajectory %s: %r cut the end of its block short, which was done all the same", self.id, error
                )
                raise
        return first

    def _end(self, outcome: Outcome, *, abandoned: bool, bear: bool) -> bool:
        """May be begun again: what was made once stays. See :meth:`Host.closed`."""
        borne = False
        try:
            if self._record is None:
                self._abandoned = abandoned
                self._record = self._made(outcome)
        except Exception as error:  # the host's answer is out already: what is wrong with our record is ours to bear
            borne = to_bear(error, bear)
            log.exception("trajectory %s could not be recorded", self.id)
        return self._host.closed(self, self._record, bear=bear) or borne

    def _set_answer(self, answer: dict[str, Any], shown: Shown) -> None:
        self._answer, self._shown = answer, shown
        size = size_of_answer(answer["response"], answer["prompt_ids"], answer["response_ids"])
        if shown.spans:  # a conversation of its own
            size += size_of_messages(shown.messages)
        before, self._answer_size = self._answer_size, size
        self._host.grown(self, size - before)

    def _set_embedding(self, embedding: Float32 | None) -> None:
        before, self._embedding = self._embedding, embedding
        if before is None and embedding is not None:
            self._host.grown(self, embedding.nbytes)

    @property
    def _answered(self) -> bool:
        return bool(self._answer.get("response", "").strip()) or self._answer.get("response_ids") is not None

    def _made(self, outcome: Outcome) -> Trajectory:
        return Trajectory(
            id=self.id,
            source=self._source,
            created_ns=self._created_ns,
            messages=self._shown.messages,
            embedding=self._embedding,
            steps=self._steps,
            outcome=outcome,
            recalled=self._recalled,
            metadata={**self._metadata, **self._shown.metadata},
            **{"prompt_ids": self._prompt_ids, **self._answer},
        )


def to_bear(error: Exception, bear: bool) -> bool:
    """Whether ``error``, which is being handled, is none of sona's own; raises it then unless ``bear``. See
    :meth:`Host.closed`.
    """
    foreign = not isinstance(error, SonaError)
    if foreign and not bear:
        raise error
    return foreign
