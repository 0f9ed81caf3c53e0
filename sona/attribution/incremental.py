"""Scores a few memories at a time, those whose score is oldest first, in the background of a conversation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sona.attribution.comparison import CHUNK_TOKENS
from sona.attribution.context import CONVERSATION, Context
from sona.attribution.memories import WINDOW, responses_after, score_memory
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec, Encoded, encode
from sona.attribution.weights import KEEP, WeightStore, after, first_weight
from sona.candidate import MemoryWeight
from sona.errors import InvalidInputError, SonaError

CUT_OFF = 0.6
"""Of the context's tokens: what surfaced later has had too few responses to show its worth."""
NS = 1_000_000_000


@dataclass(frozen=True)
class Incremental:
    """How much is scored at a time.

    Raises:
        InvalidInputError: a value outside its range.
    """

    max_age_s: float
    """A memory that was scored within so many seconds is not due."""
    limit: int | None = None
    """So many are scored at most; None: all that are due."""
    cut_off: float = CUT_OFF
    """Share of the context's tokens beyond which a memory is skipped; those of identity count as at its start."""
    window: int = WINDOW
    """Responses after each that are looked at."""
    keep: float = KEEP
    """Share of the earlier weight that stays."""
    chunk_tokens: int = CHUNK_TOKENS
    """A longer context is scored in chunks of about so many tokens."""

    def __post_init__(self) -> None:
        if not self.max_age_s >= 0 or not 0.0 <= self.cut_off <= 1.0 or not 0.0 <= self.keep < 1.0:
            raise InvalidInputError(
                f"max_age_s, cut_off, keep: {self.max_age_s}, {self.cut_off}, {self.keep}; from 0, from 0 to 1, and "
                "from 0 to below 1 are allowed"
            )


@dataclass(frozen=True)
class Scored:
    """What became of one memory."""

    key: str
    status: Literal["scored", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped or failed."""
    nats: float = 0.0
    """Its worth this time."""
    weight: MemoryWeight | None = None
    """As it was written to the store."""


def score_incremental(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    store: WeightStore,
    settings: Incremental,
    *,
    told: Mapping[str, float] = MappingProxyType({}),
    now_ns: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Scored]:
    """Score the memories that are due, each once, the longest unscored first. What is scored is in the store before it
    is told; an error is told, and the next memory's turn comes.

    Args:
        context: where they are.
        codec: the model's.
        scorer: the model.
        store: what they were worth before.
        settings: how much.
        told: nats of memories that were scored against each response of their window before: nobody is asked for
            these, and they don't count for ``settings.limit``.
        now_ns: nanoseconds since 1970; None: now.
        stop: set it to end the work after the memory under way.

    Raises:
        ModelError: the chat template refuses the context.
    """
    at_ns = time.time_ns() if now_ns is None else now_ns
    due = _due(context, store, at_ns - int(settings.max_age_s * NS))
    if not due:
        return
    whole, scored = encode(context, codec), 0
    for key, known in due:
        if stop is not None and stop.is_set():
            return
        if reason := _why_not(context, whole, key, settings.cut_off):
            yield Scored(key, "skipped", reason)
            continue
        if key not in told and settings.limit is not None and scored >= settings.limit:
            if told:
                continue
            return
        scored += key not in told
        try:
            nats = told[key] if key in told else _worth(context, codec, scorer, key, settings)
            weight = after(known, nats, at_ns, settings.keep) if known else first_weight(key, nats, at_ns)
            store.write_weight(weight)
        except SonaError as error:
            yield Scored(key, "failed", str(error))
            continue
        yield Scored(key, "scored", nats=nats, weight=weight)


def _worth(context: Context, codec: Codec, scorer: Scorer, key: str, settings: Incremental) -> float:
    return score_memory(context, codec, scorer, key, window=settings.window, chunk_tokens=settings.chunk_tokens).weight


def _due(context: Context, store: WeightStore, before_ns: int) -> list[tuple[str, MemoryWeight | None]]:
    """The memories that were last scored before then, the oldest score first; never scored is older still."""
    known = [(key, store.weight_of(key)) for key in context.keys]
    due = [(key, weight) for key, weight in known if weight is None or weight.last_scored_ns < before_ns]
    return sorted(due, key=lambda pair: pair[1].last_scored_ns if pair[1] else -1)


def _why_not(context: Context, whole: Encoded, key: str, cut_off: float) -> str:
    """Why a memory is not scored now; empty where it is."""
    if not responses_after(context, key):
        return "no response after it"
    first = context.first_of(key)
    assert first is not None
    in_identity = context.places[first] < CONVERSATION
    start = 0 if in_identity or first not in whole.memories else whole.memories[first][0]
    if start > cut_off * len(whole.ids):
        return f"it begins at token {start} of {len(whole.ids)}, beyond {cut_off:.0%}"
    return ""
