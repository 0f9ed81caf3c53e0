"""A conversation that grows: each variant's keys and values stay, so that a new turn costs its own tokens alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from sona.attribution.cascade import Block, cascading
from sona.attribution.leave_one_out import LeaveOneOut, answers, checked, prompt_of
from sona.attribution.need import Need, WholeScores, joined, need_of
from sona.attribution.packed import Reading, groups_of, read_group, read_in_steps
from sona.attribution.passes import as_tokens, shared
from sona.attribution.scorer import Answer, Passage, Range, Scores
from sona.checks import Int32
from sona.errors import InvalidInputError
from sona.ports import ModelTree

LIVE_TOKENS = 2**16
"""Of all variants together, beyond what they share with the whole: of a model with 100 KB a token 6.5 GB."""


@dataclass(eq=False)
class Strand:
    """A variant as far as it has been read."""

    ids: Int32
    """Its tokens, from the first."""
    shared: int
    """So many of them are the whole's, and their keys and values too."""
    block: Block = field(default_factory=Block)
    """Keys and values of the others."""


def _nothing() -> Strand:
    return Strand(np.zeros(0, dtype=np.int32), 0)


@dataclass(eq=False)
class Kept:
    """What was read the last time."""

    key: str = ""
    """Of the weights that read it."""
    whole: Strand = field(default_factory=_nothing)
    strands: dict[int, Strand] = field(default_factory=dict)
    """By the passage's place, the last time; another passage may have it the next time."""

    def forget(self) -> None:
        """Keep nothing."""
        self.whole, self.strands = _nothing(), {}


