"""What was acknowledged, and whether a store still has it.

Every record follows from its id, so an id is all that has to be told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol
from zlib import crc32

from msgspec.structs import replace

from sona.ports import Claim, Stored
from sona.storage.store import Store
from sona.types import BASE_VERSION, Feedback, Trajectory
from tests.crash.counts import Counts
from tests.storage.records import feedback, trajectory

FIRST, LATER = "feedback-", "later-"


@lru_cache(maxsize=50_000)
def truth(id: str) -> Trajectory | Feedback:
    """The record of this id: most take one sector of a disk, some several, a few more than a segment of the journal."""
    if id.startswith(FIRST):
        return feedback(id.removeprefix(FIRST))
    if id.startswith(LATER):
        return feedback(id.removeprefix(LATER), 0.9, id=id)
    dice = crc32(id.encode())
    length = 80_000 if dice % 64 == 0 else 4_000 if dice % 4 == 0 else dice % 500
    return replace(trajectory(id), response="answer" * (length // 6) or "answer")


def is_trajectory(id: str) -> bool:
    return not id.startswith((FIRST, LATER))


class Told(Protocol):
    """Who is told of each acknowledgement, right after it was given."""

    def recorded(self, id: str) -> None: ...
    def durable(self, id: str) -> None: ...
    def begins(self, cycle: int, seqs: Sequence[int]) -> None:
        """Just before a cycle's commit: what it trained on or held out."""

    def committed(self, cycle: int) -> None: ...
    def excused(self, ids: Sequence[str]) -> None:
        """Just before these are deleted: they may be there or not."""

    def gone(self, ids: Sequence[str]) -> None:
        """These trajectories were deleted, durably: nothing brings them back."""

    def says(self, word: str) -> None:
        """Anything else, such as how far it is."""


