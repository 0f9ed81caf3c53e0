"""Does the hourly cycle learn task after task without forgetting, as well as if it had seen them all at once?

Method. A Llama of 0.36 M weights is made on seven base skills. Then come hours of 96 recorded trajectories: base
traffic first, then an agent's tasks, about five hours each, which nobody announces; 15 % of the answers are wrong and
rated 0. After each hour a method learns, after each task it is examined, greedily, on questions drawn apart. Streams:

* plain: five tasks in words of their own;
* overlap: five tasks whose prompts share all words but one verb at a random place;
* drift: the five tasks, then all five again with other right answers to the same prompts; only the new ones count;
* many: twenty small tasks of two hours each;
* mixed: as plain, but 30 % of each hour comes from the base skills or an earlier task.

Methods: ``sona`` is the product with its default settings, through its own path (record, cycle, gate, swap, answer);
``sona_shared`` has one adapter for everything; ``sona_no_ewc`` does without EWC++. The peers are one PEFT adapter of
the same rank and 32 steps of 32 answers an hour: ``peft`` alone; ``replay``, half of each batch drawn from all that was
stored; ``ewc_avalanche``, Avalanche's EWC plugin (its formula), and ``olora``, O-LoRA, both told the true boundaries;
``joint``, all answers that are right at the end, shuffled: it sees the future, so it is a measure and not a method.

``acc`` is the mean accuracy on the tasks after the stream, ``la`` right after each one's own segment, ``bwt`` what was
lost between the two, ``fwt`` what was gained before a task's first hour; ``base_kept`` is the accuracy on the base
skills after the stream divided by that before; ``cpu_s`` is CPU time of learning (sona's: recording, cycles and swaps).
``boundary.delay_hours`` is from a task's first hour to the first skill founded in it; any other founding is a false
alarm. ``step.ewc_over_plain`` compares a training step with EWC++ to one of PEFT with AdamW, and
``cycle.last_over_second`` the last of 100 cycles with the second, on queries of two tasks whose right answers change
with each cycle: each has as much to learn, and only what is stored grows.

What would make the figures misleading. The tasks are small and formal, and their right answers are sharp: what a model
of this size forgets, and how well its features tell tasks apart, need not be what larger ones do. Questions of tasks
with few facts recur in the exam. The peers were tuned on the seeds 100 and 101 of the plain stream alone, and take a
fixed number of steps an hour, while sona chooses its own by what is new; CPU seconds say what each took. Avalanche's
EWC and O-LoRA know the boundaries. Joint training has no order, so its ``la`` is its ``acc`` and its ``bwt`` 0 by
definition. With ``--quick`` one seed, three methods and two tasks of one hour are left, on a base model made in fewer
steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.forgetting.base import Recipe, base_folder
from benchmarks.forgetting.course import Course
from benchmarks.forgetting.cycle_cost import cycle_seconds, last_over_second
from benchmarks.forgetting.detection import Detection
from benchmarks.forgetting.methods import JOINT, METHODS, Job, Outcome, run_jobs
from benchmarks.forgetting.step_cost import step_cost
from benchmarks.forgetting.stream import WORLDS, Stream, StreamSize, make_stream
from benchmarks.forgetting.world import BASE
from benchmarks.matrix import draw_matrices
from benchmarks.table import Cell, spread

SEEDS = (0, 1, 2)
PARTS = ("streams", "step", "cycle")
FIGURES = ("acc", "bwt", "la", "fwt", "base_kept")
QUICK = StreamSize(per_hour=80, base_hours=1, hours=1, jitter=0, tasks=2, exam=30, base_exam=70)
QUICK_METHODS = ("sona", JOINT, "peft")
QUICK_STEPS = 150  # of the base model
TURNS, QUICK_TURNS = 15, 1
CYCLES, QUICK_CYCLES = 100, 6
DETECTOR = "sona"
"""The method whose alarms are scored."""


def run(call: Call) -> None:
    """Measure what ``--only`` names, or everything."""
    if call.quick:
        call.seeds = call.seeds[:1]
    only = call.options.only
    if only in (None, "streams"):
        _compare(call)
    if only in (None, "step"):
        _time_steps(call)
    if only in (None, "cycle"):
        _time_cycles(call)


def _compare(call: Call) -> None:
    """All methods on all streams."""
    streams = call.options.streams or (("plain",) if call.quick else tuple(WORLDS))
    methods = call.options.methods or (QUICK_METHODS if call.quick else METHODS)
    size = QUICK if call.quick else None
    found: dict[str, list[Detection]] = {}
    for name in streams:
        jobs = [Job(name, size, seed, method, _base(call, seed)) for seed in call.seeds for method in methods]
        rounds: dict[str, list[Outcome]] = {method: [] for method in methods}
        for job, outcome in zip(jobs, run_jobs(jobs, call.options.jobs), strict=True):
            rounds[job.method].append(outcome)
            _tell(call, f"{name}.{job.method}", job.method, outcome.course)
            if job.method == DETECTOR:
                found.setdefault(name, []).append(_births(make_stream(name, job.seed, size), outcome))
        _show(call, name, rounds)
    if found:
        _show_detection(call, found)


def _tell(call: Call, label: str, method: str, course: Course) -> None:
    for figure in FIGURES:
        if (method, figure) != (JOINT, "fwt"):
            call.result(f"{label}.{figure}", getattr(course.matrix, figure))
    call.result(f"{label}.cpu_s", course.cpu_s)


def _show(call: Call, name: str, rounds: dict[str, list[Outcome]]) -> None:
    columns = ["method", *(figure.replace("_", " ") for figure in FIGURES), "CPU s", "cycles published"]
    rows: list[list[Cell]] = []
    for method, outcomes in rounds.items():
        figures = [spread(call.values(f"{name}.{method}.{figure}")) for figure in FIGURES]
        rows.append([method, *figures, spread(call.values(f"{name}.{method}.cpu_s"), 1), _published(outcomes)])
    call.table(f"{name}: after the stream", columns, rows, _note(call))
    for method, outcomes in rounds.items():
        matrices = [outcome.course.matrix for outcome in outcomes]
        # The order of the tasks is the seed's, so the picture is of the first seed alone.
        shares, tasks = matrices[0].shares(), matrices[0].segments
        size = 2.0 + 0.55 * len(tasks), 1.5 + 0.25 * len(tasks)
        with call.picture(f"{BENCHMARK.name}-{name}-{method}", *size) as figure:
            if figure is not None:
                draw_matrices(figure, {f"{name}, {method}, seed {call.seeds[0]}": shares}, tasks, "segment")


def _published(outcomes: Sequence[Outcome]) -> str | None:
    """How many cycles of all seeds were published; None for the peers, which have no cycles."""
    statuses = [report.status for outcome in outcomes for report in outcome.reports]
    return f"{statuses.count('published')} of {len(statuses)}" if statuses else None


def _births(stream: Stream, outcome: Outcome) -> Detection:
    """Founded skills against the tasks with new prompts; a task that comes again with other answers is no new skill."""
    alarms = [report.metrics.get("skills_born", 0.0) for report in outcome.reports]
    begun = [hour for task, hour in stream.starts.items() if task != BASE and not task.startswith("new ")]
    end = stream.starts.get(next((task for task in stream.starts if task.startswith("new ")), ""), len(alarms))
    return Detection.of(alarms[:end], begun)


def _show_detection(call: Call, found: dict[str, list[Detection]]) -> None:
    rows: list[list[Cell]] = []
    for name, detections in found.items():
        delays = [one.delay_hours for one in detections if one.delay_hours is not None]
        alarms = [one.false_alarms_per_100h for one in detections]
        for delay in delays:
            call.result("boundary.delay_hours", delay)
        for alarm in alarms:
            call.result("boundary.false_alarms_per_100h", alarm)
        rows.append([name, spread(delays, 2), fmean(one.missed for one in detections), spread(alarms, 1)])
    columns = ["stream", "delay, hours", "tasks missed", "false alarms per 100 h"]
    call.table(f"Founded skills against begun tasks ({DETECTOR})", columns, rows, _note(call))


def _time_steps(call: Call) -> None:
    rows: list[list[Cell]] = []
    for seed in call.seeds:
        cost = step_cost(_base(call, seed), seed, QUICK_TURNS if call.quick else TURNS)
        call.result("step.ewc_over_plain", cost.ewc_s / cost.plain_s)
        rows.append([seed, 1000 * cost.ewc_s, 1000 * cost.plain_s, cost.ewc_s / cost.plain_s])
    call.table("A training step", ["seed", "EWC++, CPU ms", "PEFT, CPU ms", "ratio"], rows, _note(call))


def _time_cycles(call: Call) -> None:
    rows: list[list[Cell]] = []
    for seed in call.seeds[:1]:  # a hundred cycles are enough of one seed
        count = QUICK_CYCLES if call.quick else CYCLES
        seconds = cycle_seconds(_base(call, seed), seed, count, _prefixed(call, "cycle's time"))
        call.result("cycle.last_over_second", last_over_second(seconds))
        quarters = [float(np.median(part)) for part in np.array_split(seconds[1:], 4)]
        rows.append([seed, *quarters, last_over_second(seconds)])
    columns = ["seed", *(f"quarter {number}, CPU s" for number in range(1, 5)), "last over second"]
    call.table("A cycle's time, cycle after cycle", columns, rows, _note(call))


def _base(call: Call, seed: int) -> Path:
    recipe = Recipe(seed, steps=QUICK_STEPS) if call.quick else Recipe(seed)
    return base_folder(recipe, progress=call.progress)


def _prefixed(call: Call, label: str) -> Callable[[str], None]:
    return lambda line: call.progress(f"{label}: {line}")


def _note(call: Call) -> str:
    return f"seeds {', '.join(map(str, call.seeds))}" + (", --quick: too small to count" if call.quick else "")


def _listed(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads ``a,b`` out of the ``known`` names."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(part for part in text.split(",") if part)
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: give some of {', '.join(known)}")
        return names

    return read


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(seeds=SEEDS)
    parser.add_argument("--only", choices=PARTS, help="this part alone (default: all)")
    parser.add_argument("--streams", type=_listed(tuple(WORLDS)), metavar="A,B", help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes for the streams (default: 1)")
    parser.add_argument("--methods", type=_listed(METHODS), metavar="A,B", help=f"of {', '.join(METHODS)}")


BENCHMARK = Benchmark("bench_forgetting", __doc__, run, add_options=_add_options)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
