"""Passages that share beginnings: the whole once, and of each other only what differs, packed side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
    for group in groups_of({place: need.tokens for place, need in needs.items()}, step):
        readings = [Reading(passages[place], needs[place], ((block, needs[place].start),)) for place in group]
        for place, scores in zip(group, read_group(tree, readings, step), strict=True):
            yield place, joined(passages[place], needs[place], scores, known)


@dataclass(frozen=True, eq=False)
class Reading:
    """What is to be read of one passage."""

    passage: Passage
    need: Need
    past: tuple[Past, ...]
    """All tokens before ``need.start``."""
    into: Block | None = None
    """Where its keys and values are kept, if they are."""

    def unkept(self) -> Reading:
        """The same, and nothing is kept of it."""
        return replace(self, into=None)


def groups_of(tokens: Mapping[int, int], step: int) -> Iterator[list[int]]:
    """The keys of ``tokens`` in groups of at most ``step`` tokens, the fewest first: the last memory leaves the least
    behind it. One of more is a group alone.
    """
    group: list[int] = []
    size = 0
    for place in sorted(tokens, key=lambda place: tokens[place]):
        if group and size + tokens[place] > step:
            yield group
            group, size = [], 0
        group.append(place)
        size += tokens[place]
    if group:
        yield group


def read_group(tree: ModelTree, group: Sequence[Reading], step: int) -> list[Scores]:
    """Of each what it needs, in one pass; one alone that is longer than ``step`` in several."""
    reading = [one for one in group if one.need.tokens]
    if not reading:
        return [[] for _ in group]
    if len(reading) == 1 and reading[0].need.tokens > step:
        return [_read_alone(tree, one, step) if one.need.tokens else [] for one in group]
    pieces, targets = [], []
    for one in reading:
        ids = as_tokens(one.passage.ids[one.need.start : one.need.end], tree.model.device)
        wanted = wanted_within(one.need.ranges, one.need.start, one.need.end)
        pieces.append(Piece(ids, one.past, one.into, wanted))
        targets += [ids[first + 1 : last + 1] for first, last in wanted]
    values = log_probs(tree.logits, packed_rows(tree, pieces), torch.cat(targets), vocab_of(tree))
    parts = iter(torch.split(values, [sum(last - first for first, last in piece.wanted) for piece in pieces]))
    return [split(next(parts), one.need.ranges) if one.need.tokens else [] for one in group]


def _read_alone(tree: ModelTree, one: Reading, step: int) -> Scores:
    ids = as_tokens(one.passage.ids[: one.need.end], tree.model.device)
    if one.into is None:
        return read_in_steps(tree, ids, Block(), one.need.ranges, step, one.past)
    before = [(block, tokens) for block, tokens in one.past if block is not one.into]
    return read_in_steps(tree, ids, one.into, one.need.ranges, step, before)
