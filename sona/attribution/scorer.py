"""Who says how likely a model finds tokens: the model in this process, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sona.checks import Float32, Int32
from sona.errors import InvalidInputError, ScoringError, SonaError

Range = tuple[int, int]
"""Tokens from the first number up to, and without, the second; the first is at least 1: nothing foretells token 0."""


@dataclass(frozen=True, eq=False)
class Passage:
    """Tokens, and which of them are to be scored."""

    ids: Int32
    """int32 (tokens,)"""
    ranges: tuple[Range, ...]
    """In order, none overlapping another."""

    def __post_init__(self) -> None:
        reached = 1
        for start, end in self.ranges:
            if not reached <= start < end <= len(self.ids):
                raise InvalidInputError(
                    f"ranges: ({start}, {end}); each begins at {reached} or later here, ends after its begin and at "
                    f"{len(self.ids)} at most, and they are in order"
                )
            reached = end


Scores = list[Float32]
"""Of each range the natural logarithms of p(token | all tokens before it), float32 (its tokens,)."""


class Scorer(Protocol):
    """Scores tokens by one model. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """For a person: what it is, such as ``in process`` or a server's address."""

    @property
    def max_tokens(self) -> int:
        """The longest passage that it takes."""

    @property
    def noise_floor(self) -> float:
        """In nats: what a response's total may move by rounding alone. Nothing below it is a finding."""

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        """The log-probabilities of the tokens in ``ranges``.

        Args:
            ids: int32 (tokens,).
            ranges: as in :class:`Passage`.

        Raises:
            InvalidInputError: more tokens than it takes, or a range outside them.
            UnknownTokenError: a token id is outside the vocabulary: the ids are of another tokenizer.
            ScoringError: it can't be reached, or what it says is no score.
        """


Answer = tuple[int, "Scores | SonaError"]
"""Which passage, and its scores or why there are none."""


@runtime_checkable
class PassagesScorer(Protocol):
    """A :class:`Scorer` that is faster with many passages at once, be it that they share work or travel together."""

    def score_all(self, passages: Sequence[Passage]) -> Iterator[Answer]:
        """Each passage's scores as they are done, in any order, each once. The first passage is the whole; the others
        are mostly like it.

        What fails one passage is its answer; what is raised ends all of them. Closing the iterator ends the work.
        """


@runtime_checkable
class VersionedScorer(Protocol):
    """A :class:`Scorer` of a model that another version may be swapped into at any time."""

    @property
    def version(self) -> str:
        """The version that it scores by; empty while nobody knows."""

    def hold(self) -> AbstractContextManager[Scorer]:
        """One that scores by a single version until the block ends, whatever is swapped meanwhile. Where the version
        can't be held, what another one answered is a :class:`ScoringError`.
        """


def held(scorer: Scorer) -> AbstractContextManager[Scorer]:
    """The scorer, by a single version until the block ends, as far as it has versions."""
    return scorer.hold() if isinstance(scorer, VersionedScorer) else nullcontext(scorer)


def version_of(scorer: Scorer) -> str:
    """The version that a scorer scores by; empty where it has none, or nobody knows."""
    return scorer.version if isinstance(scorer, VersionedScorer) else ""


def scores_of(scorer: Scorer, passages: Sequence[Passage]) -> Generator[Answer, None, None]:
    """As :meth:`PassagesScorer.score_all`, by any scorer: one after the other where it knows no better way."""
    if isinstance(scorer, PassagesScorer):
        yield from scorer.score_all(passages)
        return
    for place, passage in enumerate(passages):
        try:
            yield place, scorer.score(passage.ids, passage.ranges)
        except SonaError as error:
            yield place, error


def check_scores(scores: Scores, passage: Passage) -> None:
    """Raises :class:`ScoringError` where they are not finite log-probabilities of the passage's ranges."""
    wanted = [end - start for start, end in passage.ranges]
    if [len(part) for part in scores] != wanted:
        raise ScoringError(f"scores: of {[len(part) for part in scores]} tokens; {wanted} were asked for")
    for (start, _), part in zip(passage.ranges, scores, strict=True):
        bad = np.flatnonzero(~np.isfinite(part) | (part > 1e-3))  # rounding may lead just above 0
        if len(bad):
            raise ScoringError(
                f"scores: {part[bad[0]]} at token {start + int(bad[0])}; a log-probability is finite and at most 0: "
                "the model's numbers overflow, or its server is broken"
            )
