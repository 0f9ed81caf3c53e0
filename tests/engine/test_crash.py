"""A host that is killed with SIGKILL at any moment, while it records and while a cycle runs, loses and repeats
nothing."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from sona.storage.store import Store
from sona.storage.versions import Versions
from tests.engine.small import open_small
from tests.processes import kill, start

KILLS = 20

# Importing torch and transformers takes far longer than a cycle here. So one process imports them, starts no thread,
# and forks a host for each round, to be killed by its pid. Each round records under ids of its own.
NURSERY = """
import os, sys
import sona.sync, sona.serving.local, sona.loops.cycle
import sona
from tests.engine.small import WORLD, open_small

store = sys.argv[1]

def host(round_number):
    with open_small(store) as engine:
        def say(progress):
            print("stage", progress.stage.split(":")[0], flush=True)
        for batch in range(1000):
            ids = []
            for place, example in enumerate(WORLD.sample("tool_call", 30, 1000 * round_number + batch)):
                ids.append(f"{round_number}-{batch}-{place}")
                made = sona.Trajectory(id=ids[-1], messages=example.prompt, response=example.response)
                engine.record(made, quality=1.0)
            engine.flush()
            print("durable", *ids, flush=True)
            report = engine.learn(say)
            print("cycle", report.status, report.version, flush=True)

for line in sys.stdin:
    if (pid := os.fork()) == 0:
        host(int(line))
    print("pid", pid, flush=True)
    os.waitpid(pid, 0)
    print()  # ends a line that the kill cut off
    print("dead", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_and_train_nothing_twice(tmp_path: Path) -> None:
    store, rng = tmp_path / "store", random.Random(0)
    acknowledged: set[str] = set()
    died_in: Counter[str] = Counter()
    published = 0
    nursery = start(NURSERY, store)
    for round_number in range(KILLS):
        lines = _run_and_kill(nursery, round_number, after_s=rng.uniform(0.0, 3.0))
        durable = [line.split()[1:] for line in lines if line.startswith("durable")]
        acknowledged |= {name for names in durable for name in names}
        published += sum(line.startswith("cycle published") for line in lines)
        died_in[_doing(lines)] += 1
        _check(store, acknowledged)
    kill(nursery)
    assert acknowledged, "no round lived long enough to acknowledge anything"
    assert published, "no round lived long enough to publish"
    assert died_in["cycle"] >= 3, f"too few kills fell into a cycle: {died_in}"
    _check_the_end(store, acknowledged)


def _run_and_kill(nursery: subprocess.Popen[str], round_number: int, after_s: float) -> list[str]:
    """What the host printed, line by line, before it was killed ``after_s`` seconds into its life."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{round_number}\n")
    nursery.stdin.flush()
    time.sleep(after_s)
    lines: list[str] = []
    for line in iter(nursery.stdout.readline, ""):
        words = line.split()
        if words[:1] == ["dead"]:
            return lines
        if words[:1] == ["pid"]:
            os.kill(int(words[1]), signal.SIGKILL)
        elif line.startswith("Traceback"):
            raise AssertionError(line + kill(nursery))
        elif words and line.endswith("\n"):
            lines.append(line.strip())
    raise AssertionError(f"the nursery died: {lines}")


def _doing(lines: list[str]) -> str:
    last = lines[-1].split()[0] if lines else "start"
    return "cycle" if last in ("stage", "durable") else last


def _check(store: Path, acknowledged: set[str]) -> None:
    """Everything acknowledged is there; what the current version says of itself is true."""
    if not (store / "store.db").exists():
        assert not acknowledged
        return
    with Store.open(store) as opened:
        held = {row.trajectory.id for row in opened.iterate()}
        assert acknowledged <= held
        current = opened.current()
        if current.id != "v0":
            Versions(store).verify(current)
        counts = opened.counts()
        reports = opened.reports(10_000)
    # A trajectory has one claim at most (the store's schema says so); each cycle's report must say the same as the
    # claims.
    assert counts.trained == sum(report.funnel.trained for report in reports)
    assert counts.held_out == sum(report.funnel.held_out for report in reports)
    assert counts.trained + counts.held_out + counts.left_out + counts.uncollected == len(held)
    versions = [report.version for report in reports if report.version is not None]
    assert len(versions) == len(set(versions))


def _check_the_end(store: Path, acknowledged: set[str]) -> None:
    """One quiet run takes what is left, and then there is nothing new any more."""
    with open_small(store) as engine:
        engine.learn()
        left = engine.status().store
        assert left.trajectories >= len(acknowledged)
        assert left.uncollected < 60
        folders = {path.name for path in (store / "versions").iterdir()}
        assert folders <= {version.id for version in engine.versions()}, "a killed cycle left a folder behind"
