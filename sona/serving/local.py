"""A transformers model in this process, with the adapters that cycles publish."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from sona.checks import Float32, Int32, check_count
from sona.config import ServeConfig
from sona.errors import InvalidInputError, UnknownTokenError
from sona.ports import FastWeights, ModelTree, ResponseStates, Served, Spelled
from sona.serving.adapted import AdaptedModel
from sona.serving.adapters import Adapter, ResidentAdapters, sharing_copy
from sona.serving.answers import Answers, awaited
from sona.serving.chat import ChatCodec
from sona.serving.ends import known_tokens, stop_ids_of
from sona.serving.features import PromptReader
from sona.serving.fingerprint import fingerprint
from sona.serving.generation import Sampling
from sona.serving.head import logits_of, states_of
from sona.serving.held import HeldModel
from sona.serving.loading import load
from sona.serving.pieces import TextPieces
from sona.serving.probes import make_probes
from sona.serving.proof import read_proof
from sona.serving.request import Answering, OnToken
from sona.serving.scheduler import Limits, Scheduler
from sona.serving.scoring import TokenScores, token_scores
from sona.serving.swap import Witness
from sona.serving.trial import rows_for
from sona.serving.versions import ServedVersion, ServedVersions, check_served
from sona.types import Attestation, Message, Reply

log = logging.getLogger("sona.serving")

SMALL = 50_000_000  # parameters; below it a second thread waits more than it works
MOST_LOGPROBS = 100
ANY_LENGTH = 1 << 20  # where a model's configuration names no limit


class LocalModel:
    """Answers, embeds, and swaps adapters; safe to call from several threads.

    Answers are written together, a token each at a step (:mod:`sona.serving.scheduler`), whatever versions, adapters
    and settings they have. :meth:`swap` loads the new adapters beside the old ones and waits for no answer; each
    request ends with the version that was in force when it began. On a CPU, in float32, an answer has the tokens that
    it would have alone (``docs/adr/0011-answers-written-together.md``).
    """

    def __init__(self, model: str | os.PathLike[str], settings: ServeConfig) -> None:
        self.settings = settings
        self._base, tokenizer = load(model, settings)
        if threads := settings.threads or _few_threads(self._base):
            torch.set_num_threads(threads)
        stop_ids = stop_ids_of(self._base, tokenizer)
        # What a GenerationConfig leaves open, generate() fills from the checkpoint's: its sampling habits are not ours.
        self._base.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._codec = ChatCodec(tokenizer, stop_ids[0] if stop_ids else None)
        self._pad_id = known_tokens([tokenizer.pad_token_id, *stop_ids, 0], self.vocab_size)[0]
        self._reader = PromptReader(self._base, pad_id=self._pad_id, max_tokens=self.max_tokens)
        self._adapters = ResidentAdapters(self._base)
        self._swapping = threading.Lock()  # held while adapters are loaded
        self._versions = ServedVersions()
        self._aside = AdaptedModel(self._base)  # what reads beside the answers; theirs is the scheduler's own
        self._witness = Witness(self._aside)
        self._reading = threading.Lock()  # held while it does
        self._apart: AdaptedModel | None = None  # what passes of many seconds use: neither of the others waits for it
        self._lending = threading.Lock()  # held while they do
        self._scheduler = Scheduler(
            lambda: rows_for(AdaptedModel(self._base), self._pad_id, self.max_tokens),
            Limits(settings.max_rows, settings.max_batch_tokens, settings.max_waiting),
        )
        self._answers = Answers(self._scheduler, self._versions, self._reader, self._codec, stop_ids)
        self.fingerprint = fingerprint(self._base, tokenizer)

    @cached_property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self._base.config.get_text_config().hidden_size)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self._base.config.get_text_config().vocab_size)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the base's parameters, by name; of tied ones once."""
        return {name: tuple(weight.shape) for name, weight in self._base.named_parameters()}

    @cached_property
    def max_tokens(self) -> int:
        """The model's own limit or the setting's, whichever is smaller."""
        own = getattr(self._base.config.get_text_config(), "max_position_embeddings", None) or ANY_LENGTH
        return min(int(own), self.settings.max_context_tokens)

    @property
    def pad_id(self) -> int:
        """Fills batches; always masked."""
        return self._pad_id

    @property
    def fast_weights(self) -> FastWeights | None:
        """What single feedbacks have moved, if anything does."""
        return self._answers.fast_weights

    @fast_weights.setter
    def fast_weights(self, given: FastWeights | None) -> None:
        self._answers.fast_weights = given

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Each of these ends an answer."""
        return self._answers.stop_ids

    @property
    def version(self) -> str:
        """The version that the next request gets."""
        return self._versions.current.id

    @property
    def feature_width(self) -> int:
        """Columns of :meth:`features`."""
        return self._reader.feature_width

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        """See :meth:`ChatCodec.encode_prompt`."""
        return self._codec.encode_prompt(messages)

    def encode_response(self, text: str) -> Int32:
        """See :meth:`ChatCodec.encode_response`."""
        return self._codec.encode_response(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See :meth:`ChatCodec.decode`."""
        return self._codec.decode(token_ids)

    def encode_text(self, text: str) -> Int32:
        """See :meth:`ChatCodec.encode_text`."""
        return self._codec.encode_text(text)

    def spell(self, token_id: int) -> str:
        """See :meth:`ChatCodec.spell`."""
        return self._codec.spell(token_id)

    def count_tokens(self, text: str) -> int:
        """See :meth:`ChatCodec.count_tokens`."""
        return self._codec.count_tokens(text)

    def render_closed(self, messages: Sequence[Message]) -> str:
        """See :meth:`ChatCodec.render_closed`."""
        return self._codec.render_closed(messages)

    def spell_out(self, text: str, said: Sequence[tuple[int, int]]) -> Spelled:
        """See :meth:`ChatCodec.spell_out`."""
        return self._codec.spell_out(text, said)

    def pieces(self) -> TextPieces:
        """Makes one answer's text of its tokens as they come."""
        return TextPieces(self._codec.decode, self.stop_ids)

    def embed(self, prompts: Sequence[Int32]) -> Float32:
        """Mean-pooled last hidden state of the frozen base model, float32 (prompts, hidden_size).

        Of one prompt alone it costs a forward pass once, for :meth:`features` and an answer's routing too.
        """
        for prompt in prompts:
            self._check_tokens(prompt)
        return self._reader.read(prompts).embeddings

    def features(self, prompts: Sequence[Int32]) -> Float32:
        """What a router reads of the prompts, float32 (prompts, feature_width): see :class:`PromptReader`."""
        for prompt in prompts:
            self._check_tokens(prompt)
        return self._reader.read(prompts).features

    def generate(
        self,
        prompt_ids: Int32,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        question: Int32 | None = None,
    ) -> Reply:
        """One answer by the version in force when the call begins; the settings are those of :class:`Sampling`, so that
        it is greedy at temperatures below 0.001.

        With a router it costs a forward pass of the prompt more, unless this prompt was embedded just before.
        ``question`` (tokens,) is what the router reads, where it is not all of the prompt.

        Raises:
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is of another kind or out of
                range.
            UnknownTokenError: a token id is outside the vocabulary.
            QueueFullError: as many requests wait as ``serve.max_waiting`` allows.
            ClosedError: the model is closed, or was before the answer was whole.
            ModelError: the version's router named no adapter of it.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
        return awaited([self._answers.begin(prompt_ids, sampling, self._room(prompt_ids), question=question)])[0]

    def stream(
        self,
        prompt_ids: Int32,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        logprobs: int | None = None,
        question: Int32 | None = None,
        on_token: OnToken | None = None,
    ) -> Answering:
        """Begin an answer, and return at once with a handle: ``result(timeout_s)``, ``cancel()``.

        Args:
            prompt_ids: int32 (tokens,).
            max_new_tokens: and the four that follow: as for :meth:`generate`.
            temperature: see there.
            top_p: see there.
            top_k: see there.
            seed: see there.
            logprobs: tell each token's log-probability, and those of so many of the likeliest (0: of none); None: tell
                none.
            question: as for :meth:`generate`.
            on_token: told each token as it is chosen, on the thread that writes all answers, so it should be quick.
                What it raises fails this request and no other.

        Raises:
            InvalidInputError, UnknownTokenError, QueueFullError, ClosedError: as :meth:`generate`, or ``logprobs`` is
                no number from 0 to 100. What comes up later is raised by ``result()``.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
        if logprobs is not None:
            check_count(logprobs, "logprobs", MOST_LOGPROBS)
        room = self._room(prompt_ids)
        return self._answers.begin(prompt_ids, sampling, room, logprobs=logprobs, question=question, on_token=on_token)

    def generate_batch(self, prompts: Sequence[Int32], *, max_new_tokens: int) -> list[Reply]:
        """Greedy answers to all prompts, all by one version, each with the adapter that its router picks. It waits
        where the queue is full.

        Raises as :meth:`generate`.
        """
        rooms = [self._room(prompt) for prompt in prompts]
        return self._answers.write_all(prompts, Sampling(max_new_tokens), rooms)

    def close(self) -> None:
        """Answer no more: what is under way fails with ClosedError, and the thread that answers ends."""
        self._scheduler.close()

    def make_probes(
        self, count: int, tokens: int, seed: int, on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> list[tuple[Int32, Int32]]:
        """See :func:`sona.serving.probes.make_probes`."""
        return make_probes(
            self._base,
            self._codec,
            count=count,
            tokens=tokens,
            seed=seed,
            stop_ids=self.stop_ids,
            pad_id=self._pad_id,
            on_batch=on_batch,
        )

    def trainable_copy(self) -> PreTrainedModel:
        """The base model as a module tree of its own that shares the served weights' memory; no adapter in it."""
        return sharing_copy(self._base)

    def swap(self, version_id: str, served: Served) -> None:
        """Answer with ``served`` from the next request on.

        Adapters that are in memory already, for an earlier version, are not loaded again. It waits for no answer. An
        adapter leaves memory once no version has it: neither the current one, nor the one before, nor one of a request
        under way.

        Raises:
            SwapError: an adapter can't be loaded or is not what its files say, or there are several and no router; or
                it does not answer as the version's proof says (:mod:`sona.serving.swap`). The old version goes on
                answering.
        """
        check_served(version_id, served)
        if self._versions.switch(version_id, served):
            return
        with self._swapping:
            adapters = self._adapters.load(served.adapters)
            version = ServedVersion(version_id, served, adapters)
            if served.proof is None:
                log.info("%s stores no proof of what it answers, and is served without", version_id)
            else:
                self._attested(version)
            self._versions.put_in_force(version)

    def prove(self, served: Served) -> bytes:
        """What base and adapters of ``served`` make of fixed prompts: the version's proof when it is swapped in.

        Raises:
            SwapError: an adapter can't be loaded.
        """
        with self._swapping:
            adapters = self._adapters.load(served.adapters)
        with self._reading:
            return self._witness.prove(adapters)

    def attest(self) -> Attestation:
        """Compare once more what the version in force says with what it said when it was published.

        Raises:
            SwapError: it says something else.
        """
        with self._versions.held() as version:
            return self._attested(version, afresh=True)

    def _attested(self, version: ServedVersion, *, afresh: bool = False) -> Attestation:
        raw = version.served.proof
        proof = None if raw is None else read_proof(raw)
        with self._reading:
            return self._witness.attest(version.id, version.adapters, proof, afresh=afresh)

    @contextmanager
    def response_states(
        self, prompt: Int32, response: Int32, question: Int32 | None = None
    ) -> Iterator[ResponseStates]:
        """One forward pass over prompt and response, with the adapter that the version in force answers with, by
        ``question`` or else the prompt. The version stays in memory until the block ends.

        Raises:
            InvalidInputError: together they are longer than the model takes.
            UnknownTokenError: a token id is outside the vocabulary.
            ModelError: the model's output head is none that fast weights can stand before.
        """
        self._check_tokens(prompt)
        self._check_tokens(response)
        if len(prompt) + len(response) > self.max_tokens:
            raise InvalidInputError(
                f"prompt and response: {len(prompt) + len(response)} tokens; at most {self.max_tokens} are allowed"
            )
        with self._versions.held() as version:
            (name,) = version.route(1, lambda: self._reader.read([prompt if question is None else question]).features)
            adapter = None if name is None else version.adapters[name]

            def head(hidden: Tensor) -> Tensor:
                with self._as_row(adapter) as model:
                    return logits_of(model, hidden)

            with self._as_row(adapter) as model:
                hidden = states_of(model, prompt, response)
            key = None if adapter is None else adapter.key
            yield ResponseStates(version.id, key, hidden.float().cpu().numpy(), head)

    def score(self, ids: Int32, places: Sequence[int], *, prompt_tokens: int, top: int = 0) -> TokenScores:
        """How likely the version in force finds the tokens at ``places``, each given all before it; no fast weights.

        Args:
            ids: int32 (tokens,).
            places: each from 1 to tokens - 1.
            prompt_tokens: so many of the first are the prompt that a router is shown, at least 1.
            top: how many of the likeliest tokens at each place to tell as well.

        Raises:
            InvalidInputError: more tokens than the model takes, or a place outside them.
            UnknownTokenError: a token id is outside the vocabulary.
            ModelError: the model's output head is none that can be run on chosen places alone.
        """
        self._check_tokens(ids)
        if len(ids) > self.max_tokens:
            raise InvalidInputError(f"prompt: {len(ids)} tokens; at most {self.max_tokens} are allowed")
        if not places or min(places) < 1 or max(places) >= len(ids):
            raise InvalidInputError(f"places: from 1 to {len(ids) - 1} are allowed, and at least one")
        with self._versions.held() as version:
            (name,) = version.route(1, lambda: self._reader.read([ids[: max(1, prompt_tokens)]]).features)
            with self._as_row(None if name is None else version.adapters[name]) as model:
                found = token_scores(model, ids, places, top)
        return TokenScores(version.id, name, *found)

    @contextmanager
    def hold(self) -> Iterator[HeldModel]:
        """The version in force now, to have its tree lent until the block ends, however often. Swaps don't wait for
        it, and it stays in memory meanwhile.
        """
        with self._versions.held() as version:
            yield HeldModel(self, version)

    @contextmanager
    def lend_tree(self, prompt: Int32, held: ServedVersion | None = None) -> Iterator[ModelTree]:
        """A module tree that answers as a version that is held, or the one in force, answers ``prompt`` (tokens,),
        without fast weights, for one thread until the block ends; others wait. Answers, embeddings and swaps don't; the
        version stays in memory meanwhile.

        Raises:
            UnknownTokenError: a token id is outside the vocabulary.
        """
        self._check_tokens(prompt)
        with self._lending, self._versions.held(held) as version:
            if self._apart is None:
                self._apart = AdaptedModel(self._base)
            (name,) = version.route(1, lambda: self._reader.read([prompt]).features)
            adapter = None if name is None else version.adapters[name]
            model = self._apart.model
            self._apart.set_rows([adapter])
            try:
                key = f"{version.id} {'' if adapter is None else adapter.key}"
                yield ModelTree(model, lambda hidden: logits_of(model, hidden), key)
            finally:
                self._apart.set_rows(())

    @contextmanager
    def _as_row(self, adapter: Adapter | None) -> Iterator[PreTrainedModel]:
        """A model whose batch of one answers with this adapter; one thread at a time has it."""
        with self._reading:
            self._aside.set_rows([adapter])
            try:
                yield self._aside.model
            finally:
                self._aside.set_rows(())

    def _room(self, prompt: Int32) -> int:
        """How many tokens may follow the prompt; it raises where it is none that can be answered."""
        self._check_tokens(prompt)
        room = self.max_tokens - len(prompt)
        if room < 1:
            raise InvalidInputError(f"prompt: {len(prompt)} tokens; at most {self.max_tokens - 1} leave room to answer")
        return room

    def _check_tokens(self, ids: Int32) -> None:
        if not len(ids):
            raise InvalidInputError("prompt: no tokens; send some text")
        if int(ids.max()) >= self.vocab_size or int(ids.min()) < 0:
            raise UnknownTokenError(
                f"token ids {ids.min()}..{ids.max()}: this model knows 0 to {self.vocab_size - 1}; use its tokenizer"
            )


def _few_threads(model: PreTrainedModel) -> int:
    """1 for a small model on a CPU, 0 (torch's own number) for others.

    Its matrices are too small to share: on two busy cores the threads' waiting made a query of 20 ms take 0.6-1.4 s.
    """
    return 1 if model.device.type == "cpu" and model.num_parameters() < SMALL else 0
