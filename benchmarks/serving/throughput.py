"""Requests a second, and what a client waits for, against ``model.generate`` one by one."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import numpy as np

import sona
from benchmarks.serving.traffic import Seen, questions, traffic
from sona.config import Config, ServeConfig
from sona.serving.generation import Sampling, continuations
from sona.serving.local import LocalModel
from sona.types import to_messages

CLIENTS = (1, 8, 64)
TOKENS = 48
CONFIG = Config(serve=ServeConfig(device="cpu", threads=1, max_new_tokens=TOKENS))


@dataclass
class Measured:
    """A list of rounds, or of single times in ms."""

    requests_s: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)


class Generate:
    """transformers' own ``generate``, one request after the other, on the same weights."""

    def __init__(self) -> None:
        self._model = LocalModel("tiny", CONFIG.serve)
        self._base = self._model.trainable_copy()

    def answer(self, question: str) -> tuple[int, ...]:
        prompt = self._model.encode_prompt(to_messages(question))
        stop_ids, pad_id = self._model.stop_ids, self._model.pad_id
        return tuple(continuations(self._base, [prompt], Sampling(TOKENS), stop_ids=stop_ids, pad_id=pad_id)[0])


@dataclass
class Result:
    """By number of clients; the peer has one."""

    ours: dict[int, Measured]
    peer: list[float]
    """Requests a second."""
    tokens: int
    """Of an answer, the mean."""
    unlike: int
    """Answers that are not the peer's, of ``answers``."""
    answers: int
    refused: int


def measure(seed: int, rounds: int, requests: int) -> Result:
    """The peer, then 1, 8 and 64 clients, turn by turn in each round."""
    asked = questions(seed, requests)
    result = Result({clients: Measured() for clients in CLIENTS}, [], 0, 0, 0, 0)
    peer = Generate()

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with sona.open(Path(folder) / "store", model="tiny", config=CONFIG) as engine:
                await engine.generate(asked[0])
                peer.answer(asked[0])
                for _ in range(rounds):
                    began = time.perf_counter()
                    wanted = {question: peer.answer(question) for question in asked}
                    result.peer.append(len(asked) / (time.perf_counter() - began))
                    for clients, measured in result.ours.items():
                        _note(result, measured, await _round(engine, asked, clients), wanted)

    anyio.run(run)
    return result


async def _round(engine: sona.Engine, asked: list[str], clients: int) -> tuple[Seen, float]:
    seen, began = Seen(), time.perf_counter()
    await traffic(engine.stream, asked, clients, seen)
    return seen, time.perf_counter() - began


def _note(result: Result, measured: Measured, outcome: tuple[Seen, float], wanted: dict[str, tuple[int, ...]]) -> None:
    seen, seconds = outcome
    measured.requests_s.append(len(seen.answered) / seconds)
    measured.first_ms += [1e3 * one.first_s for one in seen.answered]
    measured.gap_ms += [1e3 * gap for one in seen.answered for gap in one.gaps_s]
    result.tokens = round(float(np.mean([len(one.reply.token_ids) for one in seen.answered])))
    result.unlike += sum(one.reply.token_ids != wanted[one.question] for one in seen.answered)
    result.answers += len(seen.answered)
    result.refused += len(seen.refused)
