"""What fast weights cost a token, a request and a feedback of the shipped model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from tempfile import TemporaryDirectory

import numpy as np

import sona
from benchmarks.micro.episode import RIGHT
from benchmarks.micro.language import ANSWERS, Desk, questions
from sona.checks import Float32
from sona.config import Config, ServeConfig
from sona.ports import FastRow
from sona.serving.generation import Sampling, continuations
from sona.serving.head import fast_weights

TOKENS = 64
WARM_UP = 3


def token_cost(desk: Desk, repeats: int) -> tuple[float, float]:
    """Of a token in a request of its own: the median time without fast weights in µs, and the median ratio, turn by
    turn, of the time with them to that without.

    The weights are all but zero, so that both write the same tokens.
    """
    nearly_none = _nearly_none(desk.model.hidden_size)
    model = desk.model.trainable_copy()
    (prompt,) = desk.encoded(questions(0, 1, Random("cost")))
    plain, ratios = list[float](), list[float]()
    for repeat in range(WARM_UP + repeats):
        times, written = {}, []
        for row in (None, nearly_none) if repeat % 2 else (nearly_none, None):
            began = time.perf_counter()
            with fast_weights(model, [row]):
                written += continuations(model, [prompt], Sampling(TOKENS), stop_ids=[], pad_id=desk.model.pad_id)
            times[row is not None] = (time.perf_counter() - began) / TOKENS
        assert written[0] == written[1]
        if repeat >= WARM_UP:
            plain.append(1e6 * times[False])
            ratios.append(times[True] / times[False])
    return float(np.median(plain)), float(np.median(ratios))


def _nearly_none(width: int) -> FastRow:
    return FastRow("p", np.full((1, width), 1e-6, np.float32), np.full((width, 1), 1e-6, np.float32))


class _ForAll:
    """The same weights for each request (:class:`sona.ports.FastWeights`)."""

    def __init__(self, row: FastRow) -> None:
        self._row = row

    def __len__(self) -> int:
        return 1

    def rows(self, version: str, adapters: Sequence[str | None], embeddings: Float32) -> list[FastRow | None]:
        return [self._row] * len(adapters)


def served_over_plain(repeats: int, *, known: bool) -> float:
    """Of a request to ``engine.generate``, the median ratio, turn by turn, of its time with fast weights to that
    without; where the prompt is ``known``, it was embedded before, and else each has a prompt of its own.

    The weights are all but zero; turns in which they changed how much was written all the same are left out.
    """
    ratios = []
    settings = Config(serve=ServeConfig(device="cpu", threads=1))
    with TemporaryDirectory() as folder, sona.open_sync(folder, model="tiny", config=settings) as engine:
        model = engine.model
        fast = _ForAll(_nearly_none(model.hidden_size))
        for repeat in range(WARM_UP + repeats):
            times, written = {}, []
            for weights in (None, fast) if repeat % 2 else (fast, None):
                model.fast_weights = weights
                began = time.perf_counter()
                reply = engine.generate(f"please show me account smith {0 if known else repeat}", max_new_tokens=TOKENS)
                times[weights is not None] = time.perf_counter() - began
                written.append(len(reply.token_ids))
            if repeat >= WARM_UP and written[0] == written[1]:
                ratios.append(times[True] / times[False])
    return float(np.median(ratios))


def lookup_us(desk: Desk, repeats: int) -> float:
    """Of a request, once its query is embedded: which pattern it is of, and what weights that has; the median."""
    (prompt,) = desk.encoded(questions(0, 1, Random("cost")))
    embedding = desk.model.embed([prompt])
    return _median_us(lambda: desk.loop.rows("v0", [None], embedding), repeats)


def step_us(desk: Desk, repeats: int) -> float:
    """Of a feedback in its thread, from queue to step: embedding, a forward pass and the step itself; the median."""
    rng = Random("cost")
    return _median_us(lambda: desk.feed(questions(0, 1, rng)[0], ANSWERS[0], RIGHT), repeats)


def _median_us(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e6 * float(np.median(times))
