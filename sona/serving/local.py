"""A transformers model in this process, with the adapters that cycles publish."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sona.checks import Float32, Int32
from sona.config import ServeConfig
from sona.errors import InvalidInputError, UnknownTokenError
from sona.ports import FastRow, FastWeights, ResponseStates, Served
from sona.serving.adapters import ResidentAdapters, RowsLostError, content_key, sharing_copy
from sona.serving.chat import ChatCodec
from sona.serving.features import PromptReader
from sona.serving.fingerprint import fingerprint
from sona.serving.generation import Sampling, continuations
from sona.serving.head import fast_weights, logits_of, states_of
from sona.serving.loading import load
from sona.serving.probes import make_probes
from sona.serving.scoring import TokenScores, token_scores
from sona.serving.versions import ServedVersion, ServedVersions, check_served
from sona.types import Message, Reply

SMALL = 50_000_000  # parameters; below it a second thread waits more than it works
ANY_LENGTH = 1 << 20  # where a model's configuration names no limit


class LocalModel:
    """Answers, embeds, and swaps adapters; safe to call from several threads.

    One answer is written at a time (a lock), so a request may wait, but none is refused: :meth:`swap` loads the new
    adapters beside the old ones, and each request ends with the version that was in force when it began.
    """

    def __init__(self, model: str | os.PathLike[str], settings: ServeConfig) -> None:
        self.settings = settings
        self._base, tokenizer = load(model, settings)
        if threads := settings.threads or _few_threads(self._base):
            torch.set_num_threads(threads)
        self._stop_ids = _stop_ids(self._base, tokenizer)
        # What a GenerationConfig leaves open, generate() fills from the checkpoint's: its sampling habits are not ours.
        self._base.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._codec = ChatCodec(tokenizer, self._stop_ids[0] if self._stop_ids else None)
        self._pad_id = _known([tokenizer.pad_token_id, *self._stop_ids, 0], self.vocab_size)[0]
        self._reader = PromptReader(self._base, pad_id=self._pad_id, max_tokens=self.max_tokens)
        self._adapters = ResidentAdapters(self._base)
        self._mixes = True  # until a layer shows that it can't tell a batch's rows apart
        self._running = threading.Lock()  # held while modules with adapters compute or change
        self._versions = ServedVersions()
        self.fast_weights: FastWeights | None = None
        """What single feedbacks have moved, if anything does."""
        self.fingerprint = fingerprint(self._base, tokenizer)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self._base.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self._base.config.get_text_config().vocab_size)

    @property
    def max_tokens(self) -> int:
        """The model's own limit or the setting's, whichever is smaller."""
        own = getattr(self._base.config.get_text_config(), "max_position_embeddings", None) or ANY_LENGTH
        return min(int(own), self.settings.max_context_tokens)

    @property
    def pad_id(self) -> int:
        """Fills batches; always masked."""
        return self._pad_id

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
    ) -> Reply:
        """One answer by the version in force when the call begins; the settings are those of :class:`Sampling`, so that
        it is greedy at temperatures below 0.001.

        With a router it costs a forward pass of the prompt more, unless this prompt was embedded just before.

        Raises:
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is of another kind or out of
                range.
            UnknownTokenError: a token id is outside the vocabulary.
            ModelError: the version's router named no adapter of it.
        """
        return self._answer([prompt_ids], Sampling(max_new_tokens, temperature, top_p, top_k, seed))[0]

    def generate_batch(self, prompts: Sequence[Int32], *, max_new_tokens: int) -> list[Reply]:
        """Greedy answers to all prompts in one batch, all by one version, each with the adapter that its router picks.

        Raises as :meth:`generate`.
        """
        return self._answer(prompts, Sampling(max_new_tokens)) if prompts else []

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
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
            on_batch=on_batch,
        )

    def trainable_copy(self) -> PreTrainedModel:
        """The base model as a module tree of its own that shares the served weights' memory; no adapter in it."""
        return sharing_copy(self._base)

    def swap(self, version_id: str, served: Served) -> None:
        """Answer with ``served`` from the next request on.

        Adapters that are in memory already, for an earlier version, are not loaded again. It waits for the answer that
        is being written, but not if it brings back the version before, or the base alone. An adapter leaves memory with
        the next swap after no version names it: neither the current one, nor the one before, nor one of a request.

        Raises:
            SwapError: an adapter can't be loaded or is not what its files say, or there are several and no router; the
                old version goes on answering.
        """
        check_served(version_id, served)
        if self._versions.switch(version_id, served):
            return
        keys = {name: content_key(folder) for name, folder in served.adapters.items()}
        with self._running:
            self._adapters.load({key: served.adapters[name] for name, key in keys.items()})
            self._adapters.keep(self._versions.put_in_force(ServedVersion(version_id, served, keys)))

    @contextmanager
    def response_states(self, prompt: Int32, response: Int32) -> Iterator[ResponseStates]:
        """One forward pass over prompt and response, with the adapter that the version in force answers with. The
        version stays in memory until the block ends.

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
            (name,) = version.route(1, lambda: self._reader.read([prompt]).features)
            key = None if name is None else version.keys[name]

            def head(hidden: Tensor) -> Tensor:
                with self._running:  # an answer's own fast weights may be on this head
                    return logits_of(self._module(key), hidden)

            with self._running:
                hidden = states_of(self._module(key), prompt, response)
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
            with self._running:
                found = token_scores(self._module(None if name is None else version.keys[name]), ids, places, top)
        return TokenScores(version.id, name, *found)

    def _answer(self, prompts: Sequence[Int32], sampling: Sampling) -> list[Reply]:
        for prompt in prompts:
            self._check_tokens(prompt)
        room = self.max_tokens - max(len(prompt) for prompt in prompts)
        if room < 1:
            raise InvalidInputError(
                f"prompt: {self.max_tokens - room} tokens; at most {self.max_tokens - 1} leave room to answer"
            )
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        with self._versions.held() as version:
            read = cache(lambda: self._reader.read(prompts))
            names = version.route(len(prompts), lambda: read().features)
            keys = [None if name is None else version.keys[name] for name in names]
            fast: list[FastRow | None] = [None] * len(prompts)
            if self.fast_weights:
                fast = self.fast_weights.rows(version.id, keys, read().embeddings)
            with self._running:
                answers = self._continue(prompts, keys, fast, sampling)
        return [
            self._reply(prompt, answer, version.id, name, row)
            for prompt, answer, name, row in zip(prompts, answers, names, fast, strict=True)
        ]

    def _continue(
        self,
        prompts: Sequence[Int32],
        keys: Sequence[str | None],
        fast: Sequence[FastRow | None],
        sampling: Sampling,
    ) -> list[list[int]]:
        """New token ids of each prompt, written with the adapter of its content key (None: with the base) and with its
        fast weights.
        """
        if len(set(keys)) == 1:
            module = self._module(keys[0])
            with fast_weights(module, fast):
                return continuations(module, prompts, sampling, stop_ids=self._stop_ids, pad_id=self._pad_id)
        if self._mixes:
            try:
                with self._adapters.mixed(keys) as mixed, fast_weights(mixed, fast):
                    return continuations(mixed, prompts, sampling, stop_ids=self._stop_ids, pad_id=self._pad_id)
            except RowsLostError:
                self._mixes = False
        answers: dict[int, list[int]] = {}
        for key in dict.fromkeys(keys):
            places = [place for place, other in enumerate(keys) if other == key]
            group = self._continue(
                [prompts[place] for place in places], [key] * len(places), [fast[place] for place in places], sampling
            )
            answers.update(zip(places, group, strict=True))
        return [answers[place] for place in range(len(prompts))]

    def _module(self, key: str | None) -> torch.nn.Module:
        """The model that answers with the adapter of this content key, None: the base."""
        return self._base if key is None else self._adapters.module(key)

    def _reply(
        self, prompt: Int32, answer: list[int], version: str, adapter: str | None, fast: FastRow | None
    ) -> Reply:
        stopped = bool(answer) and answer[-1] in self._stop_ids
        return Reply(
            text=self._codec.decode(answer[:-1] if stopped else answer),
            token_ids=tuple(answer),
            prompt_ids=tuple(prompt.tolist()),
            version=version,
            adapter=adapter,
            micro=None if fast is None else fast.pattern,
            finish_reason="stop" if stopped else "length",
        )

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


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, then the generation settings' others.

    A base model that never met its end token has left it like every other token it never met, and under a frozen output
    head no adapter can tell them apart (stories260K: exact answers never ended). There a line's end is the answer's.
    """
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    ends = _known([tokenizer.eos_token_id, *listed], int(model.config.get_text_config().vocab_size))
    trained = [token for token in ends if _is_trained(model, token)]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    return trained or (ends if tokenizer.chat_template else [*newline, *ends])


def _is_trained(model: PreTrainedModel, token: int) -> bool:
    """Whether the output head can tell ``token`` from all others."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        return True
    rows = head.weight.detach().float()
    distance = torch.linalg.vector_norm(rows - rows[token], dim=1)
    distance[token] = torch.inf
    return bool(distance.min() > 0.01 * torch.linalg.vector_norm(rows[token]))


def _known(tokens: Sequence[int | None], vocab_size: int) -> list[int]:
    """Those of ``tokens`` that the embedding has a row for, once each. Tokenizers are shipped that know more."""
    return list(dict.fromkeys(int(token) for token in tokens if token is not None and 0 <= token < vocab_size))
