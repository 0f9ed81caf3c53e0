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

from sona.ports import Claim, Role, StoreCounts
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, CycleReport
from tests.engine.small import open_small
from tests.processes import kill, start

KILLS = 20

# Importing torch and transformers takes far longer than a cycle here. So one process imports them, starts no thread,
# and forks a host for each round, to be killed by its pid. Each round records under ids of its own.
NURSERY = """
import os, sys
from contextlib import suppress
from msgspec.structs import replace
import sona.sync, sona.serving.local, sona.loops.cycle
import sona
from sona.errors import UnknownIdError
from sona.storage.store import Store
from tests.engine.small import SMALL, WORLD, open_small

store = sys.argv[1]
quick = replace(SMALL, train=replace(SMALL.train, max_steps=12))
commit_cycle = Store.commit_cycle

def tell_and_commit(self, report, claims, version):
    print("commit", report.cycle, *(claim.seq for claim in claims if claim.role == "train"), flush=True)
    commit_cycle(self, report, claims, version)

Store.commit_cycle = tell_and_commit

def host(round_number):
    with open_small(store, config=quick) as engine:
        def say(progress):
            print("stage", progress.stage.split(":")[0], flush=True)
        before = [f"{round_number - 1}-0-{place}" for place in range(30)]
        for batch in range(1000):
            for name in before[::5]:  # every second was left out and is corrected; the others stay trained on
                with suppress(UnknownIdError):  # the kill was faster
                    engine.feedback(name, quality=1.0)
            ids = []
            for place, example in enumerate(WORLD.sample("tool_call", 30, 1000 * round_number + batch)):
                ids.append(f"{round_number}-{batch}-{place}")
                made = sona.Trajectory(id=ids[-1], messages=example.prompt, response=example.response)
                engine.record(made, quality=1.0 if place % 10 else 0.1)
            engine.flush()
            print("durable", *ids, flush=True)
            report = engine.learn(say)
            print("cycle", report.status, report.version, flush=True)
            before = ids

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
    told: dict[int, list[int]] = {}  # by cycle, what the last host that came to its commit had trained on
    published = 0
    nursery = start(NURSERY, store)
    for round_number in range(KILLS):
        lines = _run_and_kill(nursery, round_number, after_s=rng.uniform(0.0, 3.0))
        durable = [line.split()[1:] for line in lines if line.startswith("durable")]
        acknowledged |= {name for names in durable for name in names}
        told |= {cycle: seqs for cycle, *seqs in map(_numbers, lines) if cycle}
        published += sum(line.startswith("cycle published") for line in lines)
        died_in[_doing(lines)] += 1
        _check(store, acknowledged, told)
    kill(nursery)
    assert acknowledged, "no round lived long enough to acknowledge anything"
    assert published, "no round lived long enough to publish"
    assert died_in["cycle"] >= 3, f"too few kills fell into a cycle: {died_in}"
    _check_the_end(store, acknowledged)
    _check(store, acknowledged, told)


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
    return "cycle" if last in ("stage", "durable", "commit") else last


def _numbers(line: str) -> list[int]:
    """Of a commit its cycle, and the seqs that it trained on; of any other line only a 0."""
    word, *numbers = line.split()
    return [int(number) for number in numbers] if word == "commit" else [0]


def _check(store: Path, acknowledged: set[str], told: dict[int, list[int]]) -> None:
    """Everything acknowledged is there, what the current version says of itself is true, and so are the claims."""
    if not (store / "store.db").exists():
        assert not acknowledged
        return
    with Store.open(store) as opened:
        held = {row.trajectory.id: row.seq for row in opened.iterate() if row.quality is not None}
        assert acknowledged <= held.keys()
        current = opened.current()
        if current.id != BASE_VERSION:
            Versions(store).verify(current)
        counts, versions = opened.counts(), opened.versions()
        reports = {report.cycle: report for report in opened.reports(10_000)}
        claims = {cycle: opened.claims(cycle) for cycle in reports}
    _check_claims(reports, claims, told, set(held.values()))
    _check_counts(counts, claims)
    published = {version.id: version for version in versions if version.id != BASE_VERSION}
    assert sorted(published) == sorted(report.version for report in reports.values() if report.version is not None)
    for version in published.values():
        assert version.trajectories == len(_seqs(claims[version.cycle], "train"))


def _check_claims(
    reports: dict[int, CycleReport], claims: dict[int, list[Claim]], told: dict[int, list[int]], held: set[int]
) -> None:
    """Each cycle took what its report and its host said; all that was taken is there, and was taken once. What no host
    told of is told by the claims, for the checks to come.
    """
    for cycle, report in reports.items():
        train = _seqs(claims[cycle], "train")
        assert train == told.setdefault(cycle, train), "the host trained on others than the store says"
        assert len(train) == report.funnel.trained
        assert len(_seqs(claims[cycle], "held_out")) == report.funnel.held_out
        # A later cycle may have taken again what this one left out.
        assert len(_seqs(claims[cycle], "left_out")) <= sum(report.funnel.left_out.values())
    taken = [claim.seq for cycle in claims.values() for claim in cycle]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= held
    trained = [seq for cycle in reports for seq in told[cycle]]
    assert len(set(trained)) == len(trained), "two cycles that count trained on the same trajectory"


def _check_counts(counts: StoreCounts, claims: dict[int, list[Claim]]) -> None:
    roles = Counter(claim.role for cycle in claims.values() for claim in cycle)
    assert (counts.trained, counts.held_out) == (roles["train"], roles["held_out"])
    assert counts.left_out <= roles["left_out"]  # those that were corrected since are new again
    taken = counts.trained + counts.held_out + counts.left_out
    assert taken + counts.uncollected + counts.waiting_for_feedback == counts.trajectories


def _seqs(claims: list[Claim], role: Role) -> list[int]:
    return [claim.seq for claim in claims if claim.role == role]


def _check_the_end(store: Path, acknowledged: set[str]) -> None:
    """One quiet run takes what is left, and then there is nothing new any more."""
    with open_small(store) as engine:
        engine.learn()
        left = engine.status().store
        assert left.trajectories >= len(acknowledged)
        assert left.uncollected < 60
        folders = {path.name for path in (store / "versions").iterdir()}
        assert folders <= {version.id for version in engine.versions()}, "a killed cycle left a folder behind"
    with Store.open(store, read_only=True) as opened:
        then = sum(sum(report.funnel.left_out.values()) for report in opened.reports(10_000))
        now = sum(len(_seqs(opened.claims(cycle), "left_out")) for cycle in range(1, opened.next_cycle()))
    assert now < then, "no cycle took a corrected trajectory again"
