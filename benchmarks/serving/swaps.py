"""Versions that come and go under traffic, and each answer checked by the version that it names."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np

from benchmarks.serving.throughput import CONFIG, TOKENS
from benchmarks.serving.traffic import Answered, Seen, questions, traffic
from benchmarks.serving.voices import versions
from sona.answer_stream import AnswerStream
from sona.ports import Served
from sona.serving.local import LocalModel
from sona.types import to_messages

CLIENTS = 8
VERSIONS = 4
QUESTIONS = 24
PAUSE_S = 0.15
"""Between two swaps."""

Span = tuple[float, float]
"""Beginning and end."""


@dataclass
class Result:
    """Of all rounds."""

    swap_ms: list[float] = field(default_factory=list)
    quiet_extra_ms: list[float] = field(default_factory=list)
    """Of each request that a wait in a swap's place fell into, its time beyond the median of its question and version.
    Long requests are the likelier to be struck, by either."""
    swap_extra_ms: list[float] = field(default_factory=list)
    """The same of those that a swap fell into."""
    requests: int = 0
    refused: int = 0
    mixed: int = 0
    """Answers that are not, token for token, what the version that they name writes alone."""
    named: int = 0
    """Versions that answers name."""


def measure(seed: int, rounds: int, swaps: int) -> Result:
    """Traffic without swaps as long as with, turn by turn; then each answer again, alone."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        model = LocalModel("tiny", CONFIG.serve)
        served = versions(model, Path(folder), VERSIONS)
        try:
            seen, times, waits = anyio.run(_run, model, served, seed, rounds, swaps)
        finally:
            model.close()
        result.swap_ms = [1e3 * (ended - began) for began, ended in times]
        result.requests, result.refused = len(seen.answered) + len(seen.refused), len(seen.refused)
        _reckon(result, seen.answered, times, waits)
        wanted = _alone(served, seen.answered)
    result.mixed = sum(one.reply.token_ids != wanted[one.reply.version, one.question] for one in seen.answered)
    result.named = len({version for version, _ in wanted})
    return result


async def _run(
    model: LocalModel, served: Mapping[str, Served], seed: int, rounds: int, swaps: int
) -> tuple[Seen, list[Span], list[Span]]:
    """What the clients saw, and when each swap, and each wait in its place, began and ended."""
    asked, seen, times, waits = questions(seed, QUESTIONS), Seen(), list[Span](), list[Span]()
    running = True

    def on_and_on() -> Iterator[str]:
        for question in itertools.cycle(asked):
            if not running:
                return
            yield question

    def ask(question: str) -> AnswerStream:
        prompt = model.encode_prompt(to_messages(question))
        begin = partial(model.stream, prompt, max_new_tokens=TOKENS)
        return AnswerStream(lambda on_token: begin(on_token=on_token), model.pieces())

    async with anyio.create_task_group() as group:
        group.start_soon(traffic, ask, on_and_on(), CLIENTS, seen)
        for _ in range(rounds):
            for _ in range(swaps):
                began = time.perf_counter()
                await anyio.sleep(times[-1][1] - times[-1][0] if times else PAUSE_S / 2)
                waits.append((began, time.perf_counter()))
                await anyio.sleep(PAUSE_S)
            for swap in range(swaps):
                name = f"v{1 + swap % VERSIONS}"
                began = time.perf_counter()
                await anyio.to_thread.run_sync(model.swap, name, served[name])
                times.append((began, time.perf_counter()))
                await anyio.sleep(PAUSE_S)
        running = False
    return seen, times, waits


def _reckon(result: Result, answered: list[Answered], times: list[Span], waits: list[Span]) -> None:
    """Each request's time beyond what is usual for its question and version where no swap is about."""
    usual: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in answered:
        if not _struck(one, times):
            usual[one.reply.version, one.question].append(one.ended - one.began)
    for one in answered:
        if known := usual.get((one.reply.version, one.question)):
            extra = 1e3 * (one.ended - one.began - float(np.median(known)))
            if _struck(one, times):
                result.swap_extra_ms.append(extra)
            elif _struck(one, waits):
                result.quiet_extra_ms.append(extra)


def _struck(one: Answered, spans: list[Span]) -> bool:
    return any(one.began < ended and began < one.ended for began, ended in spans)


def _alone(served: Mapping[str, Served], answered: list[Answered]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Every answer once more: by a model of its own, with nothing beside it."""
    model = LocalModel("tiny", CONFIG.serve)
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for version, question in sorted({(one.reply.version, one.question) for one in answered}):
        if model.version != version:
            model.swap(version, served.get(version, Served({})))
        prompt = model.encode_prompt(to_messages(question))
        found[version, question] = model.generate(prompt, max_new_tokens=TOKENS).token_ids
    model.close()
    return found
