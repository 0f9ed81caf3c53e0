"""How an engine is asked: for answers, and for what its bank knows of a query."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sona.answer_stream import AnswerStream
from sona.bank.bank import Bank
from sona.checks import Float32, check_text, pack_vector
from sona.engine_open import Conversation, OpenEngine
from sona.errors import InvalidInputError
from sona.memory_spans import show
from sona.patterns import BestRoute, Recall
from sona.types import Message, Reply, to_messages

if TYPE_CHECKING:
    from sona.serving.local import LocalModel

Query = Conversation | Float32 | Sequence[float]
"""A text or conversation, or its embedding (width,)."""


def _checked(query: Query) -> Sequence[Message] | Float32:
    """An embedding of finite float32 numbers, or messages."""
    if isinstance(query, np.ndarray) or (isinstance(query, (list, tuple)) and query and isinstance(query[0], float)):
        return np.frombuffer(pack_vector(query, "query"), dtype="<f4")
    return to_messages(query)


class Asking(OpenEngine):
    """The part of :class:`sona.Engine` that answers."""

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
        :meth:`generate`; InvalidInputError too where they are no list.
        """
        model = self._served()
        if isinstance(conversations, (str, bytes, Mapping, Message)):  # a text is a sequence too: of its letters
            raise InvalidInputError(
                f"conversations: a {type(conversations).__name__}; a list of texts or conversations is allowed, with "
                "one in it too; generate() takes a single one"
            )
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
    def bank(self) -> Bank:
        """The reasoning bank of the version in force."""
        return self._started().bank
