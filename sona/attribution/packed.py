"""Passages that share beginnings: the whole once, and of each other only what differs, packed side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sona.attribution.cascade import Block, Past, Piece
from sona.attribution.need import Need, joined, need_of
from sona.attribution.passes import as_tokens, log_probs, packed_rows, rows_before, split, vocab_of, wanted_within
from sona.attribution.scorer import Passage, Range, Scores
from sona.ports import ModelTree


def read_in_steps(
    tree: ModelTree, ids: Tensor, block: Block, ranges: Sequence[Range], step: int, past: Sequence[Past] = ()
) -> Scores:
    """Read ``ids`` (all tokens of a passage) from where the past and the block end, at most ``step`` at a time, into
    the block; the scores of ``ranges``, whose first is foretold behind that.
    """
    hidden = []
    for start in range(sum(tokens for _, tokens in past) + block.tokens, len(ids), step):
        end = min(len(ids), start + step)
        wanted = wanted_within(ranges, start, end)
        hidden.append(packed_rows(tree, [Piece(ids[start:end], (*past, (block, block.tokens)), block, wanted)]))
    if not ranges:
        return []
    targets = ids[rows_before(ranges).to(ids.device) + 1]
    return split(log_probs(tree.logits, torch.cat(hidden), targets, vocab_of(tree)), ranges)


def packed_scores(tree: ModelTree, passages: Sequence[Passage], step: int) -> Iterator[tuple[int, Scores]]:
    """Each passage's scores, the first one's first, then those that need least. The tree's attention must follow plans
    (:func:`sona.attribution.cascade.cascading`).

    Args:
        tree: the model.
        passages: the first is the whole.
        step: so many tokens are read at once, at most.
    """
    whole = passages[0]
    ids = as_tokens(whole.ids, tree.model.device)
    block = Block()
    known = dict(zip(whole.ranges, read_in_steps(tree, ids, block, whole.ranges, step), strict=True))
    yield 0, list(known.values())
    needs = {place: need_of(passages[place], whole, known) for place in range(1, len(passages))}
    order = sorted(needs, key=lambda place: needs[place].tokens)  # the last memory leaves the least behind it
    for group in _groups(order, needs, step):
        computed = _group_scores(tree, [(passages[place], needs[place]) for place in group], block, step)
        for place, scores in zip(group, computed, strict=True):
            yield place, joined(passages[place], needs[place], scores, known)


def _groups(order: Sequence[int], needs: dict[int, Need], step: int) -> Iterator[list[int]]:
    group: list[int] = []
    size = 0
    for place in order:
        if group and size + needs[place].tokens > step:
            yield group
            group, size = [], 0
        group.append(place)
        size += needs[place].tokens
    if group:
        yield group


def _group_scores(tree: ModelTree, group: Sequence[tuple[Passage, Need]], block: Block, step: int) -> list[Scores]:
    """Of each what it needs."""
    reading = [(passage, need) for passage, need in group if need.tokens]
    if len(reading) == 1 and reading[0][1].tokens > step:
        passage, need = reading[0]
        ids = as_tokens(passage.ids[: need.end], tree.model.device)
        return [read_in_steps(tree, ids, Block(), need.ranges, step, [(block, need.start)])]
    if not reading:
        return [[] for _ in group]
    pieces, targets = [], []
    for passage, need in reading:
        ids = as_tokens(passage.ids[need.start : need.end], tree.model.device)
        wanted = wanted_within(need.ranges, need.start, need.end)
        pieces.append(Piece(ids, ((block, need.start),), wanted=wanted))
        targets += [ids[first + 1 : last + 1] for first, last in wanted]
    values = log_probs(tree.logits, packed_rows(tree, pieces), torch.cat(targets), vocab_of(tree))
    parts = iter(torch.split(values, [sum(last - first for first, last in piece.wanted) for piece in pieces]))
    return [split(next(parts), need.ranges) if need.tokens else [] for _, need in group]
