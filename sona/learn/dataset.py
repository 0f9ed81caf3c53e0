"""Examples and batches: prompt and response as token ids, ready for a causal language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sona.checks import Int32
from sona.errors import InvalidInputError

IGNORED = -100
"""The label of a position that is not learned from, as in transformers."""


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One prompt with the response to learn.

    Raises:
        InvalidInputError: no tokens in one of the two, or a weight that is negative or not finite.
    """

    prompt: Int32
    """Token ids (prompt tokens,); at least one, since the first response token is predicted from the last of them."""
    response: Int32
    """Token ids (response tokens,); at least one."""
    weight: float = 1.0
    """Its share of the loss, against the other examples' weights; 0 leaves it out."""
    push_below: float | None = None
    """For an answer that was turned down: made less likely, until its log-probability is this many nats, and no
    further. None: an answer to imitate."""

    def __post_init__(self) -> None:
        for name in ("prompt", "response"):
            ids: Int32 = getattr(self, name)
            if ids.ndim != 1 or ids.size == 0:
                raise InvalidInputError(f"example {name}: shape {ids.shape}; a list of at least one id is allowed")
        if not math.isfinite(self.weight) or self.weight < 0:
            raise InvalidInputError(f"example weight: {self.weight}; a finite number of 0 or more is allowed")
        if self.push_below is not None and not math.isfinite(self.push_below):
            raise InvalidInputError(f"example push_below: {self.push_below}; a finite number of nats is allowed")

    def __len__(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """B examples padded on the right to T tokens, with R response tokens in all.

    Right padding keeps the first token at position 0, and causal attention then never looks at padding.
    """

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64, 1 on tokens and 0 on padding."""
    labels: Tensor
    """(B, T) int64: the token at the same position where it belongs to a response, else -100."""
    weights: Tensor
    """(B,) float32."""
    rows: Tensor
    """(R,) int64: where in the flattened (B·T) positions a response token is predicted: one before the token itself."""
    targets: Tensor
    """(R,) int64: the response tokens themselves."""
    lengths: tuple[int, ...]
    """Response tokens of each of the B examples, known without asking the device."""


def collate(examples: Sequence[Example], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """The examples as one batch on ``device``, padded with ``pad_id`` on the right.

    Raises:
        InvalidInputError: no examples.
    """
    if not examples:
        raise InvalidInputError("batch: no examples; give at least one")
    width = max(len(example) for example in examples)
    input_ids = np.full((len(examples), width), pad_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORED)
    for index, example in enumerate(examples):
        start, end = len(example.prompt), len(example)
        input_ids[index, :start] = example.prompt
        input_ids[index, start:end] = labels[index, start:end] = example.response
        attention_mask[index, :end] = 1
    rows = np.flatnonzero(labels != IGNORED) - 1  # (R,); no response begins at position 0, as prompts are not empty
    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        attention_mask=torch.from_numpy(attention_mask).to(device),
        labels=torch.from_numpy(labels).to(device),
        weights=torch.tensor([example.weight for example in examples], device=device),
        rows=torch.from_numpy(rows).to(device),
        targets=torch.from_numpy(input_ids.reshape(-1)[rows + 1]).to(device),
        lengths=tuple(len(example.response) for example in examples),
    )


def length_sorted_batches(examples: Sequence[Example], max_tokens: int) -> list[list[int]]:
    """Indices of the examples, shortest first, cut into batches of at most ``max_tokens`` padded tokens.

    An example longer than that gets a batch of its own. Equal lengths keep their order, so the cut follows from the
    input.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(examples)), key=lambda i: len(examples[i])):
        width = len(examples[index])  # the longest so far, so the width of the batch it joins
        if batches and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
