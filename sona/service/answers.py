"""What the service needs of an engine to answer, and how it gets it."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from sona.checks import Int32
from sona.engine import Engine
from sona.service.problems import ProblemError, unavailable
from sona.serving.scoring import TokenScores
from sona.types import Message, Reply

T = TypeVar("T")
TRIES = 3
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
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None
    ) -> AsyncGenerator[Piece | Reply, None]:
        """The pieces of one answer, and at last the whole. Closing it, or cancelling who waits for it, ends the work.

        With ``top_logprobs`` (0: none but the token's own) each token comes with its log-probability.

        Raises:
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is out of range.
            UnknownTokenError: a token id is outside the vocabulary.
        """

    async def score(self, ids: Int32, places: Sequence[int], prompt_tokens: int, top: int = 0) -> TokenScores:
        """See :meth:`sona.serving.local.LocalModel.score`."""


class EngineAnswers:
    """Answers of an engine that gives each as a whole: one at a time, and all pieces at once when it is done.

    A request that is cancelled while it waits for its turn is never begun; of one that is being written the model goes
    on to the end, for nobody, before the next has its turn.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = anyio.CapacityLimiter(1)

    async def encode(self, prompt: Sequence[Message] | str) -> Int32:
        """See :class:`Answers`."""
        model = self._engine.model
        if isinstance(prompt, str):
            return await anyio.to_thread.run_sync(model.encode_text, prompt)
        return await anyio.to_thread.run_sync(model.encode_prompt, prompt)

    async def answer(
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None
    ) -> AsyncGenerator[Piece | Reply, None]:
        """See :class:`Answers`."""
        for _ in range(TRIES):
            reply = await self._in_turn(functools.partial(self._whole, prompt, sampling))
            scores = None if top_logprobs is None else await self._scores(reply, top_logprobs)
            if scores is None or (scores.version, scores.adapter) == (reply.version, reply.adapter):
                break
        else:  # a swap came between each answer and its log-probabilities
            raise unavailable("versions change too fast to tell log-probabilities; try again", "busy")
        for piece in self._pieces(reply, scores):
            yield piece
        yield reply

    async def score(self, ids: Int32, places: Sequence[int], prompt_tokens: int, top: int = 0) -> TokenScores:
        """See :class:`Answers`."""
        score = functools.partial(self._engine.model.score, ids, places, prompt_tokens=prompt_tokens, top=top)
        return await self._in_turn(score)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._turn, abandon_on_cancel=True)

    def _whole(self, prompt: Int32, sampling: Sampling) -> Reply:
        limit = sampling.max_new_tokens
        return self._engine.model.generate(
            prompt,
            max_new_tokens=self._engine.config.serve.max_new_tokens if limit is None else limit,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
        )

    async def _scores(self, reply: Reply, top: int) -> TokenScores | None:
        """Of the answer's tokens, from a pass of its own; None where there are none."""
        if reply.micro is not None:  # the pass knows nothing of fast weights
            raise ProblemError(
                400,
                "logprobs: not to be had for an answer that fast weights took part in (micro.enabled)",
                param="logprobs",
                code="unsupported_value",
            )
        if not reply.token_ids:
            return None
        prompt = len(reply.prompt_ids)
        ids = np.asarray(reply.prompt_ids + reply.token_ids, dtype=np.int32)
        return await self.score(ids, range(prompt, len(ids)), prompt, top)

    def _pieces(self, reply: Reply, scores: TokenScores | None) -> Iterator[Piece]:
        spelling = Spelling(self._engine.model)
        ends = reply.finish_reason == "stop"
        texts = spelling.parts(reply.token_ids[:-1] if ends else reply.token_ids, reply.text)
        for place, token in enumerate(reply.token_ids):
            is_end = ends and place == len(reply.token_ids) - 1
            probs: tuple[TokenLogProb, ...] = ()
            if scores is not None:
                probs = (_log_prob(spelling, reply.token_ids, place, scores, "" if is_end else texts[place]),)
            text = "" if is_end else texts[place]
            yield Piece(version=reply.version, token_ids=(token,), text=text, log_probs=probs, ends=is_end)


class _Decoder(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str: ...

    def spell(self, token_id: int) -> str: ...


class Spelling:
    """The text of single tokens, which depends on those before them."""

    def __init__(self, model: _Decoder) -> None:
        self._model = model

    def parts(self, ids: Sequence[int], whole: str) -> list[str]:
        """A text for each of ``ids`` that together are ``whole``; "" for one that only begins a character."""
        texts, begin, read = [""] * len(ids), 0, 0
        for place in range(len(ids)):
            before, after = self._model.decode(ids[begin:read]), self._model.decode(ids[begin : place + 1])
            if len(after) > len(before) and not after.endswith("\ufffd"):
                texts[place] = after[len(before) :]
                begin, read = read, place + 1
        told = "".join(texts)
        if ids and whole.startswith(told):
            texts[-1] += whole[len(told) :]
        elif ids:  # a tokenizer whose texts can't be told apart: all of it with the last token
            texts = [""] * (len(ids) - 1) + [whole]
        return texts

    def after(self, ids: Sequence[int], token: int) -> str:
        """``token`` as a text, coming after ``ids``; a special token by its name."""
        near = list(ids[-WINDOW:])
        before, after = self._model.decode(near), self._model.decode([*near, token])
        found = after[len(before) :] if after.startswith(before) else ""
        return found or self._model.spell(token)


def _log_prob(spelling: Spelling, ids: Sequence[int], place: int, scores: TokenScores, text: str) -> TokenLogProb:
    top = zip(scores.top_ids[place].tolist(), scores.top_log_probs[place].tolist(), strict=True)
    return TokenLogProb(
        text=text or spelling.after(ids[:place], ids[place]),
        log_prob=float(scores.log_probs[place]),
        top=tuple((spelling.after(ids[:place], token), log_prob) for token, log_prob in top),
    )
