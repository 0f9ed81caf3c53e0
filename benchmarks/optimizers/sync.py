"""How many bytes bring another copy of the weights up to date after a step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from statistics import fmean
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.optimizers.course import agent
from benchmarks.optimizers.methods import APOLLO, BETAS, EMBEDDING, MINI_HERE, adamw, apollo, backward
from sona.config import LoraConfig
from sona.learn import lora
from sona.learn.apollo import ApolloSettings
from sona.learn.rounding import Rounding
from sona.learn.trainer import auto_learning_rate
from sona.storage.deltas import Deltas, Saved

GENTLE = 1e-5  # what full weights are often tuned with
BEFORE = 20  # steps until the first sync: the first ones of an optimizer are not like the others
_ADAMW = ApolloSettings(rank=1 << 30, betas=BETAS)  # no matrix is larger than this rank


class Synced(NamedTuple):
    """Means over the syncs of one training."""

    full: float
    """Bytes of the whole file."""
    blocks: float
    """The share of its blocks that changed."""
    delta: float
    """Bytes of the delta's file."""
    save_ms: float
    """To compare, compress and write it."""


class Training(NamedTuple):
    """One kind of training."""

    settings: ApolloSettings | None
    """None: torch's AdamW."""
    rate: str | float
    """The learning rate, or the method whose best one it is."""
    dtype: torch.dtype = torch.float32
    is_lora: bool = False


def _half(settings: ApolloSettings, rounding: Rounding) -> ApolloSettings:
    return replace(settings, rounding=rounding)


TRAININGS: Mapping[str, Training] = {
    "lora": Training(None, "lora", is_lora=True),
    "adamw": Training(None, "adamw"),
    "adamw_gentle": Training(None, GENTLE),
    "apollo": Training(replace(APOLLO, plain=EMBEDDING), "apollo"),
    "mini": Training(replace(MINI_HERE, plain=EMBEDDING), "mini"),
    "bf16_stochastic": Training(_half(_ADAMW, "stochastic"), "adamw", torch.bfloat16),
    "bf16_stochastic_gentle": Training(_half(_ADAMW, "stochastic"), GENTLE, torch.bfloat16),
    "bf16_masters": Training(_half(_ADAMW, "masters"), "adamw", torch.bfloat16),
    "bf16_masters_gentle": Training(_half(_ADAMW, "masters"), GENTLE, torch.bfloat16),
    "bf16_apollo": Training(replace(APOLLO, plain=EMBEDDING, rounding="stochastic"), "apollo", torch.bfloat16),
}


def synced(training: Training, rate: float, seed: int, syncs: int, every: int) -> Synced:
    """Train on the agent's tasks from the shipped weights, and save a checkpoint every ``every`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        deltas = Deltas(folder, longest=syncs)
        saved, times = [], []
        for weights in _states(training, rate, seed, syncs, every):
            file = save({name: tensor.detach().contiguous() for name, tensor in weights.items()})
            began = time.perf_counter()
            saved.append(deltas.save(file))
            times.append(time.perf_counter() - began)
    changes: list[Saved] = saved[1:]
    return Synced(
        fmean(one.checkpoint_bytes for one in changes),
        fmean(one.changed_blocks / one.blocks for one in changes),
        fmean(one.written_bytes for one in changes),
        1e3 * fmean(times[1:]),
    )


def _states(training: Training, rate: float, seed: int, syncs: int, every: int) -> Iterator[Mapping[str, Tensor]]:
    course = agent(seed)
    model: PreTrainedModel = course.model.to(training.dtype)  # type: ignore[arg-type]
    if training.is_lora:
        adapter = lora.attach(model, LoraConfig(), seed)
        weights: Mapping[str, Tensor] = lora.parameters(adapter)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(weights.values(), lr=rate, betas=BETAS, weight_decay=0.0)
    else:
        weights = dict(model.named_parameters())
        build = adamw if training.settings is None else apollo(training.settings)
        optimizer = build(model, rate, seed)
    for step, batch in enumerate(islice(course.batches, BEFORE + syncs * every)):
        backward(model, batch)
        optimizer.step()
        if step + 1 >= BEFORE and (step + 1 - BEFORE) % every == 0:
            yield weights


def lora_rate(model: PreTrainedModel) -> float:
    """What a cycle would take."""
    return auto_learning_rate(model.config.hidden_size)
