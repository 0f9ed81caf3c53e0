"""What recording costs the thread that records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from benchmarks.fast_loop.traffic import Traffic
from sona.sync import SyncEngine
from sona.types import Trajectory

Kind = Literal["record", "whole"]
"""``record``: the call alone; ``whole``: from arrays and texts to recorded, checks included."""
PAUSE_S = 0.001
OTHER_BYTES = 64 * 2**20
"""More than a core's own caches hold."""
COLD_CALLS = 300
PAGE_BYTES, PAGES = 4096, 150
_numbers = count()


@dataclass(frozen=True)
class Latency:
    """Of many calls, microseconds."""

    median: float
    p99: float
    p999: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """The percentiles of ``seconds``."""
        return cls(*(float(value) for value in np.percentile(np.asarray(seconds) * 1e6, (50, 99, 99.9))))


def burst(engine: SyncEngine, traffic: Traffic, calls: int, kind: Kind, threads: int = 1) -> list[float]:
    """Seconds of each of ``calls`` calls, one right after the other, shared among ``threads``; begun with an empty
    queue.
    """
    engine.flush()
    parts = [_work(engine, traffic, calls // threads, kind, pause_s=0.0) for _ in range(threads)]
    if threads == 1:
        return parts[0]()
    found: list[list[float]] = [[] for _ in parts]

    def run(place: int) -> None:
        found[place] = parts[place]()

    workers = [threading.Thread(target=run, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [seconds for part in found for seconds in part]


def paced(engine: SyncEngine, traffic: Traffic, calls: int, kind: Kind) -> list[float]:
    """Seconds of each of ``calls`` calls, a thousand a second: the writer wakes for nearly each of them."""
    engine.flush()
    return _work(engine, traffic, calls, kind, pause_s=PAUSE_S)()


def cold(engine: SyncEngine, traffic: Traffic) -> list[float]:
    """Seconds of each of :data:`COLD_CALLS` calls, before each of which so much other memory is touched that neither
    its code nor its data are in a core's cache: what the slowest of the paced calls take, without their luck.
    """
    engine.flush()
    other = np.zeros(OTHER_BYTES, dtype=np.uint8)
    seconds: list[float] = []
    for place in range(COLD_CALLS):
        one = traffic.trajectory(place % len(traffic.embeddings), f"{next(_numbers):032x}")
        other[::64] += 1
        began = time.perf_counter()
        engine.record(one)
        seconds.append(time.perf_counter() - began)
    return seconds


def machine(calls: int) -> list[float]:
    """Seconds of each of ``calls`` changes of :data:`PAGES` bytes, each in another page of memory, touched before
    but not lately, at the pace of :func:`paced`: what this machine itself does to a call that needs as many pages.
    """
    memory, draws = np.ones(OTHER_BYTES, dtype=np.uint8), np.random.default_rng(0)
    seconds: list[float] = []
    for _ in range(calls):
        places = PAGE_BYTES * draws.integers(OTHER_BYTES // PAGE_BYTES, size=PAGES)
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        memory[places] += 1
        seconds.append(time.perf_counter() - began)
    return seconds


def _work(engine: SyncEngine, traffic: Traffic, calls: int, kind: Kind, pause_s: float) -> Callable[[], list[float]]:
    places = [number % len(traffic.embeddings) for number in range(calls)]
    ids = [f"{next(_numbers):032x}" for _ in places]
    built: list[Trajectory] = []
    if kind == "record" and not pause_s:
        built = [traffic.trajectory(place, id) for place, id in zip(places, ids, strict=True)]

    def run() -> list[float]:
        seconds: list[float] = []
        for number, (place, id) in enumerate(zip(places, ids, strict=True)):
            if pause_s:
                time.sleep(pause_s)
            if kind == "whole":
                began = time.perf_counter()
                receipt = engine.record(traffic.trajectory(place, id))
            else:
                one = built[number] if built else traffic.trajectory(place, id)  # paced, a host has just built it
                began = time.perf_counter()
                receipt = engine.record(one)
            seconds.append(time.perf_counter() - began)
            if receipt != "recorded":
                raise RuntimeError("a record was rejected: fewer calls, or a larger store.queue_bytes")
        return seconds

    return run
