"""What the frozen base model makes of a prompt: the embedding that the bank compares, the features that a router reads.

Both come from one forward pass without an adapter, so that they mean the same in every version.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sona.checks import Float32, Int32
from sona.serving.adapters import sharing_copy

BATCH_TOKENS = 8192  # padded tokens in one forward pass
KEPT = 256  # readings in memory: 7 vectors each, 29 MB at a width of 4096


class Reading(NamedTuple):
    """Of n prompts, a row each."""

    embeddings: Float32
    """float32 (n, hidden_size): mean of the last hidden state over the prompt's tokens."""
    features: Float32
    """float32 (n, feature_width): of each hidden state that is read, first to last, the mean over the prompt's tokens
    and the state at its last token, each of norm 1."""


class PromptReader:
    """Reads prompts with a base model; safe to call from several threads.

    Three of its L + 1 hidden states are read: 0 (the embeddings), L // 2, and L, the last, which its final norm has
    passed. In a model of one layer the first two are the same, and are read once.

    A prompt that was read alone is remembered. Those of a batch are not, nor looked up: padding moves float rounding,
    and what a cycle makes of a batch must not depend on what was asked before.
    """

    def __init__(self, base: PreTrainedModel, *, pad_id: int, max_tokens: int) -> None:
        # A tree of its own: transformers puts hooks into the layers of a model that is asked for hidden states.
        self._model = sharing_copy(base)
        self._pad_id, self._max_tokens = pad_id, max_tokens
        config = base.config.get_text_config()
        self._width = int(config.hidden_size)
        self._layers = sorted({0, int(config.num_hidden_layers) // 2})  # and the last one, by its name
        self._remembered: OrderedDict[bytes, Reading] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    @property
    def feature_width(self) -> int:
        """Columns of the features: 6 x hidden_size, 4 x in a model of one layer."""
        return 2 * (len(self._layers) + 1) * self._width

    def read(self, prompts: Sequence[Int32]) -> Reading:
        """Embeddings and features of the prompts: int32 (tokens,) each, at least one token.

        Of a prompt longer than ``max_tokens`` the end is read: that is where the question stands.
        """
        ends = [prompt[-self._max_tokens :] for prompt in prompts]
        return self._read_one(ends[0]) if len(ends) == 1 else self._read_batches(ends)

    def _read_one(self, prompt: Int32) -> Reading:
        key = prompt.astype(np.int32).tobytes()
        with self._lock:
            known = self._remembered.get(key)
            if known is not None:
                self._remembered.move_to_end(key)
        if known is None:
            known = self._read_batches([prompt])
            with self._lock:
                self._remembered[key] = known
                while len(self._remembered) > KEPT:
                    self._remembered.popitem(last=False)
        return Reading(known.embeddings.copy(), known.features.copy())  # the caller's own

    def _read_batches(self, prompts: Sequence[Int32]) -> Reading:
        out = Reading(
            np.zeros((len(prompts), self._width), dtype=np.float32),
            np.zeros((len(prompts), self.feature_width), dtype=np.float32),
        )
        for places in _by_length(prompts):
            part = self._forward([prompts[place] for place in places])
            out.embeddings[places], out.features[places] = part
        return out

    @torch.no_grad()
    def _forward(self, prompts: Sequence[Int32]) -> Reading:
        """One pass over prompts that are padded on the right."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, : len(prompt)] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        # Asked for by number, so that only these layers' states stay in memory (a few model classes give all the same).
        out = self._model.base_model(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=self._layers
        )
        states = [*(out.hidden_states[layer] for layer in self._layers), out.last_hidden_state]  # (B, T, D) each
        pooled = [_pooled(state, mask) for state in states]
        features = [functional.normalize(vector, dim=1) for pair in pooled for vector in pair]
        return Reading(pooled[-1][0].cpu().numpy(), torch.cat(features, dim=1).cpu().numpy())


def _pooled(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the tokens and state at the last one, float32 (B, D) each, of ``hidden`` (B, T, D)."""
    weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)  # (B, T, 1)
    rows = torch.arange(len(mask), device=mask.device)
    return (hidden.float() * weights).sum(1), hidden[rows, mask.sum(1) - 1].float()


def _by_length(prompts: Sequence[Int32]) -> list[list[int]]:
    """Places of the prompts in batches of similar length."""
    batches: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda at: len(prompts[at])):
        if batches and (len(batches[-1]) + 1) * len(prompts[place]) <= BATCH_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
