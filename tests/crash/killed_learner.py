"""``kill -9`` of the process that learns at any moment, while its host goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from unittest import mock

import sona
from sona.candidate import Settled
from sona.config import Config, CycleConfig, LearnerConfig
from sona.errors import LearnerError, SonaError
from sona.ports import Claim
from sona.storage.store import Store
from sona.types import CycleReport, Version
from tests.crash.killed_engine import EngineLedger
from tests.crash.run import Run

BATCH = 12
A_HOST = 25
"""Rounds until the host is another one."""
BANK = Config(cycle=CycleConfig(min_trajectories=4), learner=LearnerConfig(mode="process", nice=0))


def kill_learner(run: Run) -> None:
    folder, ledger = run.new_folder(), EngineLedger()
    outcomes: list[str] = []
    with mock.patch.object(Store, "commit_cycle", _telling(ledger)):
        for first in range(0, run.rounds, A_HOST):
            with sona.open_sync(folder, config=BANK) as engine:
                whole_s = _pace(engine, ledger, f"pace-{first}")
                for number in range(first, min(first + A_HOST, run.rounds)):
                    _record(engine, ledger, str(number), run.rng)
                    outcomes.append(_round(run, engine, run.rng.uniform(0.0, 1.1 * whole_s)))
                    ledger.look(folder, run.counts, read_only=True)
                engine.learn()
                if engine.status().store.uncollected:
                    run.counts.lose("what a killed cycle had taken is not new any more, nor claimed")
            ledger.look(folder, run.counts)
    run.counts.acknowledged += ledger.acknowledged
    if run.rounds >= 20:  # where it isn't by chance that none fell where it matters
        assert {"failed", "published"} <= set(outcomes), outcomes


def _round(run: Run, engine: sona.SyncEngine, after_s: float) -> str:
    """A cycle whose process is killed so long after it was asked for, if it lives by then; how it ended."""
    killer = _Killer(engine, after_s)
    before = engine.version.id
    try:
        outcome: str = engine.learn().status
    except LearnerError:
        outcome = "failed"
    except SonaError as error:
        run.counts.miss(f"a killed learner is told as {error!r}")
        outcome = "odd"
    killer.join()
    run.counts.kills += killer.killed
    if outcome == "failed" and (not killer.killed or engine.version.id != before):
        run.counts.miss(f"a cycle failed by itself, or it published: {engine.status().learner}")
    return outcome


class _Killer(threading.Thread):
    def __init__(self, engine: sona.SyncEngine, after_s: float) -> None:
        super().__init__()
        self._engine, self._after_s, self.killed = engine, after_s, False
        self.start()

    def run(self) -> None:
        time.sleep(self._after_s)
        with suppress(ProcessLookupError):
            if (pid := self._engine.status().learner.pid) is not None:
                os.kill(pid, signal.SIGKILL)
                self.killed = True


def _pace(engine: sona.SyncEngine, ledger: EngineLedger, name: str) -> float:
    """How long a cycle takes, its process's start and all."""
    _record(engine, ledger, name, Random(0))
    began = time.monotonic()
    engine.learn()
    took = time.monotonic() - began
    pid = engine.status().learner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return took


def _record(engine: sona.SyncEngine, ledger: EngineLedger, name: str, rng: Random) -> None:
    ids = [f"{name}-{place}" for place in range(BATCH)]
    for place, one in enumerate(ids):
        vector = [float(place % 2), 1.0, rng.gauss(0.0, 0.1)]
        engine.record(sona.Trajectory(id=one, messages=one, response="a", embedding=vector), quality=rng.random())
    engine.flush()
    for one in ids:
        ledger.durable(one)


def _telling(ledger: EngineLedger) -> object:
    """``Store.commit_cycle``, which the host calls for its learner, told of before and after."""
    commit = Store.commit_cycle

    def commit_cycle(
        self: Store,
        report: CycleReport,
        claims: Sequence[Claim],
        version: Version | None,
        settled: Sequence[Settled] = (),
    ) -> None:
        ledger.begins(report.cycle, [claim.seq for claim in claims if claim.role != "left_out"])
        commit(self, report, claims, version, settled)
        ledger.committed(report.cycle)

    return commit_cycle
