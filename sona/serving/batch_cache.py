"""Keys and values of several answers in one batch, each row of its own length.

A row's tokens lie at the front of its slot, and what comes after them is masked. (Padding on the left, as generate()
does, would shift the numbers within a sum and so its rounding.) The width that attention sees is one of a few, chosen
so that a wider one gives the same sums, bit for bit: see :func:`width_for`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

NARROW, STEP, LONG_STEP = 384, 64, 512
KEPT_BYTES = 64 * 2**20
"""A batch that is empty holds at most so much for the next one."""


def width_for(tokens: int) -> int:
    """The width in which ``tokens`` are attended to: a multiple of 64 up to 384, then one of 512.

    MKL adds up to 384 numbers in one go and cuts longer sums in two, and torch's attention takes 512 at a time: with
    widths between 384 and 512 the cut fell elsewhere, and the last bit of 1 row in 10 with it.
    """
    step = STEP if tokens <= NARROW else LONG_STEP
    return -(-tokens // step) * step


class Window:
    """Where the next forward pass writes, and how far it reads."""

    def __init__(self) -> None:
        self.slots: Tensor | None = None
        """(n,) slots of the pass's rows; None: the first n."""
        self.places = torch.zeros(0, 0, dtype=torch.long)
        """(n, T) where in its slot each of the pass's tokens goes."""
        self.width = 0
        """So many tokens of each slot are read."""
        self.room = (0, 0)
        """Slots, and tokens of each, that there must be."""


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, (slots, heads, tokens, head_dim) each."""

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room, or more room, keeping what is there."""
        self.keys = self._roomier(self.keys, key_states)
        self.values = self._roomier(self.values, value_states)
        self.is_initialized = True

    def _roomier(self, old: Tensor | None, like: Tensor) -> Tensor:
        slots, tokens = self._window.room
        if old is not None:
            slots, tokens = max(slots, old.shape[0]), max(tokens, old.shape[2])
        # Zeros, for what is masked is multiplied by 0 all the same, and 0 * NaN is NaN.
        made = like.new_zeros(slots, like.shape[1], tokens, like.shape[3])
        if old is not None:
            made[: old.shape[0], :, : old.shape[2]] = old
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put (n, heads, T, head_dim) where the window says; what attention reads, (n, heads, width, head_dim)."""
        slots, tokens = self._window.room
        if self.keys is None or self.keys.shape[0] < slots or self.keys.shape[2] < tokens:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, held: Tensor, new: Tensor) -> Tensor:
        window = self._window
        rows = torch.arange(len(new), device=new.device) if window.slots is None else window.slots
        held[rows[:, None], :, window.places] = new.transpose(1, 2)  # (n, T, heads, head_dim)
        return held[: len(new), :, : window.width] if window.slots is None else held[rows, :, : window.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked for: the batch brings its own mask."""
        return self._window.width, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row; positions are given, so nothing hangs on it."""
        return max(self._window.width - 1, 0)

    def get_max_length(self) -> int:
        """It grows."""
        return -1


class BatchCache:
    """The cache of all layers, as transformers takes it (``.cache``)."""

    def __init__(self, layers: int) -> None:
        self.window = Window()
        self._layers = [SlotLayer(self.window) for _ in range(layers)]
        self.cache = Cache(layers=list(self._layers))

    def move(self, source: int, target: int) -> None:
        """The row in slot ``source`` goes to ``target``."""
        for held in self._tensors():
            if source < len(held):  # else nothing of it has been read
                held[target] = held[source]

    def clear(self, slot: int) -> None:
        """Zero a slot whose row has gone: were there a NaN in it, it would reach the next one."""
        for held in self._tensors():
            if slot < len(held):
                held[slot] = 0

    def shrink(self) -> None:
        """No row is left: let go of what is large."""
        if sum(held.nbytes for held in self._tensors()) > KEPT_BYTES:
            for layer in self._layers:
                layer.keys = layer.values = None

    def _tensors(self) -> list[Tensor]:
        return [held for layer in self._layers for held in (layer.keys, layer.values) if held is not None]
