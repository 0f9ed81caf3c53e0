"""A clock that steps back: order is that of arrival, ids are unique, nothing is lost and nothing taken twice."""

from __future__ import annotations

import shutil
from random import Random
from unittest import mock

from sona.storage.store import Store
from sona.types import Feedback, Trajectory
from tests.crash.counts import Counts
from tests.crash.host import Host
from tests.crash.ledger import Ledger
from tests.crash.run import Run
from tests.storage.records import ask

DAY_NS = 86_400_000_000_000


class _Clock:
    """Runs forwards, and is put back by up to a day now and then."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._now = 1_700_000_000_000_000_000
        self.steps = 0

    def __call__(self) -> int:
        self._now += self._rng.randrange(1_000_000)
        if self._rng.random() < 0.05:
            self.steps += 1
            self._now -= self._rng.randrange(DAY_NS)
        return self._now


def step_back(run: Run) -> None:
    for _ in range(run.rounds):
        folder, clock = run.new_folder(), _Clock(run.rng)
        told, put = _Cycles(), []
        with mock.patch("time.time_ns", clock):
            for _ in range(3):
                with Host(folder, told) as host:
                    put += [_record(host, clock, run.rng) for _ in range(30)]
                    host.flush()
                    host.cycle(host.store.next_cycle())
        with Store.open(folder, read_only=True) as store:
            _check(store, put, run.counts)
            told.check_cycles(store, run.counts)
        run.counts.faults += clock.steps
        run.counts.acknowledged += len(put)
        shutil.rmtree(folder)


class _Cycles(Ledger):
    """Only of the cycles; the records have ids of the clock."""

    def durable(self, id: str) -> None:
        pass


def _record(host: Host, clock: _Clock, rng: Random) -> tuple[Trajectory, float]:
    """A trajectory with an id of its own, and the feedback that came last."""
    trajectory = Trajectory(messages=ask("q"), response="a", created_ns=clock())
    assert host.writer.put(trajectory)
    for place in range(1, rng.randrange(2, 4)):
        quality = place / 8
        assert host.writer.put(Feedback(trajectory_id=trajectory.id, quality=quality, at_ns=clock()))
    return trajectory, quality


def _check(store: Store, put: list[tuple[Trajectory, float]], counts: Counts) -> None:
    """All is there, in the order in which it came, and the feedback that came last is in force."""
    if len({trajectory.id for trajectory, _ in put}) < len(put):
        counts.lose("two trajectories got one id")
    found = {row.trajectory.id: row for row in store.iterate()}
    for trajectory, quality in put:
        row = found.get(trajectory.id)
        if row is None:
            counts.lose(trajectory.id)
        elif (row.trajectory, row.quality) != (trajectory, quality):
            counts.miss(f"{row}, given was {trajectory}, {quality}")
    if list(found) != [trajectory.id for trajectory, _ in put]:
        counts.miss("the order is not that of arrival")
