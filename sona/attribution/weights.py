"""What memories have been worth so far."""

from __future__ import annotations

import threading
from typing import Protocol

from sona.checks import check_count, check_id, check_number, check_time
from sona.errors import InvalidInputError
from sona.types import Record

KEEP = 0.7
"""Of the earlier weight, at each new score."""


class MemoryWeight(Record, kw_only=True):
    """One memory's worth."""

    key: str
    weight: float
    """Nats: an exponentially weighted mean of what it was worth each time."""
    last_scored_ns: int
    """Nanoseconds since 1970."""
    times: int = 1
    """How often it was scored."""

    def __post_init__(self) -> None:
        check_id(self.key, "memory key")
        check_number(self.weight, "memory weight", 0.0)
        check_time(self.last_scored_ns, "last_scored_ns")
        check_count(self.times, "times")

    def after(self, nats: float, at_ns: int, keep: float = KEEP) -> MemoryWeight:
        """The weight with one more score."""
        weight = keep * self.weight + (1.0 - keep) * nats
        return MemoryWeight(key=self.key, weight=weight, last_scored_ns=at_ns, times=self.times + 1)


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
