"""What the service needs of an engine to answer, and how it gets it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

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
SHORT = 1000
"""A text of so many characters is encoded in the time that it takes to hand it to a thread, 0.1 to 0.3 ms."""
AROUND = 32
"""Characters that a chat template puts around a message, about: its role, where it begins and ends."""
T = TypeVar("T")


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
    more: bool = False
    """The next piece, or the whole, is there already."""


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
        self._bell: _Bell | None = None  # made where the event loop runs

    async def encode(self, prompt: Sequence[Message] | str) -> Int32:
        """See :class:`Answers`."""
        model = self._engine.model
        if isinstance(prompt, str):
            return await _short_or_in_thread(len(prompt), model.encode_text, prompt)
        return await _short_or_in_thread(sum(map(_characters, prompt)), model.encode_prompt, prompt)

    async def answer(
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None, question: Int32 | None = None
    ) -> AsyncGenerator[Piece | Reply, None]:
        """See :class:`Answers`."""
        if self._bell is None:
            self._bell = _Bell()
        model, arrivals = self._engine.model, _Arrivals(self._bell)
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
                tokens = await arrivals.more(answering)
                for left, token in zip(range(len(tokens) - 1, -1, -1), tokens, strict=True):
                    text = texts.add([token.id])
                    probs = () if token.logprob is None else (_log_prob(spelling, ids, token, text),)
                    ids.append(token.id)
                    more = left > 0 or answering.done
                    yield Piece(answering.version, (token.id,), text, probs, token.id in model.stop_ids, more)
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


def _characters(message: Message) -> int:
    named = (
        message.name,
        message.tool_call_id,
        *(part for call in message.tool_calls for part in (call.id, call.name)),
    )
    called = sum(len(call.arguments) for call in message.tool_calls)
    return AROUND + len(message.content) + called + sum(len(part) for part in named if part)


async def _short_or_in_thread(characters: int, encode: Callable[[T], Int32], text: T) -> Int32:
    if characters <= SHORT:
        return encode(text)
    return await anyio.to_thread.run_sync(encode, text)


class _Bell:
    """Wakes an event loop once for all answers that have something new, however many and however often they say so
    before it is awake: a call from another thread to each would cost more than most of what they have to tell.
    """

    def __init__(self) -> None:
        self._loop = EventLoop()
        self._rung: deque[_Arrivals] = deque()
        self._waking = False

    def ring(self, arrivals: _Arrivals) -> None:
        """Have its reader look; from any thread."""
        self._rung.append(arrivals)
        if not self._waking:
            self._waking = True
            self._loop.soon(self._wake)

    def _wake(self) -> None:
        self._waking = False  # first, so that what is rung from now on wakes it again
        while self._rung:
            self._rung.popleft().look()


class _Arrivals:
    """Tokens on their way from the thread that chooses them to a task of this event loop."""

    def __init__(self, bell: _Bell) -> None:
        self.there: deque[Token] = deque()
        self._bell, self._looked = bell, anyio.Event()

    def put(self, token: Token) -> None:
        """One more, from any thread."""
        self.there.append(token)
        self.ring()

    def ring(self) -> None:
        """Whoever waits looks again; from any thread."""
        self._bell.ring(self)

    def look(self) -> None:
        """... on the loop's own thread."""
        self._looked.set()

    async def more(self, answering: Answering) -> list[Token]:
        """All that have come, one at least unless the answer has ended."""
        while not self.there and not answering.done:
            self._looked = anyio.Event()  # on the loop's thread, as look() is: what comes in between sets this one
            if self.there or answering.done:
                break
            await self._looked.wait()
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
