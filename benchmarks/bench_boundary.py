"""How soon does a test without labels see that the traffic changed, and how often does it cry wolf?

Method. Hours of 96 samples come from one task after another; a task lasts 4 to 8 hours, and where one ends the stream
knows it, the tests don't. At a boundary begins either a new task (other questions, at a random distance from the last
task's: its centre moves by 0.7 to 4 times the spread that a question has in one of 64 directions), or, every third
time, a drift: the same questions, 10 to 60 % of them with other answers. After each hour both tests of
``sona.learn.boundary`` compare it, at a level of .01, with the last 200 samples since the last alarm of their own; an
alarm begins a new reference.

* mmd: the embeddings of the questions. It can't see a drift, and is not asked to.
* loss: the losses of the answers before the model is trained on them. A new task's are about 2.5 nats, a drift's 4, and
  they fall with each hour of training to .4; a sample's own varies about its task's log-normally by a factor of 1.6.

Four kinds of traffic: ``clean``, where an hour holds one task; ``mixed``, where 30 % of it come from the six tasks
before; ``bursty``, where 20 % of it are one question asked again and again, another one each hour; ``distinct``, the
same after all repeats were dropped.

``delay_hours`` is the mean over the boundaries: 0 where the first hour after it raises the alarm. A boundary that is
never found counts as late as its task lasted, and in ``missed`` as a share. ``false_alarms_per_100h`` counts alarms in
the hours whose task was already found.

What would make the figures misleading. Embeddings and losses are drawn here from smooth distributions, independently;
real questions come in bursts, repeat and follow the time of day, each of which raises false alarms above the level (see
``bursty``). The delay depends on how far tasks lie apart and on how many questions an hour has; both were chosen, not
measured. The model learns here what it is told to, hour by hour; one that forgets raises the losses of mixed traffic.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.table import spread
from sona.learn.boundary import embedding_shift, loss_shift

Traffic = Literal["clean", "mixed", "bursty", "distinct"]
Kind = Literal["start", "task", "drift"]
TRAFFIC: tuple[Traffic, ...] = ("clean", "mixed", "bursty", "distinct")
HOUR, WIDTH, REFERENCE = 96, 64, 200
OLD_SHARE, REMEMBERED = 0.3, 6
COPIES = HOUR // 5
LEVEL = 0.01
LEARNED, NEW, DRIFTED = 0.4, 2.5, 4.0  # nats


@dataclass
class Task:
    """Where its questions lie, and what the model in force makes of its answers."""

    centre: npt.NDArray[np.float64]
    """(WIDTH,)"""
    start_nats: float = NEW
    trained_hours: int = 0

    @property
    def nats(self) -> float:
        """Usual loss of an answer."""
        return LEARNED + (self.start_nats - LEARNED) * math.exp(-self.trained_hours)


@dataclass(frozen=True)
class Hour:
    """What arrived. ``losses`` follows the tasks, as they are when it is asked."""

    kind: Kind
    first: bool
    """Whether it is the first after a boundary."""
    embeddings: npt.NDArray[np.float32]
    """(samples, WIDTH)"""
    tasks: list[Task]
    factors: npt.NDArray[np.float64]
    """(samples,) each answer's own."""

    def losses(self) -> npt.NDArray[np.float64]:
        """(samples,) nats, of the model in force."""
        return np.array([task.nats for task in self.tasks]) * self.factors


@dataclass
class Score:
    """Of one test on one stream."""

    delays: dict[Kind, list[int]] = field(default_factory=lambda: {"start": [], "task": [], "drift": []})
    missed: int = 0
    quiet_hours: int = 0
    false_alarms: int = 0


def stream(seed: int, boundaries: int, traffic: Traffic) -> Iterator[Hour]:
    """The hours; after each, the model is trained on it."""
    rng = np.random.default_rng(seed)
    current = Task(np.zeros(WIDTH))
    changed, share = current, 0.0  # the part of its questions that has new answers since a drift
    earlier: list[Task] = []
    for segment in range(boundaries + 1):
        kind: Kind = "start" if not segment else "drift" if segment % 3 == 0 else "task"
        if kind == "drift":
            changed, share = Task(current.centre, DRIFTED), float(rng.uniform(0.1, 0.6))
        elif kind == "task":
            earlier = [*earlier, current][-REMEMBERED:]
            way = rng.normal(size=WIDTH)
            current = Task(current.centre + rng.uniform(0.7, 4.0) * way / np.linalg.norm(way))
            changed, share = current, 0.0
        for hour in range(int(rng.integers(4, 9))):
            now = [changed if new else current for new in rng.random(HOUR) < share]
            old = int(rng.binomial(HOUR, OLD_SHARE)) if traffic == "mixed" and earlier else 0
            now[:old] = [earlier[place] for place in rng.integers(len(earlier) or 1, size=old)]
            yield _hour(rng, kind, hour == 0, now, traffic)
            for task in {id(task): task for task in (current, changed)}.values():
                task.trained_hours += 1


