"""A trajectory while it happens: the context manager that a host writes its handling of a query into."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from sona.checks import Float32, TokensLike
from sona.errors import InvalidInputError
from sona.types import Feedback, Message, Outcome, Reply, Step, Trajectory, new_id, to_messages

log = logging.getLogger("sona.hooks")


class Host(Protocol):
    """What an open trajectory needs of the engine."""

    async def embed_quietly(self, messages: Sequence[Message]) -> Float32 | None:
        """The query's embedding; None, counted, where there is no model or it failed."""

    async def generate(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int | None,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int | None,
    ) -> Reply:
        """One answer of the served model."""

    def opened(self, trajectory: OpenTrajectory) -> None:
        """Called when the block begins."""

    def closed(self, trajectory: OpenTrajectory, record: Trajectory | None) -> None:
        """Called when it ends, with the record to store, or None where none could be made. Must not raise."""


class OpenTrajectory:
    """Made by ``engine.trajectory(...)``; recorded when its block ends, however it ends.

    A block that raises is recorded with outcome ``failed`` and its exception goes on; one without an answer is
    recorded as ``abandoned``. Nothing that goes wrong behind it reaches the host: it is counted and logged.

    Raises:
        InvalidInputError: of ``messages``, ``source`` or ``metadata``, before the block begins.
    """

    def __init__(
        self,
        host: Host,
        messages: str | Sequence[Message | Mapping[str, Any]],
        *,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._host = host
        self.messages = to_messages(messages)
        if not self.messages:
            raise InvalidInputError("messages: none; give at least one")
        self.id = id if id is not None else new_id()
        """The trajectory's id, for feedback now or days later."""
        self._created_ns = time.time_ns()
        # Checked here, so that a bad argument is the caller's error at the call rather than a lost record at the end.
        Trajectory(id=self.id, source=source, messages=self.messages, metadata=metadata or {}, outcome="abandoned")
        self._source, self._metadata = source, dict(metadata or {})
        self._embedding: Float32 | None = None
        self._steps: list[Step] = []
        self._answer: dict[str, Any] = {}
        self._held: list[Feedback] = []
        self._ending, self._ended = threading.Lock(), False

    async def __aenter__(self) -> Self:
        self._host.opened(self)
        self._embedding = await self._host.embed_quietly(self.messages)
        return self

    async def generate(
        self,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """An answer of the served model, with what it has learned so far; it becomes this trajectory's response.

        Raises:
            ModelError: the engine has no model, or the template refuses the conversation.
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is out of range.
        """
        reply = await self._host.generate(
            self.messages, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        self._answer = {
            "response": reply.text,
            "prompt_ids": list(reply.prompt_ids),
            "response_ids": list(reply.token_ids) or None,
            "version": reply.version,
        }
        return reply

    def respond(self, text: str, *, token_ids: TokensLike | None = None) -> None:
        """The answer, where the host has it from elsewhere; it takes the place of a generated one.

        Raises:
            InvalidInputError: no text, or ids that are none.
        """
        answer = {"response": text, "response_ids": token_ids}
        Trajectory(messages=self.messages, response=text, response_ids=token_ids)  # the caller's error, at the call
        self._answer = answer

    def step(
        self, name: str, *, reward: float | None = None, latency_s: float | None = None, content: str = ""
    ) -> None:
        """One action on the way, such as a tool call, with its own reward.

        Raises:
            InvalidInputError: an empty name, or a number that is not finite.
        """
        self._steps.append(Step(name=name, reward=reward, latency_s=latency_s, content=content))

    def hold(self, feedback: Feedback) -> bool:
        """Keep feedback that came before the block ended, to be stored after the trajectory; False after its end."""
        with self._ending:
            if self._ended:
                return False
            self._held.append(feedback)
            return True

    def end(self) -> list[Feedback]:
        """What was held; from now on :meth:`hold` refuses."""
        with self._ending:
            self._ended = True
            return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record: Trajectory | None = None
        try:
            record = self._record("failed" if kind is not None else "completed" if self._answered else "abandoned")
        except Exception:  # the host's answer is out already: whatever is wrong with our record of it is ours to bear
            log.exception("trajectory %s could not be recorded", self.id)
        self._host.closed(self, record)

    @property
    def _answered(self) -> bool:
        return bool(self._answer.get("response", "").strip()) or self._answer.get("response_ids") is not None

    def _record(self, outcome: Outcome) -> Trajectory:
        return Trajectory(
            id=self.id,
            source=self._source,
            created_ns=self._created_ns,
            messages=self.messages,
            embedding=self._embedding,
            steps=self._steps,
            outcome=outcome,
            metadata=self._metadata,
            **self._answer,
        )
