"""Attention of packed pieces that share a past: each piece sees so many keys of shared blocks, and its own tokens.

Pieces lie side by side in one row of tokens, so that linear layers see them all at once, without padding. Attention
runs piece by piece: over each block of the past without a mask, over the piece's own tokens with the causal one, and
what the parts give is merged by their log-sum-exps (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099, section 3.1;
Ye et al. 2024, "Cascade inference", https://flashinfer.ai/2024/02/02/cascade-inference.html). The result is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

NAME = "sona_cascade"
KNOWN = {"dropout", "scaling", "cascade", "position_ids", "use_cache", "is_causal", "output_attentions"}
"""What a model may hand to its attention beside the tensors without meaning another kind of attention."""


class UnfitError(Exception):
    """The model's attention is of another kind than plain and causal; its message says which."""


@dataclass(eq=False)
class Block:
    """Keys and values of consecutive tokens, by layer, each (1, key heads, tokens, width); it grows in place."""

    tokens: int = 0
    """How many count. More may be stored behind them, of no meaning."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put new ones behind the ``tokens`` that count; :attr:`tokens` itself is moved once all layers have theirs."""
        end = self.tokens + keys.shape[2]
        old = self.layers.get(layer, (None, None))
        self.layers[layer] = self._with(old[0], keys, end), self._with(old[1], values, end)

    def _with(self, stored: Tensor | None, new: Tensor, end: int) -> Tensor:
        if stored is None or stored.shape[2] < end:
            room = end if stored is None else max(end, stored.shape[2] * 5 // 4)
            grown = new.new_empty(*new.shape[:2], room, new.shape[3])
            if stored is not None:
                grown[:, :, : self.tokens] = stored[:, :, : self.tokens]
            stored = grown
        stored[:, :, self.tokens : end] = new
        return stored

    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for pair in self.layers.values() for part in pair)


Past = tuple[Block, int]
"""A block, and how many of its first tokens are seen."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens that follow a past."""

    ids: Tensor
    """int64 (tokens,)"""
    past: tuple[Past, ...] = ()
    """In order; what all of them hold comes before the piece."""
    into: Block | None = None
    """Where its keys and values are put; it may be the last of the past, seen to its end."""
    wanted: tuple[tuple[int, int], ...] = ()
    """Whose states are looked at in the end: rows of the piece, from the first number up to the second."""

    @property
    def start(self) -> int:
        """The position of its first token."""
        return sum(tokens for _, tokens in self.past)


@dataclass(frozen=True, eq=False)
class Plan:
    """The pieces of one forward pass, told to each attention layer."""

    pieces: Sequence[Piece]
    last_layer: int
    """There only the wanted rows count: nothing reads the others' states any more."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Queries (1, heads, tokens, width) and the pieces' own keys and values to the output, shaped as ``q``."""
        out, begin = torch.zeros_like(q), 0
        for piece in self.pieces:
            end = begin + len(piece.ids)
            keys, values = k[:, :, begin:end], v[:, :, begin:end]
            past = [(own[:, :, :tokens], its[:, :, :tokens]) for own, its, tokens in _pasts(piece, layer)]
            for first, last in piece.wanted if layer == self.last_layer else ((0, len(piece.ids)),):
                before = [(keys[:, :, :first], values[:, :, :first])] if first else []
                row = slice(begin + first, begin + last)
                here = (keys[:, :, first:last], values[:, :, first:last])
                out[:, :, row] = _merged(q[:, :, row], here, [*past, *before], scale)
            if piece.into is not None:
                piece.into.write(layer, keys, values)
            begin = end
        return out


def _pasts(piece: Piece, layer: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    for block, tokens in piece.past:
        if tokens:
            yield *block.layers[layer], tokens


def _merged(
    q: Tensor, own: tuple[Tensor, Tensor], pasts: Sequence[tuple[Tensor, Tensor]], scale: float | None
) -> Tensor:
    out, weight = _attention(q, *own, causal=True, scale=scale)  # (1, H, T, d), (1, H, T)
    for keys, values in pasts:
        other, its_weight = _attention(q, keys, values, causal=False, scale=scale)
        share = torch.sigmoid(its_weight - weight)  # exp(l1) / (exp(l1) + exp(l2))
        out = torch.lerp(out, other, share.unsqueeze(-1).to(out.dtype))
        weight = torch.logaddexp(weight, its_weight)
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """The output, shaped as ``q``, and the log-sum-exp of the scores, float32 (1, H, T)."""
    # No public function of torch gives the log-sum-exp without compiling.
    if q.device.type == "cpu":
        out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=None, scale=scale
        )
        return out, weight
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out, weight, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )
    return out, weight[:, :, : q.shape[2]]  # it is padded


def _cascade(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """In the place of a model's attention."""
    plan = options.get("cascade")
    if plan is None:
        raise UnfitError("the model does not hand its attention what its caller gives")
    odd = sorted(
        name for name, value in options.items() if name not in KNOWN and value is not None and value is not False
    )
    if odd or attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnfitError(f"the model's attention is not plain ({', '.join(odd) or 'a mask of its own'})")
    out = plan.attend(module.layer_idx, query, key, value, options.get("scaling"))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _cascade)


@contextmanager
def rows_alone(model: PreTrainedModel, rows: Tensor) -> Iterator[None]:
    """Until the block ends, the last layer's feed-forward part runs on ``rows`` alone, where the model has one that
    can be found; of the other rows it makes zeros, which nothing reads.
    """
    layers = getattr(model.base_model, "layers", None)
    part = getattr(layers[-1], "mlp", None) if layers else None
    if not isinstance(part, torch.nn.Module):
        yield
        return
    whole: Any = part.forward

    def alone(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)  # (1, T, d)
        if len(rows):
            out[:, rows] = whole(x[:, rows])
        return out

    before = vars(part).get("forward")
    vars(part)["forward"] = alone
    try:
        yield
    finally:
        if before is None:
            del vars(part)["forward"]
        else:
            vars(part)["forward"] = before


@contextmanager
def cascading(model: PreTrainedModel) -> Iterator[None]:
    """Until the block ends, the model's attention follows the :class:`Plan` that it is called with (``cascade=``)."""
    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    if not model._can_set_attn_implementation():
        raise UnfitError("the model's attention can't be replaced")
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
