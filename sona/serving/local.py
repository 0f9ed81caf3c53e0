"""A transformers model in this process, with the adapters that cycles publish."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sona.checks import Float32, Int32
from sona.config import ServeConfig
from sona.errors import InvalidInputError, UnknownTokenError
from sona.serving.adapters import ResidentAdapters, sharing_copy
from sona.serving.chat import ChatCodec
from sona.serving.embedding import mean_pooled
from sona.serving.fingerprint import fingerprint
from sona.serving.generation import Sampling, continuations
from sona.serving.loading import load
from sona.serving.probes import make_probes
from sona.types import BASE_VERSION, Message, Reply

SMALL = 50_000_000  # parameters; below it a second thread waits more than it works
ANY_LENGTH = 1 << 20  # where a model's configuration names no limit


class LocalModel:
    """Answers, embeds, and swaps adapters; safe to call from several threads.

    One forward pass runs at a time (a lock), so a request may wait, but none is refused: :meth:`swap` loads the new
    adapter beside the old ones, and each request ends with the version that was in force when it began.
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
        self._adapters = ResidentAdapters(self._base)
        self._running = threading.Lock()  # held while modules with adapters compute or change; taken before _state
        self._state = threading.Lock()  # held while what follows, or which adapters there are to serve, is read or set
        self._version = BASE_VERSION
        self._bare = {BASE_VERSION}  # versions that the untouched base model answers for
        self._in_use: Counter[str] = Counter()
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
        return self._version

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        """See :meth:`ChatCodec.encode_prompt`."""
        return self._codec.encode_prompt(messages)

    def encode_response(self, text: str) -> Int32:
        """See :meth:`ChatCodec.encode_response`."""
        return self._codec.encode_response(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See :meth:`ChatCodec.decode`."""
        return self._codec.decode(token_ids)

    def embed(self, prompts: Sequence[Int32]) -> Float32:
        """Mean-pooled last hidden state of the frozen base model, float32 (prompts, hidden_size).

        Needs no lock: no adapter ever enters the base model's own tree.
        """
        for prompt in prompts:
            self._check_tokens(prompt)
        return mean_pooled(self._base, prompts, pad_id=self._pad_id, max_tokens=self.max_tokens)

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

        Raises:
            InvalidInputError: the prompt leaves no room for an answer, or a sampling value is of another kind or out of
                range.
            UnknownTokenError: a token id is outside the vocabulary.
        """
        return self._answer([prompt_ids], Sampling(max_new_tokens, temperature, top_p, top_k, seed))[0]

    def generate_batch(self, prompts: Sequence[Int32], *, max_new_tokens: int) -> list[Reply]:
        """Greedy answers to all prompts in one batch, all by one version. Raises as :meth:`generate`."""
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

    def swap(self, version_id: str, adapter: Path | None) -> None:
        """Serve ``adapter`` (None: the untouched base) from the next request on.

        Waits for the answer that is being written, if the adapter has to be loaded; the one before stays in memory, so
        that taking a swap back never waits.

        Raises:
            SwapError: the adapter can't be loaded or is not what its files say; the old version goes on answering.
        """
        if self._switched(version_id, adapter):
            return
        assert adapter is not None
        with self._running:
            self._adapters.load(version_id, adapter)  # at once, if another thread has swapped to it meanwhile
            with self._state:  # until the eviction is done: nobody may switch to what it drops
                self._adapters.evict(keep={self._version, version_id, *self._in_use})
                self._bare.discard(version_id)
                self._version = version_id

    def _switched(self, version_id: str, adapter: Path | None) -> bool:
        """Serve it if it is in memory."""
        with self._state:
            if adapter is None:
                self._bare.add(version_id)
            elif version_id not in self._adapters:
                return False
            else:
                self._bare.discard(version_id)
            self._version = version_id
            return True

    def _answer(self, prompts: Sequence[Int32], sampling: Sampling) -> list[Reply]:
        for prompt in prompts:
            self._check_tokens(prompt)
        room = self.max_tokens - max(len(prompt) for prompt in prompts)
        if room < 1:
            raise InvalidInputError(
                f"prompt: {self.max_tokens - room} tokens; at most {self.max_tokens - 1} leave room to answer"
            )
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        with self._held_version() as version, self._running:
            module = self._base if version in self._bare else self._adapters.module(version)
            answers = continuations(module, prompts, sampling, stop_ids=self._stop_ids, pad_id=self._pad_id)
        return [self._reply(prompt, answer, version) for prompt, answer in zip(prompts, answers, strict=True)]

    @contextmanager
    def _held_version(self) -> Iterator[str]:
        """The version in force now, kept in memory until the block ends."""
        with self._state:
            version = self._version
            self._in_use[version] += 1
        try:
            yield version
        finally:
            with self._state:
                self._in_use[version] -= 1
                self._in_use += Counter()  # drops the zeros

    def _reply(self, prompt: Int32, answer: list[int], version: str) -> Reply:
        stopped = bool(answer) and answer[-1] in self._stop_ids
        return Reply(
            text=self._codec.decode(answer[:-1] if stopped else answer),
            token_ids=tuple(answer),
            prompt_ids=tuple(prompt.tolist()),
            version=version,
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
