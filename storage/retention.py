"""Retention: what is too old, or too much, goes; in the order of arrival, and in small transactions, so that records
come in meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import apsw

from sona.config import StoreConfig
from sona.storage.deletion import Deleted, delete
from sona.storage.quality import Policy
from sona.storage.sources import read_all_totals
from sona.storage.transactions import Snapshot, Transact
from sona.storage.wiping import Wiping
from sona.types import Record

CHUNK = 250
"""Trajectories that one transaction deletes: about 50 ms."""
PAUSE_S = 0.001
"""Between two transactions, so that a writer that waits goes first."""
FREED_PAGES = 256
"""Pages given back in one transaction: 4 MiB."""
NS_A_DAY = 86_400 * 10**9

WAIT_S = 1.0
"""For readers, before what was deleted from blob files is overwritten; else it is at the next time."""

# Only the heads of the rows are read, not the vectors and payloads.
_WALK = """
SELECT t.seq, t.source, t.created_ns, EXISTS (SELECT 1 FROM claims c WHERE c.seq = t.seq)
FROM trajectories t WHERE t.seq > ? ORDER BY t.seq LIMIT 4096
"""


class Pruned(Record, kw_only=True):
    """What retention deleted, and what it left that is beyond a limit."""

    trajectories: int
    feedback: int
    claims: int
    unlearned: int
    """Left, because no cycle has taken them yet."""
    damaged: int
    """Left, because a row of theirs is damaged: ``sona doctor`` names them."""
    freed_bytes: int
    """Given back to the disk, once the WAL has been copied into the database."""


class Limits(NamedTuple):
    """What may stay; 0 means all."""

    days: float
    trajectories: int
    per_source: int
    unlearned: bool
    """Whether what no cycle has taken yet stays beyond them."""

    @classmethod
    def of(cls, config: StoreConfig) -> Limits:
        """Those of the settings."""
        return cls(config.keep_days, config.keep_trajectories, config.keep_per_source, config.keep_unlearned)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.days or self.trajectories or self.per_source)


class Retention:
    """Deletes what is beyond the limits."""

    def __init__(self, transact: Transact, snapshot: Snapshot, policy: Policy, wiping: Wiping) -> None:
        self._transact, self._snapshot, self._policy, self._wiping = transact, snapshot, policy, wiping

    def apply(self, limits: Limits, now_ns: int | None = None) -> Pruned:
        """Delete, oldest arrival first, what is older than ``limits.days`` before ``now_ns``, and what is not among the
        newest of all or of its source; feedback and claims go with their trajectory.

        Raises:
            StoreCorruptError: what is counted is damaged; ``sona doctor`` can count it anew.
            StoreFullError, StoreReadOnlyError, StoreError: of the disk. What was deleted before stays deleted.
        """
        done = Deleted()
        for seqs in self._chunks(limits, time.time_ns() if now_ns is None else now_ns, done):
            if done.trajectories:
                time.sleep(PAUSE_S)
            done.add(self._delete(seqs, limits))
        return Pruned(
            trajectories=done.trajectories,
            feedback=done.feedback,
            claims=done.claims,
            unlearned=done.unlearned,
            damaged=done.damaged,
            freed_bytes=(self._give_back() if done.trajectories else 0) + self._wiping.run(WAIT_S).bytes,
        )

    def _delete(self, seqs: list[int], limits: Limits) -> Deleted:
        return self._transact(
            lambda connection: delete(connection, seqs, self._policy, unlearned=not limits.unlearned, remember=True)
        )

    def _chunks(self, limits: Limits, now_ns: int, done: Deleted) -> Iterator[list[int]]:
        chunk: list[int] = []
        for seq, is_claimed in self._beyond(limits, now_ns):
            if limits.unlearned and not is_claimed:  # told without reading it
                done.unlearned += 1
                continue
            chunk.append(seq)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _beyond(self, limits: Limits, now_ns: int) -> Iterator[tuple[int, bool]]:
        """All that is beyond a limit, and whether a cycle has claimed it.

        An age limit walks through all rows; the others end at the last row that is beyond them.
        """
        before_ns = now_ns - int(limits.days * NS_A_DAY) if limits.days else None
        with self._snapshot() as connection:
            excess = _Excess(connection, limits)
        after = 0
        while before_ns is not None or excess:
            with self._snapshot() as connection:
                rows: list[Any] = connection.execute(_WALK, (after,)).fetchall()
            if not rows:
                return
            for seq, source, created_ns, is_claimed in rows:
                too_many = excess.takes(source)
                if too_many or (before_ns is not None and created_ns < before_ns):
                    yield seq, bool(is_claimed)
            after = rows[-1][0]

    def _give_back(self) -> int:
        """Return free pages to the disk, a few at a time; how many bytes."""
        freed = 0
        while True:
            time.sleep(PAUSE_S)
            pages, size = self._transact(_give_back_some)
            freed += pages * size
            if not pages:
                return freed


def _give_back_some(connection: apsw.Connection) -> tuple[int, int]:
    before = int(connection.pragma("freelist_count"))
    connection.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()
    return before - int(connection.pragma("freelist_count")), int(connection.pragma("page_size"))


class _Excess:
    """How many of the next rows are too many: of each source, and of all."""

    def __init__(self, connection: apsw.Connection, limits: Limits) -> None:
        totals = read_all_totals(connection)
        stored = sum(one.trajectories for one in totals)
        self._all = max(stored - limits.trajectories, 0) if limits.trajectories else 0
        self._of = Counter[str]()
        if limits.per_source:
            self._of.update({one.source: max(one.trajectories - limits.per_source, 0) for one in totals})
        self._of_all = self._of.total()

    def __bool__(self) -> bool:
        return self._all > 0 or self._of_all > 0

    def takes(self, source: str) -> bool:
        """Whether the next row in the order of arrival, of ``source``, is one too many."""
        among_all, of_source = self._all > 0, self._of[source] > 0
        self._all -= among_all
        self._of[source] -= of_source
        self._of_all -= of_source
        return among_all or of_source
