"""Query embeddings from the frozen base model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from sona.checks import Float32, Int32

BATCH_TOKENS = 8192  # padded tokens in one forward pass


@torch.no_grad()
def mean_pooled(model: PreTrainedModel, prompts: Sequence[Int32], *, pad_id: int, max_tokens: int) -> Float32:
    """Mean of the last hidden state over each prompt's tokens, float32 (prompts, hidden_size).

    Args:
        model: the base model, no adapter in it.
        prompts: int32 (tokens,) each, at least one token. Of a prompt longer than ``max_tokens`` the end is read: that
            is where the question stands.
        pad_id: fills the batch; masked.
        max_tokens: longest sequence for the model.
    """
    kept = [prompt[-max_tokens:] for prompt in prompts]
    out = np.zeros((len(kept), model.config.get_text_config().hidden_size), dtype=np.float32)
    for places in _by_length(kept):
        width = max(len(kept[place]) for place in places)
        ids = torch.full((len(places), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(places), width), dtype=torch.long)
        for row, place in enumerate(places):
            ids[row, : len(kept[place])] = torch.from_numpy(kept[place].astype(np.int64))
            mask[row, : len(kept[place])] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, T, D)
        weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)  # (B, T, 1)
        out[places] = (hidden.float() * weights).sum(1).cpu().numpy()
    return out


def _by_length(prompts: Sequence[Int32]) -> list[list[int]]:
    """Places of the prompts in batches of similar length."""
    batches: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda at: len(prompts[at])):
        if batches and (len(batches[-1]) + 1) * len(prompts[place]) <= BATCH_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
