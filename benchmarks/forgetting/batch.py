"""Questions as tensors for a causal language model, and how many of them a model answers right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.forgetting.vocabulary import PAD_ID
from benchmarks.forgetting.world import Question

IGNORED = -100  # transformers' label of a position that is not learned from
SCORED_AT_ONCE = 256


class Batch(NamedTuple):
    """B questions padded on the right to T tokens; the names are those of a transformers model's arguments."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64, 1 on tokens."""
    labels: Tensor
    """(B, T) int64: the answers' tokens at their own places, else -100."""


def collate(questions: Sequence[Question]) -> Batch:
    """The questions as one batch."""
    width = max(len(one.prompt) + len(one.answer) for one in questions)
    ids = torch.full((len(questions), width), PAD_ID)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, one in enumerate(questions):
        start, end = len(one.prompt), len(one.prompt) + len(one.answer)
        ids[row, :end] = torch.tensor(one.prompt + one.answer)
        mask[row, :end] = 1
        labels[row, start:end] = ids[row, start:end]
    return Batch(ids, mask, labels)


@torch.no_grad()
def share_right(model: Any, questions: Sequence[Question]) -> float:
    """The share whose whole answer greedy decoding would write: each token, the end too, is the likeliest at its place.

    ``model`` is a transformers model or a PEFT model around one.
    """
    right = 0
    for start in range(0, len(questions), SCORED_AT_ONCE):
        batch = collate(questions[start : start + SCORED_AT_ONCE])
        likeliest = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].argmax(-1)
        wanted = batch.labels[:, 1:]
        right += int(((likeliest == wanted) | (wanted == IGNORED)).all(dim=1).sum())
    return right / len(questions)
