"""Adapters with weights that surely change the answers, and what is served with one of them."""

from pathlib import Path

import torch

from sona.config import LoraConfig
from sona.learn.lora import attach, load_weights, save_adapter, weights
from sona.ports import Served
from sona.serving.local import LocalModel


def write_noisy_adapter(model: LocalModel, folder: Path, seed: int) -> Path:
    """Write one for ``model`` to ``folder`` and return the folder."""
    learner = attach(model.trainable_copy(), LoraConfig(rank=2), seed)
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in weights(learner).items()}
    load_weights(learner, noise)
    save_adapter(learner, folder)
    return folder


def one(folder: Path | None) -> Served:
    """The adapter of ``folder`` for every request; None: the untouched base."""
    return Served({} if folder is None else {"skill": folder})
