"""Whether a cycle's time follows what is new, or what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.forgetting.sona_run import SonaRun, settings
from benchmarks.forgetting.stream import Hour, Recorded
from benchmarks.forgetting.world import BASE, World, plain_world

MIX = (BASE, "facts", "route")
PER_TASK = 32
EARLY = slice(1, 4)  # the first cycle also makes the probes and takes the first Fisher information
LATE = slice(-5, None)


def cycle_seconds(
    base: Path, seed: int, cycles: int, progress: Callable[[str], None] = lambda line: None
) -> list[float]:
    """CPU seconds of each of ``cycles`` hours on one store: recording, cycle and swap.

    All hours are of one mix, but the tables of its tasks change each time: traffic that is answered right already costs
    next to nothing, and would make late cycles look cheap.
    """
    torch.set_num_threads(1)
    seconds: list[float] = []
    with SonaRun(base, settings("sona", seed)) as ours:
        for cycle in range(cycles):
            hour = _hour(plain_world(1000 * seed + cycle), cycle)
            began = time.process_time()
            ours.learn(hour)
            seconds.append(time.process_time() - began)
            report = ours.reports[-1]
            progress(f"cycle {cycle + 1} of {cycles}: {seconds[-1]:.2f} CPU s, {report.status}: {report.reason}")
    return seconds


def last_over_second(seconds: Sequence[float]) -> float:
    """The median of the last five cycles over that of the second to the fourth."""
    return median(seconds[LATE]) / median(seconds[EARLY])


def _hour(world: World, cycle: int) -> Hour:
    """New questions, all answered right."""
    asked = [(task, question) for task in MIX for question in world.sample(task, PER_TASK, f"cycle {cycle}")]
    return [Recorded(question.prompt, question.answer, 1.0, task) for task, question in asked]