class Teller:
    """Tells a process at the other end of a pipe. A kill cuts no line: each is one write, and shorter than a page."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def recorded(self, id: str) -> None:
        self.says(f"recorded {id}")

    def durable(self, id: str) -> None:
        self.says(f"durable {id}")

    def begins(self, cycle: int, seqs: Sequence[int]) -> None:
        self.says(f"begins {cycle} {','.join(map(str, seqs))}")

    def committed(self, cycle: int) -> None:
        self.says(f"committed {cycle}")

    def excused(self, ids: Sequence[str]) -> None:
        self._say_ids("excused", ids)

    def gone(self, ids: Sequence[str]) -> None:
        self._say_ids("gone", ids)

    def _say_ids(self, word: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), 50):
            self.says(f"{word} {','.join(ids[start : start + 50])}")

    def says(self, word: str) -> None:
        os.write(self._descriptor, f"{word}\n".encode())


class Ledger:
    """Keeps what was told of one store."""

    def __init__(self) -> None:
        self._recorded: set[str] = set()
        self._durable: set[str] = set()
        self._begun: dict[int, list[int]] = {}  # by cycle, what the last one that came to its commit had trained on
        self._committed: set[int] = set()
        self._missing: set[str] = set()
        self._excused: set[str] = set()
        self._gone: set[str] = set()

    def recorded(self, id: str) -> None:
        self._recorded.add(id)

    def durable(self, id: str) -> None:
        self._durable.add(id)

    def begins(self, cycle: int, seqs: Sequence[int]) -> None:
        self._begun[cycle] = sorted(seqs)

    def committed(self, cycle: int) -> None:
        self._committed.add(cycle)

    def excused(self, ids: Sequence[str]) -> None:
        self._excused.update(ids)

    def gone(self, ids: Sequence[str]) -> None:
        self._gone.update(ids)

    def says(self, word: str) -> None:
        """A line of a :class:`Teller`; words that are no acknowledgement are passed over."""
        match word.split(" "):
            case ["recorded", id]:
                self.recorded(id)
            case ["durable", id]:
                self.durable(id)
            case ["begins", cycle, seqs]:
                self.begins(int(cycle), [int(seq) for seq in seqs.split(",") if seq])
            case ["committed", cycle]:
                self.committed(int(cycle))
            case ["excused", ids]:
                self.excused(ids.split(","))
            case ["gone", ids]:
                self.gone(ids.split(","))

    def copy(self) -> Ledger:
        """As it stands now, also while another thread tells."""
        copy = Ledger()
        copy._recorded, copy._durable = self._recorded.copy(), self._durable.copy()
        copy._begun, copy._committed = self._begun.copy(), self._committed.copy()
        copy._excused, copy._gone = self._excused.copy(), self._gone.copy()
        return copy

    @property
    def acknowledged(self) -> int:
        return len(self._recorded | self._durable) + len(self._committed)

    def check(self, store: Store, counts: Counts, *, power_failed: bool = False) -> None:
        """Compare the store with what was told; after a power cut only what was durable has to be there."""
        self.check_promises(self._found(store, counts), counts, power_failed=power_failed)
        self.check_cycles(store, counts)
        self.check_totals(store, counts)

    def check_promises(self, found: set[str], counts: Counts, *, power_failed: bool = False) -> None:
        """Compare the ids that were found with those that were told; each is lost once."""
        promised = self._durable if power_failed else self._recorded | self._durable
        for id in sorted(promised - found - self._missing - self._excused):
            self._missing.add(id)
            counts.lose(id)
        for id in sorted(self._gone & found):
            self._gone.discard(id)
            counts.train_twice(f"{id}, which was deleted, is back, and new to the next cycle")

    def _found(self, store: Store, counts: Counts) -> set[str]:
        """The ids of all records; those that are not as they were given are counted."""
        found: set[str] = set()
        last = 0
        for row in store.iterate():
            given = store.feedback_of(row.trajectory.id)
            found.update([row.trajectory.id, *(one.id for one in given)])
            records: list[Trajectory | Feedback] = [row.trajectory, *given]
            wrong = [one.id for one in records if one != truth(one.id)]
            if wrong or row.seq <= last or not _is_rated_by(row, given):
                counts.miss(f"{row.trajectory.id} (seq {row.seq} after {last}) reads wrong: {wrong or row.quality}")
            last = row.seq
        return found

    def check_cycles(self, store: Store, counts: Counts) -> None:
        """Compare the cycles alone with what was told."""
        cycles = list(range(1, store.next_cycle()))
        for cycle in self._committed - set(cycles):
            self._committed.discard(cycle)
            counts.lose(f"cycle {cycle}")
        reports = store.reports(1_000_000)
        if sorted(one.cycle for one in reports) != cycles:
            counts.miss(f"reports of {len(reports)} cycles, there are {len(cycles)}")
        published = [one.version for one in reversed(reports) if one.version is not None]
        if [one.id for one in store.versions()] != [BASE_VERSION, *published]:
            counts.miss(f"versions {[one.id for one in store.versions()]}, published were {published}")
        self._check_claims({cycle: store.claims(cycle) for cycle in cycles}, counts)

    def _check_claims(self, claims: dict[int, list[Claim]], counts: Counts) -> None:
        """Each cycle took what it told of, and nobody else took that."""
        for cycle, taken in claims.items():
            seqs = sorted(claim.seq for claim in taken if claim.role != "left_out")
            if self._begun.setdefault(cycle, seqs) != seqs:
                counts.train_twice(f"cycle {cycle} says {seqs}, it was told to take {self._begun[cycle]}")
        for seq, times in Counter(seq for cycle in claims for seq in self._begun[cycle]).items():
            if times > 1:
                counts.train_twice(f"seq {seq}, by {times} cycles")

    def check_totals(self, store: Store, counts: Counts) -> None:
        """Compare what the store counts as it goes with what is there."""
        totals = store.counts()
        rows = sum(1 for _ in store.iterate())
        taken = totals.trained + totals.held_out + totals.left_out
        new = len(store.collect(1_000_000).rows)
        if totals.trajectories != rows or totals.uncollected != new:
            counts.miss(f"{totals}, but there are {rows} rows, and {new} are new")
        if taken + totals.uncollected + totals.waiting_for_feedback != totals.trajectories:
            counts.miss(f"{totals} do not add up")


def _is_rated_by(row: Stored, given: Sequence[Feedback]) -> bool:
    """Whether the latest feedback is the one in force."""
    return row.quality == (given[-1].quality if given else None)
