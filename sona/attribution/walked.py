"""Passages that share beginnings, by the model's own cache: for attention that pieces can't be packed for, and for
layers with a recurrent state, which can't be cropped.

A cache of plain keys and values is read once and seen up to any token. Of any other the state at a token is only there
when the model stands at it: then the whole passage is read a second time, from border to border, and at each border a
copy goes on as the variant that begins there, so that one copy is in memory at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sona.attribution.need import joined, need_of
from sona.attribution.passes import as_tokens, hidden_rows, log_probs, rows_before, split, vocab_of
from sona.attribution.scorer import Passage, Range, Scores
from sona.ports import ModelTree


class Walk:
    """A model's cache that stands at a token of a passage."""

    def __init__(self, tree: ModelTree, step: int) -> None:
        self._tree, self._step = tree, step
        self._cache: Any = DynamicCache(config=tree.model.config)
        self.at = 0
        """So many tokens have been read."""

    def read(self, ids: Tensor, ranges: Sequence[Range] = ()) -> Scores:
        """Read on to the end of ``ids``, all tokens of the passage; the scores of ``ranges``, which begin behind
        :attr:`at`.
        """
        rows = rows_before(ranges).to(ids.device)
        hidden = []
        while self.at < len(ids):
            end = min(len(ids), self.at + self._step)
            here = rows[(rows >= self.at) & (rows < end)] - self.at
            hidden.append(
                hidden_rows(
                    self._tree,
                    here,
                    input_ids=ids[None, self.at : end],
                    past_key_values=self._cache,
                    use_cache=True,
                )
            )
            self.at = end
        if not len(rows):
            return []
        return split(log_probs(self._tree.logits, torch.cat(hidden), ids[rows + 1], vocab_of(self._tree)), ranges)

    @property
    def rewinds(self) -> bool:
        """Whether every layer's state at an earlier token can be had of the one now."""
        # ``is_croppable`` is no answer: sliding windows and convolutions say yes, and then refuse unless they were told
        # before to keep their past.
        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def fork(self, at: int) -> Walk:
        """One that stands at token ``at``, and leaves this one as it is; at an earlier token than this one only where
        it :attr:`rewinds`.
        """
        forked = copy.copy(self)
        forked._cache = copy.copy(self._cache)
        forked._cache.layers = [_until(layer, at) for layer in self._cache.layers]
        forked.at = at
        return forked


def _until(layer: Any, at: int) -> Any:
    if type(layer) is not DynamicLayer:
        return copy.deepcopy(layer)
    view = copy.copy(layer)  # what is read on is put into new tensors
    if layer.keys is not None and layer.values is not None:
        view.keys, view.values = layer.keys[..., :at, :], layer.values[..., :at, :]
    return view


def walked_scores(tree: ModelTree, passages: Sequence[Passage], step: int) -> Iterator[tuple[int, Scores]]:
    """As :func:`sona.attribution.packed.packed_scores`, in another order where the cache does not rewind."""
    whole = passages[0]
    ids = as_tokens(whole.ids, tree.model.device)
    walk = Walk(tree, step)
    known = dict(zip(whole.ranges, walk.read(ids, whole.ranges), strict=True))
    yield 0, list(known.values())
    needs = {place: need_of(passages[place], whole, known) for place in range(1, len(passages))}
    rewinds = walk.rewinds
    if not rewinds:
        walk = Walk(tree, step)
    for place in sorted(needs, key=lambda place: needs[place].start, reverse=rewinds):
        need, passage = needs[place], passages[place]
        scores: Scores = []
        if need.tokens:
            if not rewinds:
                walk.read(ids[: need.start])
            scores = walk.fork(need.start).read(as_tokens(passage.ids[: need.end], ids.device), need.ranges)
        yield place, joined(passage, need, scores, known)
