"""One answer while it is written, and the trajectory that becomes of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from sona.checks import Int32
from sona.errors import SonaError
from sona.hooks.trajectory import OpenTrajectory
from sona.service.answers import Piece, Sampling, TokenLogProb
from sona.service.hub import Hub
from sona.service.responses import Finish, Origin, Usage
from sona.service.stops import StopFinder
from sona.types import Message, Reply


@dataclass(frozen=True)
class Question:
    """What is asked, all of it checked."""

    prompt: Int32
    messages: tuple[Message, ...]
    """The same as a conversation; () of a completion."""
    sampling: Sampling
    stops: list[str]
    top_logprobs: int | None
    source: str
    metadata: dict[str, str] = field(default_factory=dict)
    question: Int32 | None = None
    """The prompt without its memories; None: it has none."""


@dataclass(frozen=True)
class Part:
    """What can be passed on of an answer."""

    text: str
    token_ids: tuple[int, ...]
    """Those that the model wrote for it; of a text that is held back, they come first."""
    log_probs: tuple[TokenLogProb, ...]
    of_text: int
    """So many of them, from the first, are of tokens before the end token or a stop string."""
    more: bool = False
    """What follows, the next part or the end, is there already."""


class Writing:
    """Writes one answer, and records it, before its last part is passed on, whatever comes of it.

    An answer that is cancelled or fails is recorded as ``failed``, with what there was of it.
    """

    def __init__(self, hub: Hub, question: Question) -> None:
        self._hub, self._question = hub, question
        self._open: OpenTrajectory = hub.engine.trajectory(
            question.messages,
            prompt_ids=question.prompt,
            source=question.source,
            metadata=question.metadata,
        )
        self._version: str | None = None
        self._began = time.monotonic()
        self.created = int(time.time())
        self.text = ""
        self.token_ids: list[int] = []
        self.finish: Finish = "stop"
        self.recorded: bool | None = None

    @property
    def trajectory(self) -> str:
        """Its id."""
        return self._open.id

    @property
    def version(self) -> str:
        """Known from the first part on."""
        assert self._version is not None
        return self._version

    @property
    def digest(self) -> str:
        """That version's."""
        return self._hub.digest(self.version)

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls the system's: the same for answers of the same weights."""
        return f"{self.version}-{self.digest[:16]}"

    @property
    def origin(self) -> Origin:
        """Where the answer comes from."""
        return Origin(trajectory=self.trajectory, recorded=self.recorded, version=self.version, digest=self.digest)

    @property
    def usage(self) -> Usage:
        """Tokens so far; those that made a stop string are counted."""
        asked, answered = len(self._question.prompt), len(self.token_ids)
        return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {
            "x-sona-trajectory": self.trajectory,
            "x-sona-version": self.version,
            "x-sona-digest": self.digest,
        }

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Passed on as they come; when they end, the trajectory is recorded."""
        with self._hub.under_way(self.trajectory):
            async with self._open:
                try:
                    async with aclosing(self._write()) as parts:
                        async for part in parts:
                            yield part
                finally:
                    self._keep()
            self.recorded = self._is_recorded()
        self._hub.metrics.answered(self.usage, time.monotonic() - self._began)

    async def _write(self) -> AsyncGenerator[Part, None]:
        asked = self._question
        finder = StopFinder(asked.stops)
        async with aclosing(
            self._hub.answers.answer(asked.prompt, asked.sampling, asked.top_logprobs, asked.question)
        ) as pieces:
            async for piece in pieces:
                if isinstance(piece, Reply):
                    self._version, self.finish = piece.version, piece.finish_reason
                    continue
                if not self.token_ids:
                    self._version = piece.version
                    self._hub.metrics.first_token(time.monotonic() - self._began)
                yield self._take(piece, finder)
                if finder.stopped:
                    self.finish = "stop"
                    return
        if rest := finder.rest():
            self.text += rest
            yield Part(rest, (), (), 0, more=True)

    def _take(self, piece: Piece, finder: StopFinder) -> Part:
        text = finder.feed(piece.text)
        self.text += text
        self.token_ids += piece.token_ids
        of_text = 0 if piece.ends or (finder.stopped and not text) else len(piece.log_probs)
        return Part(text, piece.token_ids, piece.log_probs, of_text, piece.more or finder.stopped)

    def _keep(self) -> None:
        """Give the trajectory what there is."""
        if self.text.strip() or self.token_ids:
            self._open.respond(
                self.text,
                token_ids=self.token_ids or None,
                prompt_ids=self._question.prompt,
                version=self._version,
            )

    def _is_recorded(self) -> bool:
        try:
            self._open.settled()
        except SonaError:
            return False
        return True
