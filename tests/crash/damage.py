"""Damaged bytes: each read gives what was stored, or an error of the store's own.

Of the journal, of the database, and of its log; single bits and whole stretches. What is read is compared with what the
sound store gives: something may be missing, nothing may be other than it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from sona.errors import StoreError, UnknownIdError
from sona.storage.store import DATABASE, Store
from tests.crash.host import Host, named
from tests.crash.ledger import Ledger, is_trajectory, truth
from tests.crash.run import Run

WAL = f"{DATABASE}-wal"
ROWS = 60
Reads = dict[str, Callable[[Store], object]]


def damage_database(run: Run) -> None:
    """A store that was closed: all is in the database."""
    _damage(run, DATABASE, _made(run, keep_log=False))


def damage_log(run: Run) -> None:
    """One whose host was killed. Behind damage SQLite takes the log to have ended, so what is read may be older."""
    _damage(run, WAL, _made(run, keep_log=True))


def _made(run: Run, *, keep_log: bool) -> Path:
    """A folder with every kind of row."""
    folder, copy = run.new_folder(), run.new_folder()
    host = Host(folder, Ledger())
    for number in range(ROWS):
        host.put(*named("x", number))
        if number % 20 == 19:
            host.flush()
            host.cycle(number // 20)
    host.store.write_state("probes", bytes(range(256)))
    host.flush()
    if keep_log:
        for name in (DATABASE, WAL):
            shutil.copy(folder / name, copy / name)
    host.close()
    if not keep_log:
        shutil.copy(folder / DATABASE, copy / DATABASE)
    return copy


def _damage(run: Run, name: str, sound: Path) -> None:
    reads = _reads()
    with Store.open(sound, read_only=True) as store:
        expected = {what: _items(read(store)) for what, read in reads.items()}
        history = _history(store)
    bad = run.new_folder()
    for _ in range(run.rounds):
        shutil.rmtree(bad)
        shutil.copytree(sound, bad)
        (bad / name).write_bytes(spoilt((sound / name).read_bytes(), run.rng))
        run.counts.faults += 1
        _read_all(run, bad, reads, expected, may_be_old=name == WAL)


def spoilt(data: bytes, rng: Random) -> bytes:
    """``data`` with a bit, some bytes, or up to a page of it changed."""
    bad = bytearray(data)
    kind = rng.choice(("bit", "bit", "bytes", "zeros", "noise", "moved"))
    at = rng.randrange(len(bad))
    length = min(rng.choice((1, 4, 64, 512, 4096)), len(bad) - at)
    if kind == "bit":
        bad[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randrange(1, 8)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
    elif kind == "zeros":
        bad[at : at + length] = bytes(length)
    elif kind == "noise":
        bad[at : at + length] = rng.randbytes(length)
    else:
        other = rng.randrange(len(bad) - length + 1)
        bad[at : at + length] = data[other : other + length]
    return bytes(bad)


def _reads() -> Reads:
    """All that can be asked of the store, each for what it gives one by one."""
    ids = [id for number in range(ROWS) for id in named("x", number) if is_trajectory(id)]
    reads: Reads = {
        "iterate": lambda store: list(store.iterate()),
        "collect": lambda store: list(store.collect(1000).rows),
        "versions": lambda store: store.versions(),
        "reports": lambda store: store.reports(),
        "state": lambda store: [store.read_state("probes")],
        "sources": lambda store: store.sources(),
        "counts": lambda store: [replace(store.counts(), bytes_on_disk=0)],
        "current": lambda store: [store.current()],
        "sample": lambda store: [
            replace(row, seq=row.seq) for row in store.sample("train", 20, np.random.default_rng(0), balanced=True)
        ],
    }
    for cycle in range(1, 4):
        reads[f"claims {cycle}"] = lambda store, cycle=cycle: store.claims(cycle)
    for id in ids:
        reads[f"get {id}"] = lambda store, id=id: [store.get(id)]
        reads[f"feedback {id}"] = lambda store, id=id: store.feedback_of(id)
    return reads
