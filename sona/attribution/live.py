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
from sona.attribution.need import Known, Need, joined, need_of
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
    """By the passage's place, the last time."""

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
        live_tokens: so many tokens of variants are kept, at most, beside the whole; those of the longest go first.
    """

    def __init__(self, scorer: LeaveOneOut, *, live_tokens: int = LIVE_TOKENS) -> None:
        if live_tokens < 0:
            raise InvalidInputError(f"live_tokens: {live_tokens}; at least 0 is allowed")
        self._scorer, self._live_tokens, self._kept = scorer, live_tokens, Kept()

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
            held = copy.copy(self)
            held._scorer = scorer
            yield held

    @property
    def kept_tokens(self) -> int:
        """Of variants, beside the whole."""
        return sum(strand.block.tokens for strand in self._kept.strands.values())

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
        self._shorten()

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
        readings: dict[int, tuple[Need, Reading]] = {}
        for place in range(1, len(passages)):
            readings[place] = self._reading(place, passages[place], whole, known, same, old)
        tokens = {place: need.tokens for place, (need, _) in readings.items()}
        for group in groups_of(tokens, step):
            computed = read_group(tree, [readings[place][1] for place in group], step)
            for place, scores in zip(group, computed, strict=True):
                if readings[place][0].tokens:
                    kept.strands[place].ids = passages[place].ids[: readings[place][0].end]
                yield place, joined(passages[place], readings[place][0], scores, known)

    def _reading(
        self, place: int, passage: Passage, whole: Passage, known: Known, same: int, old: dict[int, Strand]
    ) -> tuple[Need, Reading]:
        """What of a variant must be read, going on from its strand where it has a good one."""
        need = need_of(passage, whole, known)
        strand = _going_on(passage, same, old.get(place))
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

    def _shorten(self) -> None:
        """Let go of the longest strands until no more is kept than may be."""
        strands = self._kept.strands
        for place in sorted(strands, key=lambda place: -strands[place].block.tokens):
            if self.kept_tokens <= self._live_tokens:
                return
            del strands[place]


def _going_on(passage: Passage, same: int, strand: Strand | None) -> Strand | None:
    """The strand, if the passage begins as it does and the whole still begins as it did."""
    if strand is None or strand.shared > same or shared(strand.ids, passage.ids) < strand.shared:
        return None
    return strand
