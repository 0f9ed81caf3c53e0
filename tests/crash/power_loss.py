"""Power that fails at any moment: what was durable is there, and what is there is whole.

A host works on a disk that tears sectors. At random operations of that disk a copy is laid aside of what a power cut
just then would leave; the host goes on. Then each copy is opened: by the next host, or by one whose power fails too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

from sona.storage.journal import File
from sona.storage.mapped import FOLDER, MappedJournal
from tests.crash.host import SMALL, Host, named
from tests.crash.killed_host import look
from tests.crash.ledger import Ledger
from tests.crash.run import Run
from tests.crash.torn_disk import SECTOR, torn_disk

PAGE = 4096
DEEPEST = 3
"""So many power cuts in a row, each in the work that follows the one before."""


@dataclass
class _Cut:
    folder: Path
    ledger: Ledger
    """As it stood at that moment."""
    depth: int


def lose_power(run: Run) -> None:
    """As many power cuts as there are rounds."""
    _lose_power(run, prunes=False)


def lose_power_pruning(run: Run) -> None:
    """While what is old is deleted, and overwritten: nothing of it comes back. No cycles are compared: their claims go
    too.
    """
    _lose_power(run, prunes=True)


def _lose_power(run: Run, *, prunes: bool) -> None:
    waiting: list[_Cut] = []
    while run.counts.faults < run.rounds:
        if not waiting:
            waiting.append(_Cut(run.new_folder(), Ledger(), 0))
        cut = waiting.pop()
        if cut.depth < DEEPEST and (cut.depth == 0 or run.rng.random() < 0.1):
            new = _work(run, cut, prunes=prunes)
            run.counts.faults += len(new)
            waiting += new
        look(cut.folder, cut.ledger, run.counts, power_failed=cut.depth > 0)
        if cut.depth == 0:
            run.counts.acknowledged += cut.ledger.acknowledged
        shutil.rmtree(cut.folder)
    for cut in waiting:
        look(cut.folder, cut.ledger, run.counts, power_failed=True)


def _work(run: Run, at: _Cut, *, prunes: bool) -> list[_Cut]:
    """A life on the store in ``at.folder``; what power cuts in it would leave."""
    cuts: list[_Cut] = []
    pages = _Pages(at.folder / FOLDER)
    with torn_disk(run.rng) as disk:

        def maybe_cut() -> None:
            pages.look(run.rng)
            if run.rng.random() < 0.04:
                cut = _Cut(run.new_folder(), at.ledger.copy(), at.depth + 1)  # the ledger first: it only grows
                disk.power_off(cut.folder)
                pages.power_off(cut.folder / FOLDER, run.rng)
                cuts.append(cut)

        disk.before_operation = maybe_cut
        with pages.synced_by_the_journal(), Host(at.folder, at.ledger, SMALL) as host:
            _live(host, f"d{at.depth}-{run.rng.randrange(10**6)}", run.rng, prunes=prunes)
    return cuts


def _live(host: Host, name: str, rng: Random, *, prunes: bool) -> None:
    for number in range(rng.randrange(20, 60)):
        host.put(*named(name, number))
        if rng.random() < 0.2:
            host.flush()
        if not prunes and rng.random() < 0.08:
            host.cycle(host.store.next_cycle())
        if prunes and rng.random() < 0.1:
            host.prune(rng.randrange(1, 30))


@dataclass
class _Pages:
    """The journal's mapped files: of each sector the system may have written any of its contents so far, or none, where
    the file is new; of one that was there before, what the disk held.
    """

    folder: Path
    _seen: dict[str, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = {name: [data] for name, data in self._now().items()}

    def look(self, rng: Random) -> None:
        for name, data in self._now().items():
            versions = self._seen.setdefault(name, [bytes(len(data))])
            if rng.random() < 0.2 and data != versions[-1]:
                versions.append(data)
                del versions[:-5]

    @contextmanager
    def synced_by_the_journal(self) -> Iterator[None]:
        """What the journal syncs in the block is on the disk: each file's first page, and which files there are."""
        sync = MappedJournal.sync

        def syncing(journal: MappedJournal, files: Sequence[File], *, whole: bool = False) -> None:
            sync(journal, files, whole=whole)
            now = self._now()
            self._seen = {
                name: [data[:PAGE] + old[PAGE:] for old in self._seen.get(name, [data])] for name, data in now.items()
            }

        with patch.object(MappedJournal, "sync", syncing):
            yield

    def power_off(self, folder: Path, rng: Random) -> None:
        folder.mkdir()
        now = self._now()
        for name, versions in self._seen.items():
            if name in now or rng.random() < 0.3:  # a deletion may not have come to the disk
                choices = [*versions, now.get(name, versions[-1])]
                (folder / name).write_bytes(_mixed(choices, rng))

    def _now(self) -> dict[str, bytes]:
        found = {}
        for path in self.folder.glob("*.seg"):
            try:
                found[path.name] = path.read_bytes()
            except FileNotFoundError:  # deleted just now
                continue
        return found


def _mixed(versions: list[bytes], rng: Random) -> bytes:
    """Each sector, or each run of some, of any version."""
    step = SECTOR * rng.choice((1, 1, 8))
    size = max(map(len, versions))
    return b"".join(rng.choice(versions)[at : at + step] for at in range(0, size, step))
