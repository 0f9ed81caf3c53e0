"""What fast weights cost a token, a request and a feedback of the shipped model."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from benchmarks.micro.language import CONFIG, CONTEXTS, Desk, questions
from sona.ports import FastRow
from sona.serving.generation import Sampling, continuations
from sona.serving.head import fast_weights

TOKENS = 64
PAIRED = 0.5  # of the ratios of neighbouring runs: the median


class Cost(NamedTuple):
    token_us: float
    """Of the model without fast weights."""
    over_token: float
    """A token's time with fast weights over that without."""
    lookup_us: float
    """Once a request, of an embedded query: which pattern, which weights."""
    step_us: float
    """Of a feedback, in its thread: one forward pass and the step."""
    offer_us: float
    """Of a feedback, for the caller."""


def token_cost(desk: Desk, repeats: int) -> tuple[float, float]:
    """Median time of a token in µs, and the median ratio of turn to turn, with fast weights over without.

    The weights are all but zero, so that both write the same tokens.
    """
    width = desk.model.hidden_size
    tiny = FastRow("p", np.full((1, width), 1e-6, np.float32), np.full((width, 1), 1e-6, np.float32))
    plain, ratios = list[float](), list[float]()
    (prompt,) = desk.encoded(["echo blue river"])
    for repeat in range(repeats + 3):
        times = {}
        for row in (None, tiny) if repeat % 2 else (tiny, None):
            began = time.perf_counter()
            with fast_weights(desk.model.trainable_base, [row]):
                continuations(desk.model.trainable_base, [prompt], Sampling(TOKENS), stop_ids=[], pad_id=0)
            times[row is None] = (time.perf_counter() - began) / TOKENS
        if repeat >= 3:  # the first ones warm up
            plain.append(1e6 * times[True])
            ratios.append(times[False] / times[True])
    return float(np.median(plain)), float(np.quantile(ratios, PAIRED))
