"""What everyone would do first: a full pass for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sona.attribution.scorer import Passage, Scores


@torch.no_grad()
def full_logits(model: Any, passages: Sequence[Passage]) -> list[Scores]:
    """The logits of all rows, and their log-softmax."""
    found = []
    for passage in passages:
        ids = torch.from_numpy(passage.ids.astype(np.int64))
        log_probs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)  # (T, V)
        rows = [torch.arange(start - 1, end - 1) for start, end in passage.ranges]
        found.append([log_probs[row, ids[row + 1]].numpy() for row in rows])
    return found


def largest_difference(one: Sequence[Scores], other: Sequence[Scores]) -> float:
    """Nats, of a token."""
    return max(
        float(np.abs(a - b).max()) for mine, its in zip(one, other, strict=True) for a, b in zip(mine, its, strict=True)
    )
