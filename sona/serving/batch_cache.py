"""Keys and values of several answers in one batch, each row of its own length.

A row's tokens lie at the front of its slot, and what comes after them is masked. (Padding on the left, as generate()
does, would shift the numbers within a sum and so its rounding.) The width that attention sees is one of a few, chosen
so that a wider one gives the same sums, bit for bit: see :func:`width_for`.

A slot holds token after token, each with all its heads: a pass then writes its tokens as whole stretches of memory, in
half the time that it takes to scatter them over heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

NARROW, STEP, LONG_STEP = 384, 64, 512
FINE_STEP = 16
"""In place of 64, where attention is torch's own function on heads of at least :data:`WIDE_HEAD` numbers."""
WIDE_HEAD = 32
KEPT_BYTES = 64 * 2**20
"""A batch that is empty holds at most so much for the next one."""


def width_for(tokens: int, step: int = STEP) -> int:
    """The width in which ``tokens`` are attended to: a multiple of ``step`` up to 384, then one of 512.

    MKL adds up to 384 numbers in one go and cuts longer sums in two, and torch's attention takes 512 at a time: with
    widths between 384 and 512 the cut fell elsewhere, and the last bit of 1 row in 10 with it. Attention that a model
    spells out in products of its own rounds otherwise in widths below 64, where its heads have fewer than 28 numbers.
    """
    step = step if tokens <= NARROW else LONG_STEP
    return -(-tokens // step) * step


class Window:
    """Where the next forward pass writes, and how far it reads."""

    def __init__(self) -> None:
        self.slots: Tensor | None = None
        """(n,) slots of the pass's rows; None: the first n."""
        self.read: Tensor | slice = slice(0, 0)
        """The slots that attention reads."""
        self.places = torch.zeros(0, 0, dtype=torch.long)
        """(n, T) where in its slot each of the pass's tokens goes."""
        self.width = 0
        """So many tokens of each slot are read."""
        self.room = (0, 0)
        """Slots, and tokens of each, that there must be."""
        self._flat: dict[int, Tensor] = {}

    def turn_to(self, slots: Tensor | None, places: Tensor, width: int, read: Tensor | slice, rows: int) -> None:
        """The next pass; ``rows`` are in the batch."""
        self.slots, self.places, self.width, self.read = slots, places, width, read
        self.room = (1 << (rows - 1).bit_length(), width_for(width))  # in large steps, as making room copies
        self._flat = {}

    def flat(self, tokens: int) -> Tensor:
        """(n T,) the pass's tokens among those of all slots, of which each holds ``tokens``."""
        if tokens not in self._flat:  # the same for every layer
            places = self.places
            rows = torch.arange(len(places), device=places.device) if self.slots is None else self.slots
            self._flat[tokens] = (rows[:, None] * tokens + places).flatten()
        return self._flat[tokens]


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, (slots, tokens, heads, head_dim) each."""

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
            slots, tokens = max(slots, old.shape[0]), max(tokens, old.shape[1])
        # Zeros, for what is masked is multiplied by 0 all the same, and 0 * NaN is NaN.
        made = like.new_zeros(slots, tokens, like.shape[1], like.shape[3])
        if old is not None:
            made[: old.shape[0], : old.shape[1]] = old
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put (n, heads, T, head_dim) where the window says; what attention reads, (n, heads, width, head_dim)."""
        slots, tokens = self._window.room
        if self.keys is None or self.keys.shape[0] < slots or self.keys.shape[1] < tokens:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, held: Tensor, new: Tensor) -> Tensor:
        window = self._window
        flat = new.transpose(1, 2).flatten(0, 1)  # (n T, heads, head_dim)
        held.flatten(0, 1).index_copy_(0, window.flat(held.shape[1]), flat)
        return held[window.read, : window.width].transpose(1, 2)  # (n, heads, width, head_dim)

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
