"""How many records a second reach the disk, and what would be the limit."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec

import sona
from benchmarks.fast_loop.traffic import Traffic
from sona.config import Config, StoreConfig
from sona.storage.store import Store
from sona.types import Trajectory

_T = TypeVar("_T")
_numbers = count()
encode = msgspec.msgpack.Encoder().encode


def store(records: Sequence[Trajectory], batch: int, folder: Path) -> float:
    """Seconds to store them, ``batch`` to a synced commit."""
    with Store.open(folder) as opened:
        return _timed(lambda: [opened.append(part) for part in _parts(records, batch)])


def recorded(records: Sequence[Trajectory], batch: int, folder: Path) -> float:
    """Seconds until all are durable, from one thread that records as fast as it can: caller, journal and writer."""
    config = Config(store=StoreConfig(batch_records=batch))
    with sona.open_sync(folder, config=config) as engine:

        def work() -> None:
            for record in records:
                while engine.record(record) == "rejected":
                    engine.flush()
            engine.flush()

        return _timed(work)


def bare_sqlite(records: Sequence[Trajectory], batch: int, folder: Path) -> float:
    """Seconds of Python's own sqlite3 with the same bytes, one table, no checks and no checksum."""
    rows = [(record.id, record.embedding, encode(record)) for record in records]
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    for pragma in ("page_size=16384", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, embedding BLOB, payload BLOB)")

    def work() -> None:
        for part in _parts(rows, batch):
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO t (id, embedding, payload) VALUES (?, ?, ?)", part)
            connection.execute("COMMIT")

    try:
        return _timed(work)
    finally:
        connection.close()


def bare_log(records: Sequence[Trajectory], batch: int, folder: Path) -> float:
    """Seconds to encode them and append them to a file that is synced after every ``batch``."""
    with (folder / "bare.log").open("xb") as file:

        def work() -> None:
            for part in _parts(records, batch):
                for record in part:
                    file.write(encode(record))
                file.flush()
                os.fdatasync(file.fileno())

        return _timed(work)


WAYS: dict[str, Callable[[Sequence[Trajectory], int, Path], float]] = {
    "store": store,
    "record() to durable": recorded,
    "bare sqlite3": bare_sqlite,
    "bare log": bare_log,
}


def rates(traffic: Traffic, records: int, batch: int, where: Path | None) -> dict[str, float]:
    """Records a second of each way, one after the other on new files in ``where``."""
    found: dict[str, float] = {}
    for name, way in WAYS.items():
        made = [
            traffic.trajectory(place % len(traffic.embeddings), f"{next(_numbers):032x}") for place in range(records)
        ]
        with TemporaryDirectory(dir=where) as folder:
            found[name] = records / way(made, batch, Path(folder))
    return found


def _parts(records: Sequence[_T], batch: int) -> Iterator[Sequence[_T]]:
    return (records[start : start + batch] for start in range(0, len(records), batch))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
