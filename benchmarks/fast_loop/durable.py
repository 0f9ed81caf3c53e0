"""How many records a second reach the disk, and what would be the limit."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

import sona
from benchmarks.fast_loop.traffic import Traffic
from sona.storage.store import Store
from sona.types import Trajectory

_numbers = count()
encode = msgspec.msgpack.Encoder().encode


Put = Callable[[Sequence[Trajectory]], object]


@contextmanager
def store(folder: Path) -> Iterator[Put]:
    """A synced commit of the store for each batch."""
    with Store.open(folder) as opened:
        yield opened.append


@contextmanager
def recorded(folder: Path) -> Iterator[Put]:
    """Each batch is recorded one by one, and flushed: caller, journal and writer take turns on it."""
    with sona.open_sync(folder) as engine:

        def put(records: Sequence[Trajectory]) -> None:
            for record in records:
                engine.record(record)
            engine.flush()

        yield put


@contextmanager
def bare_sqlite(folder: Path) -> Iterator[Put]:
    """Python's own sqlite3 with the same bytes: one table, no checks and no checksum."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    for pragma in ("page_size=16384", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, embedding BLOB, payload BLOB)")

    def put(records: Sequence[Trajectory]) -> None:
        rows = [(record.id, record.embedding, encode(record)) for record in records]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t (id, embedding, payload) VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")

    try:
        yield put
    finally:
        connection.close()


@contextmanager
def bare_log(folder: Path) -> Iterator[Put]:
    """Encoded, appended one by one to a buffered file of Python's, and the batch synced: how a log is often written."""
    with (folder / "bare.log").open("xb") as file:

        def put(records: Sequence[Trajectory]) -> None:
            for record in records:
                file.write(encode(record))
            file.flush()
            os.fdatasync(file.fileno())

        yield put


@contextmanager
def bare_log_one_write(folder: Path) -> Iterator[Put]:
    """Encoded, joined, written in one system call without a buffer, and synced: the least that a log can do."""
    with (folder / "bare.log").open("xb", buffering=0) as file:

        def put(records: Sequence[Trajectory]) -> None:
            joined = b"".join([encode(record) for record in records])
            written = os.write(file.fileno(), joined)
            assert written == len(joined), "a full disk"
            os.fdatasync(file.fileno())

        yield put


WAYS: dict[str, Callable[[Path], AbstractContextManager[Put]]] = {
    "store": store,
    "record() to durable": recorded,
    "bare sqlite3": bare_sqlite,
    "bare log": bare_log,
    "bare log, one write": bare_log_one_write,
}


def rates(traffic: Traffic, records: int, batch: int, where: Path | None) -> dict[str, float]:
    """Records a second of each way, on a new file in ``where``, ``batch`` at a time. Timed is the storing alone; each
    batch is built just before, as a writer gets it.
    """
    found: dict[str, float] = {}
    for name, way in WAYS.items():
        seconds = 0.0
        with TemporaryDirectory(dir=where) as folder, way(Path(folder)) as put:
            for start in range(0, records, batch):
                made = [traffic.trajectory((start + place) % 1000, f"{next(_numbers):032x}") for place in range(batch)]
                began = time.perf_counter()
                put(made)
                seconds += time.perf_counter() - began
        found[name] = records / seconds
    return found
