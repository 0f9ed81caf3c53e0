"""A conversation of random tokens with memories in it, and what is left of it without one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sona.attribution.scorer import Passage, Range
from sona.checks import Int32

MEMORIES, RESPONSES = 16, 8
LAYOUTS = ("front", "interleaved", "late")


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some tokens."""

    kind: str
    """system, memory, user or assistant."""
    ids: Int32
    memory: int = -1
    """Which memory it is."""


Turn = list[Stretch]
"""Up to and with a response."""


def conversation(layout: str, vocab: int, seed: int) -> list[Turn]:
    """About 2,000 tokens: a system prompt, 16 memories of 30 to 70 tokens, 8 questions of 40 to 80, 8 responses of 60
    to 95. The memories stand all before the conversation, two in each turn, or four in each turn of its second half.
    """
    rng = np.random.default_rng(seed)

    def stretch(kind: str, low: int, high: int, memory: int = -1) -> Stretch:
        return Stretch(kind, rng.integers(3, vocab, int(rng.integers(low, high))).astype(np.int32), memory)

    system = stretch("system", 80, 121)
    memories = [stretch("memory", 30, 71, number) for number in range(MEMORIES)]
    turns = [[stretch("user", 40, 81), stretch("assistant", 60, 96)] for _ in range(RESPONSES)]
    for turn, first, last in _places(layout):
        turns[turn] = memories[first:last] + turns[turn]
    turns[0] = [system, *turns[0]]
    return turns


def _places(layout: str) -> list[tuple[int, int, int]]:
    """Turn, and the memories that stand at its beginning."""
    if layout == "front":
        return [(0, 0, MEMORIES)]
    if layout == "interleaved":
        return [(turn, 2 * turn, 2 * turn + 2) for turn in range(RESPONSES)]
    return [(turn, 4 * (turn - 4), 4 * (turn - 4) + 4) for turn in range(4, RESPONSES)]


def passages(turns: list[Turn], last_alone: bool = False) -> list[Passage]:
    """The whole, then without each memory that has surfaced, in order.

    Args:
        turns: so far.
        last_alone: whether only the last response is scored.
    """
    there = [part.memory for turn in turns for part in turn if part.memory >= 0]
    return [_passage(turns, dropped, last_alone) for dropped in (None, *there)]


def _passage(turns: list[Turn], dropped: int | None, last_alone: bool) -> Passage:
    ids: list[Int32] = []
    ranges: list[Range] = []
    length = 0
    for turn in turns:
        for part in turn:
            if part.memory >= 0 and part.memory == dropped:
                continue
            if part.kind == "assistant":
                ranges.append((length, length + len(part.ids)))
            ids.append(part.ids)
            length += len(part.ids)
    return Passage(np.concatenate(ids), tuple(ranges[-1:] if last_alone else ranges))
