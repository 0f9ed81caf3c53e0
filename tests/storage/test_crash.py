"""Killed at any moment, the store has what was acknowledged, each record whole, and opens again."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from sona.storage.store import Store
from tests.processes import kill, run, start
from tests.storage.records import feedback, trajectory

WORK = """
import sys
from sona.config import StoreConfig
from sona.storage.store import Store
from sona.storage.writer import Writer
from tests.storage.records import feedback, trajectory
store = Store.open(sys.argv[1])
writer = Writer(store, StoreConfig(batch_records=16))
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    for _ in range(10):
        assert writer.put(trajectory(f"t{number}"))
        assert writer.put(feedback(f"t{number}"))
        number += 1
    writer.flush()
    print(number, flush=True)
"""

CYCLES = """
import sys
from sona.storage.store import Store
from tests.storage.records import add, rated, run_cycle
store = Store.open(sys.argv[1])
number = store.counts().trajectories
print("ready", flush=True)
while True:
    add(store, rated(f"t{number + index}" for index in range(20)))
    number += 20
    run_cycle(store, publish=number % 40 == 0)
"""


def printed(output: str) -> list[int]:
    """The whole lines; a kill may cut the last one short."""
    return [int(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.slow
def test_what_flush_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    rng = random.Random(7)
    acknowledged = 0
    for _ in range(14):
        worker = start(WORK, tmp_path, acknowledged)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.25))
        acknowledged = max([acknowledged, *printed(kill(worker))])
        with Store.open(tmp_path) as store:
            stored = {row.trajectory.id: row for row in store.iterate()}
            for number in range(acknowledged):
                assert stored[f"t{number}"].quality == 0.5
            assert len(stored) - acknowledged <= 10
            for name, row in stored.items():
                assert row.trajectory == trajectory(name)
                assert store.feedback_of(name) in ([feedback(name)], [])
    assert acknowledged > 100


@pytest.mark.slow
def test_each_trajectory_is_claimed_once_across_kills(tmp_path: Path) -> None:
    rng = random.Random(8)
    for _ in range(6):
        worker = start(CYCLES, tmp_path)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.3))
        kill(worker)
        with Store.open(tmp_path) as store:
            counts = store.counts()
            reports = store.reports(10_000)
            assert [one.cycle for one in reports] == list(range(counts.cycles, 0, -1))
            rated = sum(row.quality is not None for row in store.iterate())
            assert counts.trained + len(store.collect(10_000).rows) == rated
            published = [one.version for one in reversed(reports) if one.version is not None]
            assert [one.id for one in store.versions()] == ["v0", *published]
            assert store.current().id == (["v0", *published])[-1]
    assert counts.cycles > 6


def test_nothing_but_sqlite_opens_the_database(tmp_path: Path) -> None:
    """A second descriptor, once closed, would drop the locks that SQLite holds."""
    script = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from sona.storage.store import Store
from tests.storage.records import trajectory
with Store.open(sys.argv[1]) as store, Store.open(sys.argv[1], read_only=True) as reader:
    store.append([trajectory("a")])
    reader.counts()
    reader.get("a")
ours = [path for path in opened if path.startswith(sys.argv[1])]
print(any(path.endswith("store.lock") for path in ours), any("store.db" in path for path in ours))
"""
    assert run(script, tmp_path) == "True False"
