"""Answers from a model: one batch of prompts, greedy or sampled."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from sona.checks import Int32

_drawing = threading.Lock()


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 considers all tokens."""
    seed: int | None = None
    """Of this call's random choices; None takes a fresh one."""


@torch.no_grad()
def continuations(
    model: torch.nn.Module,
    prompts: Sequence[Int32],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """New token ids of each prompt, the stop token included where one was written.

    Args:
        model: a transformers model, or a PEFT model around one.
        prompts: int32 (tokens,) each. Those of unlike length are padded on the left, which moves float rounding:
            answers are the same from call to call for the same batch, and nearly always the same as one by one.
        sampling: how to choose.
        stop_ids: an answer ends with any of these.
        pad_id: fills up; masked.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    device = next(model.parameters()).device
    inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    generate: Any = _base_of(model).generate  # its types know nothing of mixed-in models
    with _seeded(sampling, device):
        out = generate(**inputs, generation_config=_config(sampling, stop_ids, pad_id))
    return [_until_stop(row.tolist(), stop_ids) for row in out[:, width:]]


@contextmanager
def _seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """generate() draws from torch's global generators: one call at a time, and the host's state is put back."""
    if not sampling.temperature:
        yield
        return
    with _drawing, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if sampling.seed is None:
            torch.seed()
        else:
            torch.manual_seed(sampling.seed)
        yield


def _base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model: LoRA layers sit in it, so its own ``generate`` uses them."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def _config(sampling: Sampling, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    # A fresh one: checkpoints ship sampling settings of their own, which would override ours in silence.
    chosen: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_new_tokens, pad_token_id=pad_id, eos_token_id=list(stop_ids) or None, **chosen
    )


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in stop_ids:
            return ids[: place + 1]
    return ids
