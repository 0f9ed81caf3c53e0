"""The output head of a served model: fast weights before it, and what it makes of hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sona.checks import Int32
from sona.errors import ModelError
from sona.ports import FastRow
from sona.serving.generation import base_of

UNLIKE = 0.02
"""Of the largest logit: half precision rounds less than that, and an unknown scale or cap does more."""


@contextmanager
def fast_weights(model: torch.nn.Module, rows: Sequence[FastRow | None]) -> Iterator[None]:
    """Until the block ends, row n of each batch of ``len(rows)`` has its last hidden state moved by ``rows[n]``; rows
    without fast weights come out bit for bit as they are.

    It costs two small products a token, for all rows together.
    """
    if not any(rows):
        yield
        return
    with FastHead(model).of(rows, None):
        yield


class FastHead:
    """The output head of a model that answers a batch: fast weights before it, and one token of each row."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._base = base_of(model)
        self._head: torch.nn.Module | None = None
        self._rows: tuple[FastRow | None, ...] = ()
        self._stacks: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def of(self, rows: Sequence[FastRow | None], last: Tensor | None) -> Iterator[None]:
        """Until the block ends, the head turns hidden states (n, T, d) into logits with :func:`fast_weights`; with
        ``last`` (n,) only those of row n's last token, which is this one of all n T, (n, 1, V).

        Raises:
            ModelError: the model has no output head of its own.
        """
        if self._head is None:
            self._head = _head_of(self._base)
        head, stacks = self._head, self._stacked(tuple(rows))
        forward = head.forward

        def moved(hidden: Tensor) -> Tensor:
            if last is not None:
                hidden = hidden.flatten(0, 1)[last][:, None]  # (n, 1, d)
            if stacks is not None:
                hidden = torch.baddbmm(hidden, torch.bmm(hidden, stacks[0]), stacks[1])  # h + B A h
            logits: Tensor = forward(hidden)
            return logits

        # In place of a hook: with any hook on it, a module's call takes a longer way, which was half of the whole cost.
        before = vars(head).get("forward")  # libraries that move weights between devices do the same
        vars(head)["forward"] = moved
        try:
            yield
        finally:
            if before is None:
                del vars(head)["forward"]
            else:
                vars(head)["forward"] = before

    def _stacked(self, rows: tuple[FastRow | None, ...]) -> tuple[Tensor, Tensor] | None:
        """Those of the rows, made anew where a row came or went."""
        if rows != self._rows:
            width = self._base.config.get_text_config().hidden_size
            self._stacks = _stacked(rows, width, self._base) if any(rows) else None
            self._rows = rows
        return self._stacks


def _stacked(rows: Sequence[FastRow | None], width: int, like: Any) -> tuple[Tensor, Tensor]:
    """All rows' A transposed (n, d, r) and B transposed (n, r, d), zero where there are none."""
    rank = max(len(row.A) for row in rows if row is not None)
    A = np.zeros((len(rows), width, rank), dtype=np.float32)
    B = np.zeros((len(rows), rank, width), dtype=np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            A[place, :, : len(row.A)], B[place, : len(row.A)] = row.A.T, row.B.T
    return torch.from_numpy(A).to(like.device, like.dtype), torch.from_numpy(B).to(like.device, like.dtype)


@torch.no_grad()
def states_of(model: torch.nn.Module, prompt: Int32, response: Int32) -> Tensor:
    """The hidden states (T, d) that the head makes the response's T tokens of, from one forward pass.

    Raises:
        ModelError: the head is not what :func:`logits_of` takes it for.
    """
    base = base_of(model)
    found: list[Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(inputs[0][:, len(prompt) - 1 : -1])  # (1, T, d): the head runs on these alone
        return (found[-1], *inputs[1:])

    handle = _head_of(base).register_forward_pre_hook(select)
    try:
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None].to(base.device)
        logits = base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        handle.remove()
    if not found or logits.shape[:2] != (1, len(response)):
        raise ModelError(f"{type(base).__name__} does not call its output head as a module; set micro.enabled = false")
    again = logits_of(model, found[0][0])
    if float((again - logits[0]).abs().max()) > UNLIKE * float(logits.abs().max()):
        raise ModelError(
            f"{type(base).__name__} changes its logits after the output head in a way that is not known here; "
            "set micro.enabled = false"
        )
    return found[0][0]


def logits_of(model: torch.nn.Module, hidden: Tensor) -> Tensor:
    """Logits (T, V) of hidden states (T, d), with what a model does to them after its head: Gemma caps them, Cohere
    multiplies and Granite divides them.
    """
    base = base_of(model)
    settings = base.config.get_text_config()
    logits: Tensor = _head_of(base)(hidden.to(base.device, base.dtype)[None])[0]
    logits = logits * (getattr(settings, "logit_scale", None) or 1.0)
    logits = logits / (getattr(settings, "logits_scaling", None) or 1.0)
    cap = getattr(settings, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _head_of(base: Any) -> torch.nn.Module:
    head = base.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(base).__name__} has no output head of its own; set micro.enabled = false")
    assert isinstance(head, torch.nn.Module)
    return head
