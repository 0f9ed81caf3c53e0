"""A codec of words, and a scorer whose effects can be worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sona.attribution.context import Context, Segment
from sona.attribution.scorer import Answer, Passage, Range, Scores
from sona.checks import Int32
from sona.errors import InvalidInputError, ScoringError
from sona.ports import Spelled
from sona.types import Message


class WordCodec:
    """``<role> the words </role>``, a token each."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def render_closed(self, messages: Sequence[Message]) -> str:
        return " ".join(f"<{one.role}> {one.content} </{one.role}>" for one in messages)

    def spell_out(self, text: str, said: Sequence[tuple[int, int]]) -> Spelled:
        found = list(re.finditer(r"\S+", text))
        ids = [self.words.setdefault(one.group(), len(self.words)) for one in found]
        return Spelled(*(np.asarray(v, np.int32) for v in (ids, [o.start() for o in found], [o.end() for o in found])))


class HintScorer:
    """A response's word is worth -1 nat, and more by ``hints[memory word, response word]`` if that memory is before it.

    Args:
        codec: whose tokens they are.
        hints: in nats, at most 1 together.
    """

    def __init__(self, codec: WordCodec, hints: Mapping[tuple[str, str], float], *, max_tokens: int = 10_000) -> None:
        self.codec, self.hints, self.max_tokens = codec, hints, max_tokens
        self.name, self.noise_floor = "hints", 0.0
        self.asked: list[tuple[int, int]] = []
        """Of each passage its tokens and its ranges."""

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        if len(ids) > self.max_tokens:
            raise InvalidInputError(f"{len(ids)} tokens")
        self.asked.append((len(ids), len(ranges)))
        words = {number: word for word, number in self.codec.words.items()}
        spelled = [words[int(token)] for token in ids]
        return [np.asarray([self._value(spelled, n) for n in range(*one)], np.float32) for one in ranges]

    def _value(self, words: Sequence[str], place: int) -> float:
        before = set(words[:place])
        gained = [nats for (there, here), nats in self.hints.items() if there in before and here == words[place]]
        return -1.0 + sum(gained)


class FailingScorer(HintScorer):
    """Fails with the answers of some passages, or altogether after some."""

    wrong: Mapping[int, str] = {}
    """By the passage's place: ``nan``, ``error``, ``short``."""
    dies_at: int | None = None

    def score_all(self, passages: Sequence[Passage]) -> Iterator[Answer]:
        for place, passage in enumerate(passages):
            if place == self.dies_at:
                raise ScoringError("the server is gone")
            scores = self.score(passage.ids, passage.ranges)
            kind = self.wrong.get(place)
            if kind == "error":
                yield place, ScoringError("timed out")
                continue
            if kind == "nan":
                scores[0][0] = np.nan
            yield place, scores[:-1] if kind == "short" else scores


def talk(*said: str) -> Context:
    """``"key=text"`` is a memory, ``"kind: text"`` another segment, each response at its own time."""
    segments = []
    for place, one in enumerate(said):
        if ": " in one:
            kind, _, text = one.partition(": ")
            segments.append(Segment(kind, text, at_ns=place + 1))
        else:
            key, _, text = one.partition("=")
            segments.append(Segment("memory", text, key))
    return Context(tuple(segments))
