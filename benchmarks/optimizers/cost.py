"""What a step of each optimizer takes: time and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from benchmarks.optimizers.course import agent
from benchmarks.optimizers.methods import Method, backward, state_bytes


class Cost(NamedTuple):
    """Of one optimizer."""

    step_ms: float
    """Its step alone, the median."""
    state_bytes: int


def costs(methods: Mapping[str, Method], seed: int, turns: int) -> tuple[dict[str, Cost], float]:
    """Each method's, turn by turn on gradients of the shipped model; and the ms of forward and backward pass."""
    courses = {name: agent(seed) for name in methods}
    optimizers = {name: method.build(courses[name].model, 1e-4, seed) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    passes = []
    for _ in range(turns + 1):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            backward(courses[name].model, next(courses[name].batches))
            between = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - between)
            passes.append(between - began)
    # The first turn makes the state.
    found = {name: Cost(1e3 * median(times[name][1:]), state_bytes(optimizers[name])) for name in methods}
    return found, 1e3 * median(passes)
