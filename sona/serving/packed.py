"""Forward passes that read prompts and write tokens at once, all rows' tokens in one line without padding.

All of a model but its attention treats each token by itself, so that it need not know whose it is. Attention is done
for two groups, each as :class:`sona.serving.batch.Batch` would: the rows that write a token, and those that read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sona.errors import ModelError
from sona.serving.adapted import AdaptedModel
from sona.serving.batch import BLOCK, Batch
from sona.serving.batch_cache import width_for
from sona.serving.seat import Seat

ATTENTION = "sona_rows"
"""What transformers knows :func:`attend` by."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a pass with as many queries each; N tokens are in the pass."""

    slots: Tensor | slice
    """Where their keys and values are."""
    mask: Tensor
    """(n, 1, T, width), 0 where a token may look and the lowest number elsewhere."""
    tokens: Tensor
    """(n, T) the pass's tokens that are the queries, any one where a row has fewer."""
    kept: Tensor
    """(m,) which of the n T answers are wanted."""
    targets: Tensor
    """(m,) the pass's tokens that those are for."""


_groups: ContextVar[Sequence[Group]] = ContextVar("groups")


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of ``query`` (1, heads, N, head_dim), each token within its own row of ``key`` and ``value``
    (rows, heads, width, head_dim); (1, N, heads, head_dim).
    """
    by_token = query[0].transpose(0, 1)  # (N, heads, head_dim)
    out = torch.empty_like(by_token[..., : value.shape[-1]], memory_format=torch.contiguous_format)
    for group in _groups.get():
        queries = by_token[group.tokens].transpose(1, 2)  # (n, heads, T, head_dim)
        width = group.mask.shape[-1]
        keys, values = key[group.slots, :, :width], value[group.slots, :, :width]
        found, _ = sdpa_attention_forward(module, queries, keys, values, group.mask, **options)
        out[group.targets] = found.flatten(0, 1)[group.kept]  # of (n, T, heads, head_dim)
    return out[None], None


AttentionInterface.register(ATTENTION, attend)


class Packed(Batch):
    """Rows that share a cache, read and written in one pass; for one thread.

    Raises:
        ModelError: the model's attention is another than torch's own function.
    """

    at_once = True

    def __init__(self, model: AdaptedModel, pad_id: int) -> None:
        super().__init__(model, pad_id)
        self._config = self._model.config.get_text_config(decoder=True)  # of this tree alone
        if self._config._attn_implementation != "sdpa":
            raise ModelError(f"its attention is {self._config._attn_implementation!r}; only 'sdpa' can be divided")

    @torch.inference_mode()
    def forward(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`Rows.forward`."""
        if len(seats) == 1 or all(seat.writing for seat in seats):
            # Rows that write have a token each, and one row alone is padded to its block at most: nobody else's tokens.
            return super().forward(seats, feeds)
        device, begins, first = self._device, dict[Seat, int](), 0
        fed = sorted(zip(seats, feeds, strict=True), key=lambda one: one[0].slot)
        for seat, feed in fed:
            begins[seat] = first
            first += len(feed)
        owners = [seat.slot for seat, feed in fed for _ in feed]
        places = [place for seat, feed in fed for place in range(seat.read, seat.read + len(feed))]
        ids = torch.tensor([[token for _, feed in fed for token in feed]], device=device)  # (1, N)
        positions = torch.tensor([places], device=device)  # (1, N)
        last = [begins[seat] + len(feed) - 1 for seat, feed in zip(seats, feeds, strict=True)]
        width, count = width_for(max(places) + 1, self._step), len(self._seats)
        self._cache.window.turn_to(torch.tensor(owners, device=device), positions.T, width, slice(0, count), count)
        alike = len({seat.adapter for seat in seats}) == 1
        self._adapted.set_rows([seats[0].adapter] if alike else [seat.adapter for seat, feed in fed for _ in feed])
        before = _groups.set(self._grouped(fed, begins))
        self._config._attn_implementation = ATTENTION
        try:
            with self._head.of([seat.fast for seat in seats], torch.tensor(last, device=device)):
                out = self._model(
                    input_ids=ids, position_ids=positions, past_key_values=self._cache.cache, use_cache=True
                )
        finally:
            self._config._attn_implementation = "sdpa"
            _groups.reset(before)
        logits: Tensor = out.logits[:, 0].float()  # (n, V)
        return logits

    def _grouped(self, fed: Sequence[tuple[Seat, Sequence[int]]], begins: Mapping[Seat, int]) -> list[Group]:
        writers = [(seat, begins[seat]) for seat, _ in fed if seat.writing]
        readers = [(seat, begins[seat], feed) for seat, feed in fed if not seat.writing]
        groups = [self._writing(writers)] if writers else []
        return [*groups, self._reading(readers)] if readers else groups

    def _writing(self, rows: Sequence[tuple[Seat, int]]) -> Group:
        width = width_for(max(seat.read for seat, _ in rows) + 1, self._step)
        count = len(self._seats)
        if 2 * len(rows) < count:
            slots = torch.tensor([seat.slot for seat, _ in rows], device=self._device)
            starts = torch.tensor([[seat.read] for seat, _ in rows], device=self._device)
            tokens = torch.tensor([[begin] for _, begin in rows], device=self._device)
            return Group(slots, self._mask(starts, width), tokens, self._count_to(len(rows)), tokens[:, 0])
        # All slots, which reads the cache in place; what comes of those that don't write is left.
        read, queries = [0] * count, [0] * count
        for seat, begin in rows:
            read[seat.slot], queries[seat.slot] = seat.read, begin
        mask = self._mask(torch.tensor(read, device=self._device)[:, None], width)
        kept = torch.tensor([seat.slot for seat, _ in rows], device=self._device)
        targets = torch.tensor([begin for _, begin in rows], device=self._device)
        return Group(slice(0, count), mask, torch.tensor(queries, device=self._device)[:, None], kept, targets)

    def _reading(self, rows: Sequence[tuple[Seat, int, Sequence[int]]]) -> Group:
        tokens = -(-max(len(feed) for _, _, feed in rows) // BLOCK) * BLOCK
        width = width_for(max(seat.read + len(feed) for seat, _, feed in rows), self._step)
        slots = torch.tensor([seat.slot for seat, _, _ in rows], device=self._device)
        starts = torch.tensor([[seat.read] for seat, _, _ in rows], device=self._device)
        queries, kept, targets = list[list[int]](), list[int](), list[int]()
        for place, (_, begin, feed) in enumerate(rows):
            own = range(begin, begin + len(feed))
            queries.append([*own, *[begin] * (tokens - len(feed))])
            kept += range(place * tokens, place * tokens + len(feed))
            targets += own
        as_tensor = [torch.tensor(one, device=self._device) for one in (kept, targets)]
        mask = self._mask(starts + self._count_to(tokens), width)
        return Group(slots, mask, torch.tensor(queries, device=self._device), *as_tensor)
