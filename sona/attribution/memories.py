"""Which memories matter to which responses: all of them, or one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from sona.attribution.comparison import CHUNK_TOKENS, Comparison
from sona.attribution.context import ALL_MEMORIES, Context, Drop
from sona.attribution.effects import Effect, Found
from sona.attribution.matrix import MemoryMatrix, Response, Row
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.errors import ScoringError
from sona.ports import Report, ignore_progress
from sona.types import Progress

STAGE = "score"
WINDOW = 50
"""Responses after a memory that :func:`score_memory` looks at."""


class MatrixRun:
    """One matrix in the making: :meth:`rows` computes it, :meth:`matrix` tells what is there at any time, also after
    what broke it off.

    Args:
        context: nothing in it is altered.
        codec: the model's.
        scorer: the model.
        chunk_tokens: a longer context is scored in chunks of about so many tokens.
        strip_all: leave out all memories at once, too.
        report: told after each row; what it raises ends the work.
        stop: set it to end the work after the row under way.
        responses: those that are looked at, by their segments; None: all.

    Raises:
        InvalidInputError: a turn with the fixed beginning is longer than the model takes.
        ModelError: the chat template refuses the context.
    """

    def __init__(
        self,
        context: Context,
        codec: Codec,
        scorer: Scorer,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        strip_all: bool = False,
        report: Report = ignore_progress,
        stop: threading.Event | None = None,
        responses: Collection[int] | None = None,
    ) -> None:
        self._comparison = Comparison(context, codec, scorer, chunk_tokens=chunk_tokens, responses=responses)
        self._keys = context.keys
        self._noise_floor = scorer.noise_floor if self._keys and self._comparison.tokens else 0.0
        self._report, self._stop = report, stop
        self._strip_all = strip_all and bool(self._keys)
        self._columns = {index: column for column, index in enumerate(self._comparison.tokens)}
        self._responses = tuple(
            Response(index, tokens, context.segments[index].at_ns) for index, tokens in self._comparison.tokens.items()
        )
        self._rows: dict[str, Row] = {}
        self._all: Row | None = None
        self._cancelled = False

    def matrix(self) -> MemoryMatrix:
        """What is done by now."""
        rows = dict(self._rows)
        return MemoryMatrix(
            self._keys,
            self._responses,
            rows,
            self._noise_floor,
            self._cancelled,
            self._all,
            self._comparison.version,
        )

    def rows(self) -> Iterator[Row]:
        """Each memory's row as it is done or has failed, each once, and that of all memories (its key is empty) where
        it was asked for.
        """
        drops = [Drop(keys=(key,)) for key in self._keys] + [ALL_MEMORIES] * self._strip_all
        parts = [_Part(name, len(self._responses)) for name in (*self._keys, *[""] * self._strip_all)]
        for number, drop in enumerate(drops):
            parts[number].chunks = len(self._comparison.chunks_with(drop))
        done = 0
        for part in parts:
            if not part.chunks:
                yield self._finish(part, done := done + 1, len(parts))
        with closing(self._comparison.run(drops)) as founds:
            for found in founds:
                if parts[found.drop].add(found, self._columns):
                    yield self._finish(parts[found.drop], done := done + 1, len(parts))
                if done < len(parts) and self._stop is not None and self._stop.is_set():
                    self._cancelled = True
                    return

    def _finish(self, part: _Part, done: int, total: int) -> Row:
        row = Row(part.key, part.nats, part.failure)
        if part.key:
            self._rows[part.key] = row
        else:
            self._all = row
        self._report(Progress(stage=STAGE, done=done, total=total, note=part.failure))
        return row


class _Part:
    """A row in the making."""

    def __init__(self, key: str, responses: int) -> None:
        self.key, self.failure, self.chunks = key, "", 0
        self.nats = np.zeros(responses)

    def add(self, found: Found, columns: dict[int, int]) -> bool:
        """Take in what one chunk gave; whether it was the last of them."""
        for index, effect in found.effects.items():
            self.nats[columns[index]] = effect.nats
        if found.failure:
            self.failure = self.failure or found.failure
            self.nats[[columns[index] for index in found.lost if index in columns]] = np.nan
        self.chunks -= 1
        return self.chunks == 0


def score_memories(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    strip_all: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
    report: Report = ignore_progress,
    stop: threading.Event | None = None,
) -> MemoryMatrix:
    """The full matrix of memories and responses; see :class:`MatrixRun` for the arguments.

    It costs one pass of the whole, and of each memory one of what comes after it. ``on_row`` is told each row as it is
    done. A context without memories or without responses gives an empty matrix, and asks nobody.
    """
    run = MatrixRun(context, codec, scorer, chunk_tokens=chunk_tokens, strip_all=strip_all, report=report, stop=stop)
    for row in run.rows():
        on_row(row)
    return run.matrix()


@dataclass(frozen=True)
class OneMemory:
    """What one memory is worth."""

    key: str
    effects: tuple[Effect, ...] = ()
    """On each response of the window, in order."""
    version: str = ""
    """The version of the model that scored it; empty where it has none, or nobody knows."""

    @property
    def weight(self) -> float:
        """Nats: the sum of the divergences; 0 where the memory is not there or nothing follows it."""
        return sum(effect.divergence for effect in self.effects)


def score_memory(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    key: str,
    *,
    window: int = WINDOW,
    chunk_tokens: int = CHUNK_TOKENS,
) -> OneMemory:
    """One memory against the ``window`` responses after it first surfaced: two passes.

    Raises:
        ScoringError: it could not be scored; the message says why.
        InvalidInputError: a turn with the fixed beginning is longer than the model takes.
    """
    following = responses_after(context, key)[:window]
    if not following:
        return OneMemory(key)
    comparison = Comparison(context, codec, scorer, chunk_tokens=chunk_tokens, responses=following)
    effects: dict[int, Effect] = {}
    for found in comparison.run([Drop(keys=(key,))]):
        if found.failure:
            raise ScoringError(f"memory {key!r}: {found.failure}")
        effects.update(found.effects)
    return OneMemory(key, tuple(effects[index] for index in sorted(effects)), comparison.version)


def responses_after(context: Context, key: str) -> Sequence[int]:
    """The segments of the responses after a memory first surfaced; none where it is not there."""
    first = context.first_of(key)
    return [] if first is None else [index for index in context.responses if index > first]
