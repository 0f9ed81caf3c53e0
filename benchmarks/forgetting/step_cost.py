"""What a training step costs with EWC++, against PEFT and AdamW alone."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.forgetting.adapter import Adapter
from benchmarks.forgetting.base import load_base
from benchmarks.forgetting.world import Question, plain_world
from sona.config import LoraConfig, TrainConfig
from sona.learn.dataset import Example
from sona.learn.ewc import initial_state
from sona.learn.fisher import fisher_diagonal
from sona.learn.lora import attach, weights
from sona.learn.trainer import train

BATCH = 32
RATE = 2e-3
STEPS = 40  # a turn: a multiple of what EWC++ does every few steps
PAD = 0


class StepCost(NamedTuple):
    """CPU seconds of one step, the median of the turns."""

    ewc_s: float
    plain_s: float


def step_cost(base: Path, seed: int, turns: int) -> StepCost:
    """Both take the same batches, turn by turn in one process. The first turn of each, which warms up, is left out."""
    torch.set_num_threads(1)
    batches = _batches(seed)
    plain = Adapter(base, RATE, seed)
    ewc = _Held(base, seed, batches)
    timed = [(ewc.turn(), _plain_turn(plain, batches)) for _ in range(turns + 1)][1:]
    return StepCost(*(median(side) / STEPS for side in zip(*timed, strict=True)))


class _Held:
    """The product's own training step, held by EWC++ with the default settings."""

    def __init__(self, base: Path, seed: int, batches: list[list[Question]]) -> None:
        self._batches = [[_example(question) for question in batch] for batch in batches]
        self._model = attach(load_base(base), LoraConfig(), seed)
        examples = [example for batch in self._batches[:4] for example in batch]
        generator = torch.Generator().manual_seed(seed)
        fisher = fisher_diagonal(self._model, examples, PAD, sampled=True, generator=generator)
        self._state = initial_state(fisher, weights(self._model))

    def turn(self) -> float:
        """CPU seconds of a turn."""
        began = time.process_time()
        train(
            self._model,
            lambda step: self._batches[step],
            steps=STEPS,
            settings=TrainConfig(),
            learning_rate=RATE,
            pad_id=PAD,
            ewc=self._state,
        )
        return time.process_time() - began


def _plain_turn(adapter: Adapter, batches: list[list[Question]]) -> float:
    began = time.process_time()
    for batch in batches:
        adapter.step(batch)
    return time.process_time() - began


def _batches(seed: int) -> list[list[Question]]:
    world, rng = plain_world(seed), Random(seed)
    pool = [question for task in world.tasks for question in world.sample(task, 100, "step cost")]
    return [rng.sample(pool, BATCH) for _ in range(STEPS)]


def _example(question: Question) -> Example:
    prompt, response = (np.asarray(ids, dtype=np.int32) for ids in question)
    return Example(prompt, response)
