"""What a process does until it is killed. Each takes who is told, the store's folder, and a name of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from sona.config import StoreConfig
from sona.errors import StoreError
from sona.storage.mapped import open_journal
from sona.storage.store import Store
from sona.storage.writer import Writer
from sona.types import Feedback, Trajectory
from tests.crash.host import SMALL, USUAL, Host, ToldStore, named, put_all
from tests.crash.ledger import Told, truth


def record(told: Told, folder: str, life: str) -> None:
    """Record, and flush now and then."""
    _record(told, folder, life, USUAL)


def recycle(told: Told, folder: str, life: str) -> None:
    """The same with a journal so small that its segments are used again and again."""
    _record(told, folder, life, SMALL)


def _record(told: Told, folder: str, life: str, config: StoreConfig) -> None:
    rng, host = random.Random(life), Host(Path(folder), told, config)
    told.says("ready")
    for number in count():
        host.put(*named(life, number))
        if rng.random() < 0.05:
            host.flush()
        elif rng.random() < 0.1:
            time.sleep(0.001)


def commit(told: Told, folder: str, life: str) -> None:
    """Append batches to the store itself."""
    rng, store = random.Random(life), ToldStore.open_told(Path(folder), told)
    told.says("ready")
    for number in count(step=50):
        size = rng.randrange(1, 50)
        store.append([truth(id) for place in range(size) for id in named(life, number + place)])


def cycle(told: Told, folder: str, life: str) -> None:
    """Record, and run a cycle over it."""
    host = Host(Path(folder), told)
    told.says("ready")
    for number in count(step=20):
        for place in range(20):
            host.put(*named(life, number + place))
        host.flush()
        host.cycle(host.store.next_cycle())


def prune(told: Told, folder: str, life: str) -> None:
    """Record, and keep the newest alone."""
    rng, host = random.Random(life), Host(Path(folder), told, SMALL)
    told.says("ready")
    for number in count(step=20):
        for place in range(20):
            host.put(*named(life, number + place))
        host.prune(rng.randrange(1, 60))


def open_and_close(told: Told, folder: str, life: str) -> None:
    """Take up what waits, record a little, and close; again and again."""
    for number in count(step=10):
        host = Host(Path(folder), told, SMALL)
        for place in range(10):
            host.put(*named(life, number + place))
        told.says("closing")
        host.close()


def stuck(told: Told, folder: str, life: str) -> None:
    """Record, while nothing can be stored."""
    store = Store.open(folder)
    writer = Writer(_Stuck(), SMALL, open_journal(store.path, SMALL))
    for number in range(40):
        put_all(writer, told, named(life, number))
    told.says("waiting")
    time.sleep(60)


class _Stuck:
    def append(self, records: Sequence[Trajectory | Feedback]) -> Sequence[Exception | None]:
        time.sleep(60)
        raise OSError("never")


def read(told: Told, folder: str, life: str) -> None:
    """Look on, all the time."""
    with Store.open(folder, read_only=True) as store:
        told.says("ready")
        while True:
            rows = list(store.iterate())
            assert [row.trajectory for row in rows] == [truth(row.trajectory.id) for row in rows]
            store.collect(100)


def migrate(told: Told, folder: str, life: str) -> None:
    """Open a store of an older form."""
    Store.open(folder).close()


def short(told: Told, folder: str, life: str) -> None:
    """A whole life with an end: open, record, flush, a cycle, record, close."""
    with Host(Path(folder), told, SMALL) as host:
        for number in range(6):
            host.put(*named(life, number))
        host.flush()
        host.cycle(host.store.next_cycle())
        for number in range(6, 9):
            host.put(*named(life, number))


def endure(told: Told, folder: str, life: str, work: str) -> None:
    """One of the others on a disk that fails: it may end early, with an error of the store's own."""
    works: dict[str, Callable[[Told, str, str], None]] = {"migrate": migrate, "short": short}
    try:
        works[work](told, folder, life)
    except StoreError as error:
        told.says(f"refused {type(error).__name__}")
    except Exception as error:
        told.says(f"untyped {error!r}")
