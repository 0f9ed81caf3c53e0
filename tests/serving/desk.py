"""A scheduler over a small random model, and the slow way to the same answers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sona.checks import Int32
from sona.ports import FastRow
from sona.serving.adapted import AdaptedModel
from sona.serving.adapters import Adapter, Pair
from sona.serving.generation import Sampling
from sona.serving.head import logits_of
from sona.serving.request import Answering, OnToken, Request, Voice
from sona.serving.scheduler import Limits, Scheduler
from sona.serving.trial import rows_for
from sona.types import Reply, Token

LONGEST = 128


@dataclass(frozen=True, eq=False)
class Ask:
    """One request."""

    prompt: Int32
    tokens: int = 8
    adapter: Adapter | None = None
    fast: FastRow | None = None
    temperature: float = 0.0
    seed: int = 0
    logprobs: int | None = None


class Desk:
    """Answers :class:`Ask` with a model; ``released`` counts the requests that let go of their version."""

    def __init__(self, model: PreTrainedModel, *, rows: int = 64, tokens: int = 1 << 20, waiting: int = 1000) -> None:
        self.model, self.adapted = model, AdaptedModel(model)
        self.scheduler = Scheduler(
            lambda: rows_for(self.adapted, 0, LONGEST), Limits(rows=rows, tokens=tokens, waiting=waiting)
        )
        self.released = 0

    def ask(self, ask: Ask, on_token: OnToken | None = None) -> Answering:
        def release() -> None:
            self.released += 1

        request = Request(
            prompt=ask.prompt,
            sampling=Sampling(ask.tokens, temperature=ask.temperature, seed=ask.seed),
            logprobs=ask.logprobs,
            stop_ids=frozenset({2}),
            find_voice=lambda: Voice(None, ask.adapter, ask.fast),
            make_reply=reply_of,
            release=release,
            on_token=on_token,
        )
        return self.scheduler.submit(request)

    def answers(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        return [handle.result(60).token_ids for handle in [self.ask(ask) for ask in asks]]


def reply_of(voice: Voice, tokens: list[Token]) -> Reply:
    return Reply(
        text="",
        token_ids=tuple(token.id for token in tokens),
        prompt_ids=(),
        version="v0",
        finish_reason="length",
        tokens=tuple(tokens),
    )


class Held:
    """An ``on_token`` that stops the scheduler's thread at the first token, until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, token: Token) -> None:
        self.reached.set()
        assert self.go.wait(30)


def slow_logits(model: PreTrainedModel, ask: Ask, written: Sequence[int]) -> Tensor:
    """Logits (V,) after prompt and answer: no cache, no neighbours, the adapter merged into the weights."""
    merged: Any = copy.deepcopy(model)
    for path, pair in (ask.adapter.pairs if ask.adapter else {}).items():
        merged.get_submodule(path).weight.data += pair.scaling * pair.B @ pair.A
    ids = torch.tensor([[*ask.prompt.tolist(), *written]])
    with torch.no_grad():
        hidden = merged.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1:]
        if ask.fast is not None:
            hidden = hidden + hidden @ torch.from_numpy(ask.fast.A).T @ torch.from_numpy(ask.fast.B).T
        return logits_of(merged, hidden)[0].float()


def slow_answer(model: PreTrainedModel, ask: Ask) -> tuple[int, ...]:
    """The greedy answer, the slow way."""
    written: list[int] = []
    while len(written) < ask.tokens and (not written or written[-1] != 2):
        written.append(int(slow_logits(model, ask, written).argmax()))
    return tuple(written)


def random_adapter(model: PreTrainedModel, seed: int, rank: int = 4) -> Adapter:
    """One beside every linear layer but the head."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        path: Pair(
            torch.randn(rank, module.in_features, generator=generator) * 0.2,
            torch.randn(module.out_features, rank, generator=generator) * 0.2,
            2.0,
        )
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "head" not in path
    }
    return Adapter(f"a{seed}", pairs)


def random_fast(seed: int, width: int = 32, rank: int = 1) -> FastRow:
    rng = np.random.default_rng(seed)
    A, B = (rng.normal(size=shape).astype(np.float32) * 0.4 for shape in ((rank, width), (width, rank)))
    return FastRow(f"p{seed}", A, B)


def random_asks(model: PreTrainedModel, count: int, seed: int, *, longest: int = 40) -> list[Ask]:
    """Prompts of 1 to ``longest`` tokens, answers of 1 to 20, by three adapters or the base, some with fast weights."""
    rng = np.random.default_rng(seed)
    voices = [None, *(random_adapter(model, number, rank=2 + number) for number in range(3))]
    return [
        Ask(
            prompt=rng.integers(3, 64, rng.integers(1, longest + 1)).astype(np.int32),
            tokens=int(rng.integers(1, 21)),
            adapter=voices[rng.integers(len(voices))],
            fast=random_fast(place, rank=1 + place % 2) if rng.random() < 0.3 else None,
        )
        for place in range(count)
    ]
