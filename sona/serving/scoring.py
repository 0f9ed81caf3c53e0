"""How likely a served model finds tokens that it is shown: one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sona.checks import Float32, Int32
from sona.errors import ModelError
from sona.serving.generation import base_of
from sona.serving.head import UNLIKE, logits_of

LOGITS = 2**26
"""At once: 256 MiB in float32, of which a few copies live."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What a model makes of n tokens, each given all tokens before it. Natural logarithms, at temperature 1."""

    version: str
    """The version that was asked."""
    adapter: str | None
    """Its adapter that took part; None: the untouched base."""
    log_probs: Float32
    """(n,)"""
    top_ids: Int32
    """(n, k): the k likeliest tokens at each place, likeliest first."""
    top_log_probs: Float32
    """(n, k)"""


@torch.no_grad()
def token_scores(
    model: torch.nn.Module, ids: Int32, places: Sequence[int], top: int = 0
) -> tuple[Float32, Int32, Float32]:
    """The log of p(ids[place] | ids[:place]) for each of ``places``, and the ``top`` likeliest tokens there.

    Args:
        model: a transformers model, or a PEFT model around one, its adapter active.
        ids: int32 (tokens,).
        places: each from 1 to tokens - 1.
        top: how many of the likeliest.

    Returns:
        float32 (n,), int32 (n, top), float32 (n, top).

    Raises:
        ModelError: the model's output head is none that can be run on chosen places alone.
    """
    rows = torch.as_tensor([place - 1 for place in places])  # the state before a token is what foretells it
    hidden = _hidden_states(model, ids)[rows.to(base_of(model).device)]  # (n, d)
    targets = torch.from_numpy(ids.astype(np.int64))[rows + 1]
    size = max(1, LOGITS // int(base_of(model).config.get_text_config().vocab_size))
    parts = [
        _scored(logits_of(model, part).float(), target, top)
        for part, target in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    log_probs, top_ids, top_log_probs = (torch.cat(kind).cpu().numpy() for kind in zip(*parts, strict=True))
    return log_probs, top_ids.astype(np.int32), top_log_probs


def _scored(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = logits.log_softmax(dim=-1)  # (n, V)
    of_targets = log_probs.gather(1, targets.to(logits.device)[:, None])[:, 0]  # (n,)
    top_log_probs, top_ids = log_probs.topk(top, dim=-1)
    return of_targets, top_ids, top_log_probs


def _hidden_states(model: torch.nn.Module, ids: Int32) -> Tensor:
    """What the output head sees (T, d); the head itself runs on the last row alone."""
    base = base_of(model)
    head: Any = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ModelError(f"{type(base).__name__} has no output head of its own; its tokens can't be scored")
    found: list[Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(inputs[0])
        return (inputs[0][:, -1:], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        whole = torch.from_numpy(ids.astype(np.int64))[None].to(base.device)  # (1, T)
        logits = base(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False).logits
    finally:
        handle.remove()
    if not found or logits.shape[:2] != (1, 1):
        raise ModelError(f"{type(base).__name__} does not call its output head as a module; its tokens can't be scored")
    again = logits_of(model, found[0][0, -1:])
    if float((again - logits[0]).abs().max()) > UNLIKE * float(logits.abs().max()):
        raise ModelError(
            f"{type(base).__name__} changes its logits after the output head in a way that is not known here; its "
            "tokens can't be scored"
        )
    return found[0][0]
