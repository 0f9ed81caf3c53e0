"""Bounds on what is done at once, and on how often one client asks."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sona.service.problems import too_many

CLIENTS = 10_000
"""Addresses that are remembered; the one that was silent for longest makes room."""


class Slots:
    """So many at once, and no more. For one event loop."""

    def __init__(self, count: int, what: str) -> None:
        self._count, self._what = count, what
        self.taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One of them until the block ends; ProblemError (429) where all are taken."""
        if self.taken >= self._count:
            raise too_many(f"{self._count} {self._what} are under way, which is the limit; try again")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Rate:
    """Token buckets, one a client: ``per_s`` requests a second, with bursts of twice as many (at least 1).

    Without a limit (0) everything passes.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._size, self._clock = per_s, max(1.0, 2 * per_s), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str) -> None:
        """One request of ``client``; ProblemError (429) where it asks too often."""
        if not self._per_s:
            return
        now = self._clock()
        left, since = self._buckets.pop(client, (self._size, now))
        left = min(self._size, left + (now - since) * self._per_s)
        enough = left >= 1.0
        self._buckets[client] = (left - enough, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            raise too_many(f"more than {self._per_s:g} requests a second", (1.0 - left) / self._per_s)
