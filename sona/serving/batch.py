"""Forward passes for several answers at once, each with its own adapter, fast weights and length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from sona.serving.adapted import AdaptedModel
from sona.serving.adapters import Adapter
from sona.serving.batch_cache import FINE_STEP, STEP, WIDE_HEAD, BatchCache, width_for
from sona.serving.head import FastHead, fast_weights
from sona.serving.seat import Seat

BLOCK = 16
"""Prompts are padded to a multiple of so many tokens, on the right."""


class Rows(Protocol):
    """What the scheduler drives."""

    together: bool
    """Whether a pass takes several rows; else one."""
    at_once: bool
    """Whether it takes rows that read and rows that write."""
    chunk: int
    """Tokens of a prompt that are read at once."""

    def join(self, seat: Seat) -> None:
        """Give it a place."""

    def leave(self, seat: Seat) -> None:
        """Free its place."""

    def forward(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> Tensor:
        """Read ``feeds[n]`` for row n, after what it has read; logits (n, V) after each one's last token."""


class Batch:
    """Rows that share a cache and are computed together; for one thread.

    A pass that raises can be made again: what it wrote is written over.
    """

    together = True
    at_once = False
    chunk = 256

    def __init__(self, model: AdaptedModel, pad_id: int) -> None:
        self._adapted, self._model, self._pad_id = model, model.model, pad_id
        self._head = FastHead(model.model)
        config = self._model.config.get_text_config(decoder=True)
        self._cache = BatchCache(int(config.num_hidden_layers))
        self._seats: list[Seat] = []
        self._step = _step_for(config)
        # Kept, as a model looks for its device and its type among its weights, each time.
        self._device, dtype = self._model.device, self._model.dtype
        self._nothing = torch.zeros((), dtype=dtype, device=self._device)
        self._lowest = self._nothing + torch.finfo(dtype).min
        self._counting = torch.arange(BLOCK, device=self._device)

    def join(self, seat: Seat) -> None:
        """See :meth:`Rows.join`."""
        seat.slot = len(self._seats)
        self._seats.append(seat)

    @torch.inference_mode()  # as the cache was made in it
    def leave(self, seat: Seat) -> None:
        """See :meth:`Rows.leave`; the last row takes the place, so that those there are stand at the front."""
        last = self._seats.pop()
        if last is not seat:
            self._cache.move(last.slot, seat.slot)
            self._seats[seat.slot], last.slot = last, seat.slot
        self._cache.clear(len(self._seats))
        if not self._seats:
            self._adapted.set_rows(())  # an adapter that nobody serves any more leaves memory
            self._cache.shrink()

    @torch.inference_mode()
    def forward(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`Rows.forward`.

        Raises:
            RowsLostError: the rows have different adapters, and a layer can't tell them apart.
        """
        if all(seat.writing for seat in seats) and 2 * len(seats) >= len(self._seats):
            return self._everyone(seats, feeds)
        slots = torch.tensor([seat.slot for seat in seats], device=self._device)
        return self._pass(seats, feeds, [seat.adapter for seat in seats], slots)

    def _everyone(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> Tensor:
        """A token for each, with all rows in the pass: that reads the cache in place. Those that are not asked for
        read a token that is written over by their next one, with an adapter that is there anyway.
        """
        fed = dict(zip(seats, feeds, strict=True))
        adapters = [(seat if seat in fed else seats[0]).adapter for seat in self._seats]
        logits = self._pass(self._seats, [fed.get(seat, (self._pad_id,)) for seat in self._seats], adapters, None)
        return logits[[seat.slot for seat in seats]]

    def _pass(
        self,
        seats: Sequence[Seat],
        feeds: Sequence[Sequence[int]],
        adapters: Sequence[Adapter | None],
        slots: Tensor | None,
    ) -> Tensor:
        # One that reads a single token reads it as it would beside a longer one.
        tokens = 1 if all(seat.writing for seat in seats) else -(-max(map(len, feeds)) // BLOCK) * BLOCK
        width = width_for(max(seat.read for seat in seats) + tokens, self._step)
        ids = [[*feed, *[self._pad_id] * (tokens - len(feed))] for feed in feeds]
        starts = torch.tensor([seat.read for seat in seats], device=self._device)[:, None]
        places, positions, last = starts, starts, None  # (n, T)
        if tokens > 1:
            last = torch.tensor([len(feed) - 1 for feed in feeds], device=self._device)
            places = starts + self._count_to(tokens)
            # A padding token's place may be beyond the positions that the model has.
            positions = torch.minimum(places, starts + last[:, None])
            last = last + tokens * self._count_to(len(seats))  # among all tokens of the pass
        read = slice(0, len(seats)) if slots is None else slots
        self._cache.window.turn_to(slots, places, width, read, len(self._seats))
        self._adapted.set_rows(adapters)
        with self._head.of([seat.fast for seat in seats], last):
            out = self._model(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=self._mask(places, width),
                position_ids=positions,
                past_key_values=self._cache.cache,
                use_cache=True,
            )
        logits: Tensor = out.logits[:, 0].float()  # (n, V)
        return logits

    def _mask(self, places: Tensor, width: int) -> Tensor:
        """(n, 1, T, width), 0 where a token may look and the lowest number elsewhere."""
        seen = self._count_to(width) <= places[:, None, :, None]
        return torch.where(seen, self._nothing, self._lowest)

    def _count_to(self, count: int) -> Tensor:
        """(count,) from 0."""
        if len(self._counting) < count:
            self._counting = torch.arange(2 * count, device=self._device)
        return self._counting[:count]


class Apart:
    """Rows with a cache each, computed one by one: for models whose caches can't be put together."""

    together = at_once = False
    chunk = 2**31  # a recurrent layer need not be able to read on

    def __init__(self, model: AdaptedModel) -> None:
        self._adapted, self._model = model, model.model
        self._caches: dict[Seat, DynamicCache] = {}

    def join(self, seat: Seat) -> None:
        """See :meth:`Rows.join`."""
        self._caches[seat] = DynamicCache(config=self._model.config)

    def leave(self, seat: Seat) -> None:
        """See :meth:`Rows.leave`."""
        del self._caches[seat]
        if not self._caches:
            self._adapted.set_rows(())

    @torch.inference_mode()
    def forward(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`Rows.forward`; one row. What it wrote stays, so that a pass that raised can't be made again."""
        ((seat, feed),) = zip(seats, feeds, strict=True)
        self._adapted.set_rows([seat.adapter])
        ids = torch.tensor([list(feed)], device=self._model.device)
        with fast_weights(self._model, [seat.fast]):
            out = self._model(input_ids=ids, past_key_values=self._caches[seat], use_cache=True)
        logits: Tensor = out.logits[:, -1].float()
        return logits


def _step_for(config: PreTrainedConfig) -> int:
    """In which steps the width grows."""
    heads = getattr(config, "num_attention_heads", 0)
    head = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return FINE_STEP if config._attn_implementation == "sdpa" and head >= WIDE_HEAD else STEP