class LiveScorer:
    """A :class:`sona.attribution.scorer.PassagesScorer` that goes on from what it read the last time: passages of a
    conversation that has grown are read from where they differ. For one conversation at a time; any other is scored
    rightly too, and read from its beginning.

    Where the model's attention can't be packed, or when another adapter answers than the last time, all is read anew.

    Args:
        scorer: the model.
        live_tokens: so many tokens of variants are kept, at most, beside the whole; those of the shortest first.
        live_bytes: ... and so many bytes, the whole's with them; None: no other bound.
    """

    def __init__(self, scorer: LeaveOneOut, *, live_tokens: int = LIVE_TOKENS, live_bytes: int | None = None) -> None:
        if live_tokens < 0 or (live_bytes is not None and live_bytes < 0):
            raise InvalidInputError(f"live_tokens, live_bytes: {live_tokens}, {live_bytes}; at least 0 is allowed")
        self._scorer, self._live_tokens, self._live_bytes = scorer, live_tokens, live_bytes
        self._kept = Kept()

    @property
    def name(self) -> str:
        """For a person."""
        return self._scorer.name

    @property
    def max_tokens(self) -> int:
        """The longest passage that it takes."""
        return self._scorer.max_tokens

    @property
    def noise_floor(self) -> float:
        """The model's."""
        return self._scorer.noise_floor

    @property
    def version(self) -> str:
        """The model's, as far as it has versions; else empty."""
        return self._scorer.version

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """See :meth:`sona.attribution.scorer.VersionedScorer.hold`; both keep the same."""
        with self._scorer.hold() as scorer:
            yield self.through(scorer)

    def through(self, scorer: LeaveOneOut) -> Self:
        """The same conversation, what is kept of it too, by another scorer of the same model."""
        other = copy.copy(self)
        other._scorer = scorer
        return other

    @property
    def kept_tokens(self) -> int:
        """Of variants, beside the whole."""
        return sum(strand.block.tokens for strand in self._kept.strands.values())

    @property
    def kept_bytes(self) -> int:
        """Of the whole and the variants."""
        return self._kept.whole.block.bytes() + sum(strand.block.bytes() for strand in self._kept.strands.values())

    def forget(self) -> None:
        """Keep nothing; the next passages are read from their beginning."""
        self._kept.forget()

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        """See :meth:`sona.attribution.scorer.Scorer.score`; what is kept stays as it is."""
        return self._scorer.score(ids, ranges)

    def score_all(self, passages: Sequence[Passage]) -> Iterator[Answer]:
        """See :meth:`sona.attribution.scorer.PassagesScorer.score_all`."""
        for passage in passages:
            self._scorer.check(passage)
        if not passages:
            return
        with self._scorer.lent(prompt_of(passages[0])) as (tree, way):
            if way != "packed":
                for place, scores in answers(tree, passages, way, self._scorer.step_tokens):
                    yield place, checked(scores, passages[place])
                return
            if tree.key != self._kept.key:
                self.forget()
                self._kept.key = tree.key
            whole_read = False
            try:
                with cascading(tree.model):
                    for place, scores in self._read(tree, passages):
                        yield place, checked(scores, passages[place])
                whole_read = True
            finally:
                if not whole_read:  # broken off amid a pass: what is kept may be half written
                    self.forget()

    def _read(self, tree: ModelTree, passages: Sequence[Passage]) -> Iterator[tuple[int, Scores]]:
        whole, step, kept = passages[0], self._scorer.step_tokens, self._kept
        same = shared(kept.whole.ids, whole.ids)
        start = min([same, *(first - 1 for first, _ in whole.ranges[:1])])
        kept.whole.block.tokens = start
        ids = as_tokens(whole.ids, tree.model.device)
        known = dict(zip(whole.ranges, read_in_steps(tree, ids, kept.whole.block, whole.ranges, step), strict=True))
        kept.whole.ids = whole.ids
        yield 0, list(known.values())
        old, kept.strands = kept.strands, {}
        readings = {
            place: self._reading(place, passages[place], whole, known, same, old) for place in range(1, len(passages))
        }
        old.clear()  # what no passage goes on from
        room = self._room()
        for group in groups_of({place: need.tokens for place, (need, _) in readings.items()}, step):
            reading = []
            for place in group:
                room -= (size := kept.strands[place].block.tokens + readings[place][0].tokens)
                if room < 0:
                    room += size
                    del kept.strands[place]
                reading.append(readings[place][1] if place in kept.strands else readings[place][1].unkept())
            for place, scores in zip(group, read_group(tree, reading, step), strict=True):
                if readings[place][0].tokens and place in kept.strands:
                    kept.strands[place].ids = passages[place].ids[: readings[place][0].end]
                yield place, joined(passages[place], readings[place][0], scores, known)

    def _reading(
        self, place: int, passage: Passage, whole: Passage, known: WholeScores, same: int, old: dict[int, Strand]
    ) -> tuple[Need, Reading]:
        """What of a variant must be read, going on from a strand where there is a good one."""
        need = need_of(passage, whole, known)
        strand = _taken(passage, place, need.start, same, old)
        if strand is None or not need.tokens:
            strand = strand or Strand(passage.ids[: need.start], need.start)
        else:
            start = min(shared(strand.ids, passage.ids), need.ranges[0][0] - 1)
            if start < strand.shared:
                strand = Strand(passage.ids[:start], start)
            need = Need(start, need.end, need.ranges)
            strand.block.tokens = start - strand.shared
        self._kept.strands[place] = strand
        past = ((self._kept.whole.block, strand.shared), (strand.block, strand.block.tokens))
        return need, Reading(passage, need, past, strand.block if need.tokens else None)

    def _room(self) -> int:
        """Tokens of variants that may be kept beside the whole, which has been read."""
        if self._live_bytes is None:
            return self._live_tokens
        whole = self._kept.whole.block
        stored = next((keys.shape[2] for keys, _ in whole.layers.values()), 0)
        left = max(0, self._live_bytes - whole.bytes())
        # What grows has a quarter more room than it needs.
        return min(self._live_tokens, left * stored * 4 // (5 * max(whole.bytes(), 1)))


def _taken(passage: Passage, place: int, start: int, same: int, old: dict[int, Strand]) -> Strand | None:
    """The strand that the passage goes on from, taken out of ``old``: that of its own place, if it goes on from all of
    it, or else the one that it has most in common with. None where the whole has as much, its first ``start`` tokens.
    """
    good = {at: strand for at, strand in old.items() if strand.shared <= same}  # the whole still begins as it did
    own = good.get(place)
    if own is not None and shared(own.ids, passage.ids) == len(own.ids):
        return old.pop(place)
    common = {at: shared(strand.ids, passage.ids) for at, strand in good.items()}
    useful = [at for at, tokens in common.items() if tokens > start and tokens >= good[at].shared]
    return old.pop(max(useful, key=lambda at: common[at])) if useful else None
