"""A model in which each row of a batch answers with an adapter of its own.

The rows' adapters stand side by side: with A and B those of all of them stacked, a layer adds B (s * A x), where s is 0
for the columns that are not of the row's adapter, and that one's scaling for those that are. It takes two products,
however many adapters there are, and what a row gets does not depend on the others: zeros add nothing.

Nor does it depend on how many rows there are. On a CPU a product of few rows goes another way than one of many, and
rounds otherwise (measured with MKL in float32: from 16 rows on a row is the same, bit for bit, whatever stands beside
it); so a linear layer is never given less than :data:`STEADY_ROWS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sona.serving.adapters import Adapter, Pair, sharing_copy

STEADY_ROWS = 16
"""Rows of a product on a CPU, at least. It costs a token of the shipped model, written alone, 6 % of its time."""


class RowsLostError(Exception):
    """A layer sees tokens without telling which prompt each belongs to, so a batch can't mix adapters in this model."""


class AdaptedModel:
    """A module tree of its own over the tensors of a base model; one thread uses it at a time."""

    def __init__(self, base: PreTrainedModel) -> None:
        self.model = sharing_copy(base)
        steady = STEADY_ROWS if base.device.type == "cpu" else 1
        self._layers: dict[str, _Layer] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, (torch.nn.Linear, Conv1D)):
                self._layers[path] = layer = _Layer(module, steady)
                vars(module)["forward"] = layer.forward
        self._rows: tuple[Adapter | None, ...] = ()
        self._stacked: tuple[Adapter, ...] = ()

    def set_rows(self, adapters: Sequence[Adapter | None]) -> None:
        """From now on row n of a batch of ``len(adapters)`` answers with the n-th of them, or token n of so many
        in one line; None: the base.

        The model then raises :class:`RowsLostError` where a layer of it gets tokens of all rows in one heap. With an
        empty list no adapter is held any more.
        """
        rows = tuple(adapters)
        if rows == self._rows:
            return
        distinct = tuple(dict.fromkeys(adapter for adapter in rows if adapter is not None))
        if distinct != self._stacked:
            for path, layer in self._layers.items():
                layer.stack([adapter.pairs.get(path) for adapter in distinct])
            self._stacked = distinct
        self._rows = rows
        self._scale(rows, distinct)

    def _scale(self, rows: tuple[Adapter | None, ...], distinct: tuple[Adapter, ...]) -> None:
        if len(set(rows)) == 1:
            rows = rows[:1]  # then no layer need tell them apart
        places = {adapter: place for place, adapter in enumerate(distinct)}
        own = torch.zeros(len(rows), len(distinct))  # (n, adapters)
        for row, adapter in enumerate(rows):
            if adapter is not None:
                own[row, places[adapter]] = 1.0
        made: dict[tuple[tuple[int, int, float], ...], Tensor] = {}  # most layers have the same ranks
        for layer in self._layers.values():
            if layer.low is not None:
                columns = layer.low.columns
                if columns not in made:
                    owner = [place for place, rank, _ in columns for _ in range(rank)]
                    factor = torch.tensor([scaling for _, rank, scaling in columns for _ in range(rank)])
                    made[columns] = (own[:, owner] * factor).to(layer.low.A)
                layer.scale = made[columns]  # (n, R), or (1, R) for all


@dataclass(frozen=True, eq=False)
class _Low:
    """The adapters of one layer, side by side."""

    A: Tensor
    """(R, in), R being the sum of the ranks."""
    B: Tensor
    """(out, R)"""
    columns: tuple[tuple[int, int, float], ...]
    """Of each adapter that has this layer: its place among all, its rank, its scaling."""


class _Layer:
    """The forward of one linear layer."""

    def __init__(self, module: torch.nn.Module, steady: int) -> None:
        self._plain: Any = module.forward
        self._steady = steady
        self.low: _Low | None = None
        self.scale = torch.zeros(0)

    def stack(self, pairs: Sequence[Pair | None]) -> None:
        there = [(place, pair) for place, pair in enumerate(pairs) if pair is not None]
        if not there:
            self.low = None
            return
        self.low = _Low(
            torch.cat([pair.A for _, pair in there]),
            torch.cat([pair.B for _, pair in there], dim=1),
            tuple((place, len(pair.A), pair.scaling) for place, pair in there),
        )

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[:-1].numel()
        if self.low is None and count >= self._steady:
            out: Tensor = self._plain(x)
            return out
        flat = self._padded(x.reshape(count, x.shape[-1]))  # (n T, in)
        out = self._plain(flat)
        if self.low is not None:
            A, B = self.low.A, self.low.B
            low = functional.linear(flat.to(A.dtype), A) * self._scale_of(x)  # (n T, R)
            out = (out + functional.linear(low, B)).to(out.dtype)  # (n T, out)
        return out[:count].view(*x.shape[:-1], -1)

    def _padded(self, flat: Tensor) -> Tensor:
        lacking = self._steady - flat.shape[0]  # len() of a tensor takes a microsecond
        return functional.pad(flat, (0, 0, 0, lacking)) if lacking > 0 else flat

    def _scale_of(self, x: Tensor) -> Tensor:
        """(n T, R): of each token of ``x`` (n, T, in) its row's; (1, R) where all have the same."""
        if len(self.scale) == 1:
            return self.scale
        rows = self.scale.shape[0]
        if x.dim() < 3 or (x.shape[0] != rows and x.shape[:2] != (1, rows)):
            raise RowsLostError(f"a linear layer's input is {tuple(x.shape)}, of {rows} rows")
        if x.shape[:-1].numel() == rows:  # a token each, or all tokens in one line
            return self._padded(self.scale)
        return self._padded(self.scale.repeat_interleave(x.shape[1], dim=0))
