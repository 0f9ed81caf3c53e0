"""What the service needs of an engine to answer, and how it gets it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from sona.checks import Int32
from sona.engine import Engine
from sona.errors import QueueFullError
from sona.event_loop import EventLoop
from sona.service.problems import unavailable
from sona.serving.scoring import TokenScores
from sona.types import Message, Reply, Token

if TYPE_CHECKING:
    from sona.serving.request import Answering

WINDOW = 8
"""Tokens before one that its text is read with."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: see :meth:`sona.Engine.generate`."""

    max_new_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None


@dataclass(frozen=True)
class TokenLogProb:
    """One token and how likely it was, in nats, at temperature 1."""

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest at its place, likeliest first, where they were asked for."""


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: usually one token."""

    version: str
    """The version that writes the answer; the same in all its pieces."""
    token_ids: tuple[int, ...]
    text: str
    """May be empty: a token that is no whole character, or the end token."""
    log_probs: tuple[TokenLogProb, ...] = ()
    """One for each of ``token_ids``, where they were asked for."""
    ends: bool = False
    """It is the end token, which is no part of the text."""


class Answers(Protocol):
    """Where answers come from."""

    async def encode(self, prompt: Sequence[Message] | str) -> Int32:
        """A conversation through the model's template, or a text to go on from, as token ids (tokens,).

        Raises:
            ModelError: the template refuses the conversation.
        """

    def answer(
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None, question: Int32 | None = None
    ) -> AsyncGenerator[Piece | Reply, None]:
        """The pieces of one answer, and at last the whole. Closing it, or cancelling who waits for it, ends the work.

        With ``top_logprobs`` (0: none but the token's own) each token comes with its log-probability. ``question`` is
        what a router reads, where it is not all of the prompt.

        Raises:
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is out of range.
            UnknownTokenError: a token id is outside the vocabulary.
        """

    async def score(self, ids: Int32, places: Sequence[int], prompt_tokens: int, top: int = 0) -> TokenScores:
        """See :meth:`sona.serving.local.LocalModel.score`."""


class EngineAnswers:
    """Answers of an engine's served model, token by token as it chooses them, many at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scoring = anyio.CapacityLimiter(1)

    async def encode(self, prompt: Sequence[Message] | str) -> Int32:
        """See :class:`Answers`."""
        model = self._engine.model
        if isinstance(prompt, str):
            return await anyio.to_thread.run_sync(model.encode_text, prompt)
        return await anyio.to_thread.run_sync(model.encode_prompt, prompt)

    async def answer(
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None, question: Int32 | None = None
    ) -> AsyncGenerator[Piece | Reply, None]:
        """See :class:`Answers`."""
        model, arrivals = self._engine.model, _Arrivals()
        limit = sampling.max_new_tokens
        try:
            answering = model.stream(
                prompt,
                max_new_tokens=self._engine.config.serve.max_new_tokens if limit is None else limit,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                logprobs=top_logprobs,
                question=question,
                on_token=arrivals.put,
            )
        except QueueFullError as error:
            raise unavailable(str(error), "busy") from error
        answering.when_done(arrivals.ring)
        texts, spelling, ids = model.pieces(), Spelling(model), list[int]()
        try:
            while not answering.done or arrivals.there:
                for token in await arrivals.more(answering):
                    text = texts.add([token.id])
                    probs = () if token.logprob is None else (_log_prob(spelling, ids, token, text),)
                    ids.append(token.id)
                    yield Piece(answering.version, (token.id,), text, probs, ends=token.id in model.stop_ids)
            reply = answering.result(0.0)
            if rest := texts.rest(reply.text):
                yield Piece(answering.version, (), rest)
            yield reply
        finally:
            answering.cancel()

    async def score(self, ids: Int32, places: Sequence[int], prompt_tokens: int, top: int = 0) -> TokenScores:
        """See :class:`Answers`."""
        score = functools.partial(self._engine.model.score, ids, places, prompt_tokens=prompt_tokens, top=top)
        return await anyio.to_thread.run_sync(score, limiter=self._scoring, abandon_on_cancel=True)


class _Arrivals:
    """Tokens on their way from the thread that chooses them to a task of this event loop."""

    def __init__(self) -> None:
        self.there: deque[Token] = deque()
        self._loop, self._rung = EventLoop(), anyio.Event()

    def put(self, token: Token) -> None:
        """One more, from any thread."""
        self.there.append(token)
        self.ring()

    def ring(self) -> None:
        """Whoever waits looks again; from any thread."""
        self._loop.soon(self._ring)

    def _ring(self) -> None:
        self._rung.set()

    async def more(self, answering: Answering) -> list[Token]:
        """All that have come, one at least unless the answer has ended."""
        while not self.there and not answering.done:
            self._rung = anyio.Event()  # on the loop's own thread, as _ring is: what comes in between rings this one
            if self.there or answering.done:
                break
            await self._rung.wait()
        return [self.there.popleft() for _ in range(len(self.there))]


class _Decoder(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str: ...

    def spell(self, token_id: int) -> str: ...


class Spelling:
    """The text of single tokens, which depends on those before them."""

    def __init__(self, model: _Decoder) -> None:
        self._model = model

    def after(self, ids: Sequence[int], token: int) -> str:
        """``token`` as a text, coming after ``ids``; a special token by its name."""
        near = list(ids[-WINDOW:])
        before, after = self._model.decode(near), self._model.decode([*near, token])
        found = after[len(before) :] if after.startswith(before) else ""
        return found or self._model.spell(token)


def _log_prob(spelling: Spelling, before: Sequence[int], token: Token, text: str) -> TokenLogProb:
    assert token.logprob is not None
    return TokenLogProb(
        text=text or spelling.after(before, token.id),
        log_prob=token.logprob,
        top=tuple((spelling.after(before, other), log_prob) for other, log_prob in token.top),
    )
