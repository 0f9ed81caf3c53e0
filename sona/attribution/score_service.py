"""Scoring by another sona's ``POST /score``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import msgspec

from sona.attribution.remote import RemoteScorer, Values
from sona.attribution.scorer import Passage
from sona.errors import ScoringError
from sona.http_client import HttpClient

MOST_RANGES = 4096


class RangeScore(msgspec.Struct, frozen=True):
    """Of one stretch."""

    total_logprob: float


class Scored(msgspec.Struct, frozen=True):
    """The answer."""

    scores: list[RangeScore]
    digest: str = ""
    version: str = ""
    adapter: str | None = None


class ScoreService(RemoteScorer):
    """See :class:`sona.attribution.remote.RemoteScorer`; ``max_tokens`` has to be given, for the service does not tell
    it. Each token is a stretch of its own, so that values come token by token.
    """

    kind = "sona"
    version = ""
    """Of the one that is held, once it has answered."""
    _held: set[str] | None = None
    """What has answered the one that is held: version and digest."""

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """One that raises ScoringError once another version answers than did at first: the service holds none."""
        self.probe()
        held = copy.copy(self)
        held._held = set()
        yield held

    def _ask(self, client: HttpClient, passage: Passage) -> Values:
        places = [at for start, end in passage.ranges for at in range(start, end)]
        found, by = dict[int, float](), set[str]()
        # What stands before the earliest stretch is the prompt that picks the adapter: it goes into every request.
        for first in range(1, max(2, len(places)), MOST_RANGES - 1):
            chunk = [places[0], *places[first : first + MOST_RANGES - 1]]
            answer = self._scored(client, passage, chunk)
            found.update(zip(chunk, (score.total_logprob for score in answer.scores), strict=True))
            by.add(f"version {answer.digest[:16]} with {answer.adapter or 'no adapter'}")
            self._note(answer)
        self._check_same(by)
        return Values(self.values_of(passage, found.get), by.pop())

    def _note(self, answer: Scored) -> None:
        """Which version answered; raises where one is held and it is another."""
        if self._held is not None:
            self._held.add(f"version {answer.version or '?'}, {answer.digest[:16]}")
            self._check_same(self._held)
            self.version = answer.version

    def _check_same(self, by: set[str]) -> None:
        if len(by) > 1:
            raise ScoringError(
                f"{self.name}: the version changed while it scored ({' and '.join(sorted(by))}); ask again"
            )

    def _scored(self, client: HttpClient, passage: Passage, chunk: list[int]) -> Scored:
        body = {
            "prompt": passage.ids[: chunk[-1] + 1].tolist(),
            "score_ranges": [(at, at + 1) for at in chunk],
            **({} if self._priority is None else {"priority": self._priority}),
        }
        answer = client.post_json("/score", body, Scored)
        if len(answer.scores) != len(chunk):
            raise ScoringError(
                f"{self.name}: {len(answer.scores)} scores for {len(chunk)} ranges; they must be as many"
            )
        return answer

    def _ask_max_tokens(self, client: HttpClient) -> int:
        raise ScoringError(f"{self.name}: it does not say how long a text it takes; give max_tokens")
