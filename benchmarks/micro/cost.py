"""What fast weights cost a token, a request and a feedback of the shipped model."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import numpy as np

from benchmarks.micro.episode import RIGHT
from benchmarks.micro.language import ANSWERS, Desk, questions
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
    width = desk.model.hidden_size
    nearly_none = FastRow("p", np.full((1, width), 1e-6, np.float32), np.full((width, 1), 1e-6, np.float32))
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
