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
from sona.errors import InvalidInputError

COLDEST = 1e-3
_drawing = threading.Lock()


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Raises:
        InvalidInputError: a value of another kind than its field's, or outside its range.
    """

    max_new_tokens: int
    """From 1."""
    temperature: float = 0.0
    """From 0 to 100. Below 0.001 it is greedy: that is the limit, and dividing logits by less overflows."""
    top_p: float = 1.0
    """Above 0 and up to 1."""
    top_k: int = 0
    """0 considers all tokens."""
    seed: int | None = None
    """Of this call's random choices, a whole number of 64 bits; None takes a fresh one."""

    def __post_init__(self) -> None:
        if not _is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise InvalidInputError(f"max_new_tokens: {self.max_new_tokens!r}; a whole number from 1 is allowed")
        if not _is_number(self.temperature) or not 0.0 <= self.temperature <= 100.0:  # NaN fails too
            raise InvalidInputError(f"temperature: {self.temperature!r}; from 0 (greedy) to 100 is allowed")
        if not _is_number(self.top_p) or not 0.0 < self.top_p <= 1.0:
            raise InvalidInputError(f"top_p: {self.top_p!r}; above 0 and up to 1 is allowed")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise InvalidInputError(f"top_k: {self.top_k!r}; 0 (all tokens) or more, a whole number, is allowed")
        if self.seed is not None and (not _is_whole(self.seed) or not -(2**63) <= self.seed < 2**63):
            raise InvalidInputError(f"seed: {self.seed!r}; a whole number of 64 bits, or None, is allowed")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < COLDEST


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    generate: Any = base_of(model).generate  # its types know nothing of mixed-in models
    with _seeded(sampling, device):
        out = generate(**inputs, generation_config=_config(sampling, stop_ids, pad_id))
    return [_until_stop(row.tolist(), stop_ids) for row in out[:, width:]]


@contextmanager
def _seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """generate() draws from torch's global generators: one call at a time, and the host's state is put back.

    Only the one that ``device`` draws from is touched; ``torch.manual_seed`` would reseed those of every device.
    """
    if sampling.greedy:
        yield
        return
    with _drawing:
        generator = _generator(device)
        before = generator.get_state()
        try:
            if sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sampling.seed)
            yield
        finally:
            generator.set_state(before)


def _generator(device: torch.device) -> torch.Generator:
    """The global one that sampling on ``device`` draws from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()  # no public name for it
    return torch.default_generator


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model: LoRA layers sit in it, so its own ``generate`` uses them."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def _config(sampling: Sampling, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    # A fresh one: checkpoints ship sampling settings of their own, which would override ours in silence.
    chosen: dict[str, object] = {"do_sample": False}
    if not sampling.greedy:
        chosen = {
            "do_sample": True,
            "temperature": float(sampling.temperature),  # an int is refused
            "top_p": float(sampling.top_p),
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