def _hour(rng: np.random.Generator, kind: Kind, first: bool, tasks: list[Task], traffic: Traffic) -> Hour:
    embeddings = np.array([task.centre for task in tasks]) + rng.normal(size=(HOUR, WIDTH))
    factors = 1.6 ** rng.normal(size=HOUR)
    if traffic == "bursty":
        embeddings[:COPIES], factors[:COPIES] = embeddings[0], factors[0]
    elif traffic == "distinct":  # the one that is left of them does not matter
        embeddings, factors, tasks = embeddings[COPIES:], factors[COPIES:], tasks[COPIES:]
    return Hour(kind, first, embeddings.astype(np.float32), tasks, factors)


def score(seed: int, boundaries: int, traffic: Traffic, test: Literal["mmd", "loss"]) -> Score:
    """Run one test over the stream."""
    result, reference = Score(), list[Hour]()
    waiting: int | None = None  # hours since a boundary that is not found yet
    kind: Kind = "start"
    for number, hour in enumerate(stream(seed, boundaries, traffic)):
        if hour.first and (hour.kind == "task" or (hour.kind == "drift" and test == "loss")):
            _give_up(result, kind, waiting)
            waiting, kind = 0, hour.kind
        alarm = bool(reference) and _alarm(test, reference, hour, seed=number)
        if waiting is None:
            result.quiet_hours += bool(reference)
            result.false_alarms += alarm
        elif alarm:
            result.delays[kind].append(waiting)
            waiting = None
        else:
            waiting += 1
        reference = [hour] if alarm else [*reference, hour]
    _give_up(result, kind, waiting)
    return result


def _give_up(result: Score, kind: Kind, waiting: int | None) -> None:
    if waiting is not None:
        result.delays[kind].append(waiting)
        result.missed += 1


def _alarm(test: str, reference: list[Hour], hour: Hour, seed: int) -> bool:
    if test == "mmd":
        before = np.concatenate([past.embeddings for past in reference])[-REFERENCE:]
        return embedding_shift(before, hour.embeddings, level=LEVEL, seed=seed).shifted
    losses = np.concatenate([past.losses() for past in reference])[-REFERENCE:]
    return loss_shift(losses, hour.losses(), level=LEVEL, seed=seed).shifted


def run(call: Call) -> None:
    """Both tests on each kind of traffic."""
    boundaries = 20 if call.quick else 120
    for seed in call.seeds:
        for traffic in TRAFFIC:
            call.progress(f"{traffic}, seed {seed}")
            for test in ("mmd", "loss"):
                _tell(call, test, traffic, score(seed, boundaries, traffic, test))
    columns = ["test, traffic", "delay, new task (h)", "delay, drift (h)", "missed", "false alarms / 100 h"]
    rows = [
        [f"{test}, {traffic}", *(spread(call.values(_key(test, traffic, name)), 2) for name in NAMES)]
        for test in ("mmd", "loss")
        for traffic in TRAFFIC
    ]
    call.table("Boundaries without labels", columns, rows, "delay 0: found in the first hour; level .01: 1 in 100 h")


NAMES = ("delay_hours", "drift_delay_hours", "missed", "false_alarms_per_100h")


def _key(test: str, traffic: Traffic, name: str) -> str:
    return f"boundary.{test}.{name if traffic == 'clean' else f'{traffic}_{name}'}"


def _tell(call: Call, test: str, traffic: Traffic, found: Score) -> None:
    call.result(_key(test, traffic, "delay_hours"), float(np.mean(found.delays["task"])))
    if found.delays["drift"]:
        call.result(_key(test, traffic, "drift_delay_hours"), float(np.mean(found.delays["drift"])))
    asked = sum(len(delays) for delays in found.delays.values())
    call.result(_key(test, traffic, "missed"), found.missed / asked)
    call.result(_key(test, traffic, "false_alarms_per_100h"), 100 * found.false_alarms / found.quiet_hours)


BENCHMARK = Benchmark(name="bench_boundary", about=__doc__, run=run)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
