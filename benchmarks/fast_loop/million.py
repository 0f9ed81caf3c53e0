"""Many trajectories in one process: is memory bounded, and does the rate hold?

``python -m benchmarks.fast_loop.million COUNT FOLDER`` prints one JSON line a tenth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import sona
from benchmarks.fast_loop.traffic import Traffic

WIDTH, TOKENS, PARTS = 384, 500, 10


@dataclass(frozen=True)
class Part:
    """A tenth of the run."""

    recorded: int
    """Since the start."""
    rss_bytes: int
    """Resident memory when they were durable."""
    per_s: float
    """Durable records a second in this tenth."""


def measure(count: int, where: Path | None) -> list[Part]:
    """Record ``count`` trajectories in a process of its own, on a new store in ``where``."""
    with TemporaryDirectory(dir=where) as folder:
        command = [sys.executable, "-m", __name__, str(count), folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Part(**json.loads(line)) for line in done.stdout.splitlines()]


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _main(count: int, folder: str) -> None:
    traffic = Traffic.of(1000, WIDTH, TOKENS, seed=0)
    with sona.open_sync(folder) as engine:
        for part in range(PARTS):
            began = time.perf_counter()
            for number in range(part * count // PARTS, (part + 1) * count // PARTS):
                record = traffic.trajectory(number % 1000, f"{number:032x}")
                while engine.record(record, quality=0.5) == "rejected":
                    engine.flush()
            engine.flush()
            per_s = (count // PARTS) / (time.perf_counter() - began)
            print(json.dumps(asdict(Part((part + 1) * count // PARTS, _rss_bytes(), per_s))), flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
