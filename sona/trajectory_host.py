"""What an open trajectory finds behind it: the model that answers, and the way into the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import numpy as np

from sona.answer_stream import AnswerStream, completed
from sona.bank.bank import Bank
from sona.bank.prompting import with_text
from sona.checks import Float32, check_count
from sona.config import ServeConfig
from sona.errors import ClosedError, ConfigError, DimensionMismatchError, ModelError, SonaError
from sona.intake import Intake
from sona.parts import Parts
from sona.patterns import Recall
from sona.types import Message, Reply

if TYPE_CHECKING:
    from sona.hooks.trajectory import OpenTrajectory
    from sona.serving.local import LocalModel

log = logging.getLogger("sona.engine")

Query = Sequence[Message] | Float32
"""A conversation, or its embedding (width,)."""
T = TypeVar("T")
Ranking = Callable[[str], Callable[[str, float], float]]
"""Of a source: by what recalled patterns are sorted, from a pattern's id and its similarity."""


class TrajectoryHost:
    """The :class:`sona.hooks.trajectory.Host` of one open engine; on any event loop."""

    def __init__(self, parts: Parts, intake: Intake, settings: ServeConfig, ranking: Ranking) -> None:
        self._parts, self._intake, self._settings, self._ranking = parts, intake, settings, ranking
        self.opened = intake.opened
        self.grown = intake.grown
        self.step_fits = intake.step_fits
        self.closed = intake.closed
        self.ended_late = intake.ended_late

    @property
    def embeds(self) -> bool:
        """Whether queries get an embedding here: there is a model, and the store has no other embeddings."""
        model = self._parts.model
        return model is not None and self._parts.fast.width in (None, model.hidden_size)

    async def embed_quietly(self, messages: Sequence[Message]) -> Float32 | None:
        """The query's embedding; None without a model, in a store of other embeddings, or, counted, where it failed."""
        model = self._parts.model
        if model is None or not self.embeds:
            return None
        try:
            vectors: Float32 = await anyio.to_thread.run_sync(lambda: model.embed([model.encode_prompt(messages)]))
        except Exception:  # a failed embedding must not fail the host's query; the cycle makes it up
            self._intake.count("hook_errors")
            log.exception("a query could not be embedded")
            return None
        return np.asarray(vectors[0])

    async def recall(self, query: Query, k: int, source: str) -> list[Recall]:
        """See :meth:`sona.Engine.recall`."""
        check_count(k, "k")
        model, rank = self._parts.model, self._ranking(source)
        count_tokens = None if model is None else model.count_tokens

        def nearest(bank: Bank, at: Float32) -> list[Recall]:
            found = bank.recall(at, 2 * k)  # one of them may be worth more than one that is nearer
            found = sorted(found, key=lambda one: -rank(one.pattern.id, one.similarity))[:k]
            return [with_text(one, count_tokens) for one in found]

        return await self.ask(query, nearest)

    async def ask(self, query: Query, question: Callable[[Bank, Float32], T]) -> T:
        """What ``question`` gets from the bank in force for a query's embedding.

        Raises:
            ClosedError, ModelError, DimensionMismatchError: see :meth:`sona.Engine.recall`; and what the bank raises.
        """
        if self._parts.closed:
            raise ClosedError("the engine is closed; open it again to ask its bank")
        if self._parts.model is None and isinstance(query, np.ndarray):
            return question(self._parts.bank, self._embedded(query))  # in microseconds: a thread would take longer
        return await anyio.to_thread.run_sync(lambda: question(self._parts.bank, self._embedded(query)))

    def _embedded(self, query: Query) -> Float32:
        if not isinstance(query, np.ndarray):
            return np.asarray(self.model.embed([self.model.encode_prompt(query)])[0])
        if (width := self._parts.fast.width) not in (None, len(query)):
            raise DimensionMismatchError(
                f"embedding of width {len(query)}; this store's have {width}: use the same embedder"
            )
        return query

    async def recall_quietly(self, query: Query, k: int, source: str) -> list[Recall]:
        """As :meth:`recall`; [], counted, where it failed for another reason than what it was given."""
        try:
            return await self.recall(query, k, source)
        except SonaError:
            raise
        except Exception:  # a host can answer without what is known
            self._intake.count("hook_errors")
            log.exception("nothing could be recalled for a query")
            return []

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
        logprobs: int | None = None,
    ) -> Reply:
        """See :meth:`sona.Engine.generate`. However many wait, no thread does."""
        self._parts.fast.asked()
        model = self.model
        answering = model.stream(
            model.encode_prompt(messages),
            question=None if question == messages else model.encode_prompt(question),
            max_new_tokens=self.limit(max_new_tokens),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            logprobs=logprobs,
        )
        return await completed(answering)

    def stream(
        self, messages: Sequence[Message], question: Sequence[Message], max_new_tokens: int | None, **sampling: Any
    ) -> AnswerStream:
        """See :meth:`sona.Engine.stream`."""
        self._parts.fast.asked()
        model = self.model
        prompt, limit = model.encode_prompt(messages), self.limit(max_new_tokens)
        asked = None if question == messages else model.encode_prompt(question)
        begin = functools.partial(model.stream, prompt, question=asked, max_new_tokens=limit, **sampling)
        return AnswerStream(lambda on_token: begin(on_token=on_token), model.pieces())

    async def remote_name(self, messages: Sequence[Message]) -> str | None:
        """See :meth:`sona.Engine.remote_name`."""
        if self._parts.closed:
            raise ClosedError("the engine is closed; open it again to ask what its server has")
        if self._parts.remote is None:
            raise ConfigError("remote.kind is 'off', so versions are published nowhere; set it, and remote.url")
        in_force, model = self._parts.remote.in_force, self._parts.model
        if in_force.router is None:
            return in_force.name_for(lambda: np.empty((1, 0), np.float32))
        if model is None:
            raise ModelError(
                f"{in_force.version} has a router, which reads what the base model makes of a prompt; open the engine "
                "with model='path/or/hub-id', the one that the server has"
            )
        return await anyio.to_thread.run_sync(
            lambda: in_force.name_for(lambda: model.features([model.encode_prompt(messages)]))
        )

    def limit(self, max_new_tokens: int | None) -> int:
        """How long an answer may be; None: as the settings say."""
        return self._settings.max_new_tokens if max_new_tokens is None else max_new_tokens

    @property
    def model(self) -> LocalModel:
        """The served model; ClosedError or ModelError where there is none."""
        if self._parts.closed:
            raise ClosedError("the engine is closed; open it again to ask its model")
        if self._parts.model is None:
            raise ModelError("this engine has no model; open it with model='path/or/hub-id' (or 'tiny')")
        return self._parts.model

    async def wait_durable(self, trajectory: OpenTrajectory) -> None:
        """See :meth:`OpenTrajectory.durable`."""
        await self._intake.wait_durable(trajectory)
