"""The optimizers that are compared, and a run of one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.optimizers.course import Course, exam_loss
from sona.learn.apollo import MINI, Apollo, ApolloSettings
from sona.tiny.conversation import Batch
from sona.tiny.training import weighted_loss

BETAS = (0.9, 0.99)
MAX_NORM = 1.0
WARMUP = 10  # steps
LEVEL = 0.4  # of the steps at the full rate, then down to zero
EXAMS = 10  # points of a curve
RATIO = math.sqrt(10)  # between two learning rates
MOST_RATES = 9

RANK = 32  # a quarter of the shipped model's width, as in the paper
# α² = m / r, as of the 128 that the paper gives APOLLO-Mini
APOLLO = ApolloSettings(rank=RANK, scale=128 / RANK, betas=BETAS)
MINI_HERE = replace(MINI, betas=BETAS)
EMBEDDING = ("embed_tokens",)

Build = Callable[[PreTrainedModel, float, int], torch.optim.Optimizer]


class Method(NamedTuple):
    """One optimizer."""

    build: Build
    """From a model, a learning rate and a seed."""
    first_rate: float
    """Where the search begins."""


def apollo(settings: ApolloSettings) -> Build:
    return lambda model, rate, seed: Apollo(model.named_parameters(), settings, rate, seed=seed)


def adamw(model: PreTrainedModel, rate: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS, weight_decay=0.0)


def sgd(model: PreTrainedModel, rate: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


METHODS: Mapping[str, Method] = {
    "adamw": Method(adamw, 3e-3),
    "apollo": Method(apollo(replace(APOLLO, plain=EMBEDDING)), 3e-3),
    "mini": Method(apollo(replace(MINI_HERE, plain=EMBEDDING)), 3e-3),
    "apollo_all": Method(apollo(APOLLO), 3e-3),
    "mini_all": Method(apollo(MINI_HERE), 3e-3),
    "sgd": Method(sgd, 1.0),
}


class Curve(NamedTuple):
    """A run."""

    steps: list[int]
    losses: list[float]
    """On the exam, after so many steps."""


def backward(model: PreTrainedModel, batch: Batch) -> None:
    """Leave the clipped gradient of a batch in the model."""
    model.zero_grad()
    loss = weighted_loss(model(input_ids=batch.ids, use_cache=False).logits.float(), batch)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)


def learn(course: Course, method: Method, rate: float, seed: int, steps: int, exams: int = EXAMS) -> Curve:
    """The exam's loss on the way; a run that leaves the numbers ends with an infinite one."""
    model, every = course.model, max(1, steps // exams)
    optimizer, curve = method.build(model, rate, seed), Curve([0], [exam_loss(model, course.exam)])
    for step, batch in enumerate(islice(course.batches, steps)):
        optimizer.param_groups[0]["lr"] = rate * _share(step, steps)
        backward(model, batch)
        optimizer.step()
        if (step + 1) % every == 0:
            loss = exam_loss(model, course.exam)
            curve.steps.append(step + 1)
            curve.losses.append(loss if math.isfinite(loss) else math.inf)
    return curve


def best_rate(course: Callable[[int], Course], method: Method, seed: int, steps: int) -> dict[float, float]:
    """The loss in the end by learning rate, half a decade apart, until the best has a worse one on each side."""
    ends: dict[int, float] = {}

    def end(place: int) -> float:
        if place not in ends:
            rate = method.first_rate * RATIO**place
            ends[place] = learn(course(seed), method, rate, seed, steps, exams=1).losses[-1]
        return ends[place]

    best = 0
    while len(ends) < MOST_RATES:
        better = min((best - 1, best, best + 1), key=end)
        if better == best:
            break
        best = better
    return {method.first_rate * RATIO**place: loss for place, loss in ends.items()}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What it keeps between two steps, counters left out."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)


def _share(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP, (steps - step) / ((1.0 - LEVEL) * steps))
