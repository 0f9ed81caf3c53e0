"""Versions that answer differently from each other, and from the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from sona.config import LoraConfig
from sona.learn.lora import attach, load_weights, save_adapter, weights
from sona.ports import Served
from sona.serving.local import LocalModel

NOISE = 0.1


def versions(model: LocalModel, folder: Path, count: int) -> Mapping[str, Served]:
    """``v1`` to ``v<count>``, of one random adapter each, with their proofs."""
    made: dict[str, Served] = {}
    for seed in range(1, count + 1):
        learner = attach(model.trainable_copy(), LoraConfig(rank=8), seed)
        generator = torch.Generator().manual_seed(seed)
        noise = {
            name: NOISE * torch.randn(value.shape, generator=generator) for name, value in weights(learner).items()
        }
        load_weights(learner, noise)
        save_adapter(learner, folder / f"v{seed}")
        served = Served({"adapter": folder / f"v{seed}"})
        made[f"v{seed}"] = replace(served, proof=model.prove(served))
    return made
