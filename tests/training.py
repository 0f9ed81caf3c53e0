"""Jobs for tests of full-weight training."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from sona.training import Recipe, TrainingJob, TrainingSample

RECIPE = Recipe(
    optimizer="apollo",
    learning_rate=1e-3,
    rank=8,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=2,
    scale=1.0,
    refresh_steps=3,
    growth_limit=1.01,
    rounding="masters",
    batch_size=2,
    passes=1,
)


def recipe(**changes: Any) -> Recipe:
    return replace(RECIPE, **changes)


def samples(count: int, seed: int = 0, *, vocabulary: int = 60) -> tuple[TrainingSample, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        TrainingSample.of(rng.integers(3, vocabulary, rng.integers(2, 9)), rng.integers(3, vocabulary, 4))
        for _ in range(count)
    )


def job(number: int, count: int = 4, **changes: Any) -> TrainingJob:
    """The samples follow from the number."""
    return TrainingJob(
        number=number, id=f"job-{number}", samples=samples(count, number), recipe=recipe(**changes), accepted_ns=number
    )
