"""One chunk of a context against itself without something, as the scorer answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np

from sona.attribution.chunks import Chunk
from sona.attribution.context import Drop
from sona.attribution.effects import Effect, Found
from sona.attribution.scorer import Passage, Scorer, Scores, check_scores, scores_of
from sona.attribution.tokens import Codec, Encoded
from sona.errors import SonaError

Totals = Mapping[int, float]
"""Nats of each response, by its segment."""


class ChunkRun:
    """Scores one chunk; used once.

    Args:
        chunk: of the context.
        base: it as tokens, nothing dropped.
        codec: the model's.
        scorer: the model.
        wanted: the responses that are looked at, by their segments; None: all.
    """

    def __init__(
        self, chunk: Chunk, base: Encoded, codec: Codec, scorer: Scorer, wanted: Collection[int] | None
    ) -> None:
        self._chunk, self._base, self._codec, self._scorer, self._wanted = chunk, base, codec, scorer, wanted
        self._encoded: list[Encoded] = [base]
        self._waiting: dict[int, int] = {}  # of each row that has no answer yet, its drop
        self._early: dict[int, Totals] = {}  # that came before the whole's
        self._whole: Totals | None = None
        self._whole_failure = ""
        self.dead = ""
        """Why the scorer failed altogether; empty unless it did."""

    def run(self, drops: Mapping[int, Drop]) -> Iterator[Found]:
        """What comes of each drop, by its number, as it is done; each once."""
        yield from self._encode(drops)
        passages = [encoded.passage(self._wanted) for encoded in self._encoded]
        reason = f"{self._scorer.name}: it ended without these scores"
        try:
            with closing(scores_of(self._scorer, passages)) as answers:
                for row, scores in answers:
                    yield from self._take(row, scores, passages[row])
                    if self._whole_failure:
                        reason = self._whole_failure
                        break
        except SonaError as error:
            reason = self.dead = str(error)
        for number in self._waiting.values():
            yield self._failure(number, reason)

    def _encode(self, drops: Mapping[int, Drop]) -> Iterator[Found]:
        """Have the variants ready; tell those that the template refuses."""
        for number, drop in drops.items():
            try:
                encoded = self._chunk.encode(self._codec, drop)
            except SonaError as error:
                yield self._failure(number, str(error))
                continue
            self._waiting[len(self._encoded)] = number
            self._encoded.append(encoded)

    def _take(self, row: int, scores: Scores | SonaError, passage: Passage) -> Iterator[Found]:
        try:
            totals = self._totals(row, scores, passage)
        except SonaError as error:
            if row == 0:
                self._whole_failure = str(error)
            else:
                yield self._failure(self._waiting.pop(row), str(error))
            return
        if row == 0:
            self._whole = totals
        else:
            self._early[row] = totals
        if self._whole is not None:
            for one in list(self._early):
                yield self._found(one, self._whole, self._early.pop(one))

    def _totals(self, row: int, scores: Scores | SonaError, passage: Passage) -> Totals:
        if isinstance(scores, SonaError):
            raise scores
        check_scores(scores, passage)
        indices: Sequence[int] = self._encoded[row].chosen(self._wanted)
        return {index: float(np.sum(part, dtype=np.float64)) for index, part in zip(indices, scores, strict=True)}

    def _found(self, row: int, whole: Totals, without: Totals) -> Found:
        tokens = {index: end - start for index, (start, end) in self._base.responses.items()}
        both = whole.keys() & without.keys()
        effects = {
            index: Effect(index, whole[index] - without[index], tokens[index], whole[index]) for index in sorted(both)
        }
        return Found(self._waiting.pop(row), effects)

    def _failure(self, number: int, reason: str) -> Found:
        return Found(number, failure=reason, lost=tuple(self._base.chosen(self._wanted)))
