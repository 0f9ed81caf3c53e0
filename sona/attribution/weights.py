"""What memories have been worth so far."""

from __future__ import annotations

import threading
from typing import Protocol

import msgspec

from sona.candidate import MemoryWeight
from sona.errors import InvalidInputError

KEEP = 0.7
"""Of the earlier weight, at each new score."""


def after(known: MemoryWeight, nats: float, at_ns: int, keep: float = KEEP) -> MemoryWeight:
    """The weight with one more score."""
    weight = keep * known.weight + (1.0 - keep) * nats
    return msgspec.structs.replace(known, weight=weight, last_scored_ns=at_ns, times=known.times + 1)


def first_weight(key: str, nats: float, at_ns: int) -> MemoryWeight:
    """That of a memory's first score."""
    return MemoryWeight(key=key, weight=nats, last_scored_ns=at_ns)


class WeightStore(Protocol):
    """Keeps the weights. Safe to call from several threads."""

    def weight_of(self, key: str) -> MemoryWeight | None:
        """None: never scored."""

    def write_weight(self, weight: MemoryWeight) -> None:
        """Replace what was there for its key."""


class WeightsInMemory:
    """A :class:`WeightStore` that forgets with its process."""

    def __init__(self) -> None:
        self._weights: dict[str, MemoryWeight] = {}
        self._writing = threading.Lock()

    def weight_of(self, key: str) -> MemoryWeight | None:
        """See :class:`WeightStore`."""
        with self._writing:
            return self._weights.get(key)

    def write_weight(self, weight: MemoryWeight) -> None:
        """See :class:`WeightStore`."""
        if not isinstance(weight, MemoryWeight):
            raise InvalidInputError(f"weight: a {type(weight).__name__}; a MemoryWeight is allowed")
        with self._writing:
            self._weights[weight.key] = weight
