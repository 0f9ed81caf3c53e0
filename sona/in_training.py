"""Approved candidates that the cycle under way learns from: until it has ended nobody takes their approval back.

A cycle reads what is approved once, at its beginning. It says which it took, whether it runs in a thread or in a
process of its own; until then each that is approved may be among them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from sona.candidate import State
from sona.errors import InTrainingError
from sona.ports import CandidateStore


class InTraining:
    """Which candidates are taken, if any. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cycle: int | None = None
        self._taken: frozenset[int] | None = None

    @contextmanager
    def cycle(self, number: int) -> Iterator[None]:
        """A cycle runs in the block; it begins once a change under way is durable."""
        with self._lock:
            self._cycle, self._taken = number, None
        try:
            yield
        finally:
            with self._lock:
                self._cycle = None

    def take(self, ids: Collection[int]) -> None:
        """The cycle under way has these and no others."""
        with self._lock:
            self._taken = frozenset(ids)

    @contextmanager
    def changing(self, ids: Sequence[int], state: State, candidates: CandidateStore) -> Iterator[None]:
        """In the block these may be brought into ``state``, and no cycle begins.

        Raises:
            InTrainingError: one is approved, and the cycle under way has it, or may have it.
            UnknownIdError: there is none of such a number.
        """
        with self._lock:
            if self._cycle is not None and state != "approved":
                for id in ids:
                    if (self._taken is None or id in self._taken) and candidates.get(id).state == "approved":
                        raise InTrainingError(
                            f"candidate {id}: cycle {self._cycle}, which is under way, learns from it; try again once "
                            "that has ended (the line of activity, 'sona status' and the events say when)"
                        )
            yield
