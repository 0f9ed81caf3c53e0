"""A model made of a rule: how likely an answer is follows from which words stand before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from sona.attribution.context import Context, Segment
from sona.attribution.scorer import Range, Scores
from sona.checks import Int32
from sona.errors import SonaError
from sona.ports import Spelled
from sona.types import Message

Rule = Callable[[frozenset[str]], float]
"""Words before an answer to the log-probability of the whole answer."""


class Words:
    """A codec whose tokens are words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def render_closed(self, messages: Sequence[Message]) -> str:
        return "".join(f" [{message.role}] {message.content}" for message in messages)

    def spell_out(self, text: str, said: Sequence[Range]) -> Spelled:
        found = list(re.finditer(r"\S+", text))
        for one in found:
            if one.group() not in self.words:
                self.words.append(one.group())
        columns = [[self.words.index(one.group()), one.start(), one.end()] for one in found]
        ids, starts, ends = np.asarray(columns, dtype=np.int32).reshape(-1, 3).T
        return Spelled(ids, starts, ends)


class Told:
    """A scorer by a rule. The answer's tokens share its log-probability."""

    name = "a rule"
    max_tokens = 10_000

    def __init__(self, codec: Words, rule: Rule, noise_floor: float = 1e-3) -> None:
        self._codec, self._rule, self.noise_floor = codec, rule, noise_floor
        self.calls = 0
        self.fails: Callable[[int], SonaError | None] = lambda call: None
        """Of the n-th call, from 1."""

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        self.calls += 1
        if (error := self.fails(self.calls)) is not None:
            raise error
        scores = []
        for start, end in ranges:
            before = frozenset(self._codec.words[token] for token in ids[:start])
            total = self._rule(before)
            scores.append(np.full(end - start, total / (end - start), dtype=np.float32))
        return scores


def context_of(*memories: str, answers: int = 1) -> Context:
    """Memories named for their text, then questions with answers of two words."""
    turns = [turn for n in range(answers) for turn in (Segment("user", f"q{n}"), Segment("assistant", f"a{n} b{n}"))]
    return Context((*(Segment("memory", text, key=text) for text in memories), *turns))
