"""Does an engine learn a stream of real queries, domain after domain, and keep what it learned and could do before?

Method. Each domain of an intent data set arrives in two parts, and a cycle follows each: prompt = the query, response =
its intent in words, 15 % of the responses wrong and rated 0. After each cycle the version in force is examined on
queries of all domains that were never recorded. Compared are, on the same trajectories:

* base: the untouched model;
* sona: ``sona.open_sync`` with its default settings, the gate included;
* shared: the same with ``skills.mode = "shared"``, one adapter for everything and no router;
* plain: the same cycles with one adapter for everything, without EWC++, replay and probes, and without the gate, so
  that everything is published;
* joint: all trajectories in one cycle, shuffled, with one adapter, without EWC++, replay, probes and gate. It sees the
  future: a measure of what there was to learn, not a method.

Plain and joint take as many optimizer steps of the same batch size as sona, cycle by cycle (joint: in all), at the same
rate, and are examined at the running average of weights. Shared takes its own number, which is larger: part of each
batch holds the base.

``acc`` is the mean accuracy over all domains after the last cycle. ``base_kept`` is, after divided by before, for the
shipped model the share of right answers to held-out prompts of its own skills; for any other model the share of tokens
of its own greedy answers, to prompts that it wrote itself, that it still chooses, each weighted by how sure of it the
base was. None of these prompts was trained on.

What would make the figures misleading. The domains always come in the data's order. A cycle that the gate rejects has
spent its steps for nothing; the table says how many there were. A third of a batch under sona may be replay, so at
equal steps it sees what is new less often than plain does. Its steps are those of all its adapters. An answer counts
only if it is right to the last token. These are models of a quarter to one million weights: what is hard for them need
not be for larger ones, and the reverse. With ``--quick`` two domains of four intents are left.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.course import Course, Settings, as_it_comes, travel, unprotected
from benchmarks.examiner import SHIPPED, Examiner, Marks
from benchmarks.intent_stream import NEED, IntentStream, StreamSize, intent_stream
from benchmarks.matrix import draw_matrices
from benchmarks.table import Cell, spread
from benchmarks.word_vectors import WordVectors
from sona.ports import Served

QUICK = StreamSize(domains=2, intents=4, chunks=1, chunk=100, held_out=40)


GATED = ("sona", "shared")


@dataclass(frozen=True)
class Round:
    """What one seed came to."""

    stream: IntentStream
    base: Marks
    courses: dict[str, Course]
    """By method: sona, shared, plain, joint."""

    def kept(self, marks: Marks) -> float:
        """Of the base model's skills: after, divided by before."""
        return marks.kept / self.base.kept


def run(call: Call) -> None:
    """Compare the methods on every data set with every model."""
    vectors = None if call.options.embeddings is None else WordVectors(call.options.embeddings)
    for folder in call.data:
        for model in call.models:
            label = f"{folder.resolve().name}.{model if model == SHIPPED else Path(model).resolve().name}"
            size = QUICK if call.quick else StreamSize()
            rounds = []
            for seed in call.seeds:
                call.progress(f"{label}, seed {seed}")
                rounds.append(one_round(intent_stream(folder, size, seed), model, seed, vectors, call.progress))
            _tell(call, label, rounds)
            _show(call, label, rounds)


def one_round(
    stream: IntentStream,
    model: str,
    seed: int,
    vectors: WordVectors | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Round:
    """All methods on one stream."""

    def go(method: str, stream: IntentStream, settings: Settings) -> Course:
        return travel(stream, model, settings, examiner, vectors, lambda line: progress(f"{method}: {line}"))

    questions = {domain: [(query.text, query.intent) for query in asked] for domain, asked in stream.held_out.items()}
    examiner = Examiner(model, questions, seed)
    ours = go("sona", stream, as_it_comes(seed))
    shared = go("shared", stream, as_it_comes(seed, "shared"))
    plain = go("plain", stream, unprotected(seed, ours.steps))
    joint = go("joint", stream.merged(), unprotected(seed, [sum(ours.steps)]))
    return Round(stream, examiner.mark(Served({})), {"sona": ours, "shared": shared, "plain": plain, "joint": joint})


def _tell(call: Call, label: str, rounds: list[Round]) -> None:
    """The figures, with a prefix for all methods but our own."""
    for one in rounds:
        call.result(f"{label}.base_acc", one.base.mean)
        for method, course in one.courses.items():
            prefix = f"{label}." if method == "sona" else f"{label}.{method}_"
            call.result(f"{prefix}acc", course.marks[-1].mean)
            call.result(f"{prefix}base_kept", one.kept(course.marks[-1]))
        call.result(f"{label}.rejected", one.courses["sona"].count("rejected"))


def _show(call: Call, label: str, rounds: list[Round]) -> None:
    domains = rounds[0].stream.domains
    size = f"{len(rounds[0].stream.chunks)} cycles, {sum(map(len, rounds[0].stream.chunks))} trajectories"
    note = f"{size}, seeds {', '.join(map(str, call.seeds))}" + (", --quick: too small to count" if call.quick else "")
    columns = ["method", *domains, "acc", "base kept", "rejected", "steps", "CPU s"]
    base: list[Cell] = ["base", *_accuracies([one.base for one in rounds]), "1.000", None, None, None]
    rows = [base, *(_summary(rounds, method) for method in rounds[0].courses)]
    call.table(f"{label}: after the last cycle", columns, rows, note)
    columns = ["cycle", *domains, "acc", "base kept", "gate"]
    for method in (*GATED, "plain"):
        call.table(f"{label}: {method}, cycle by cycle", columns, _cycles(rounds, method))
    with call.picture(f"{BENCHMARK.name}-{label}", 8.0, 9.0) as figure:
        if figure is not None:
            draw_matrices(figure, {method: _matrix(rounds, method) for method in rounds[0].courses}, domains)


def _summary(rounds: list[Round], method: str) -> list[Cell]:
    """One method's row of the first table."""
    courses = [one.courses[method] for one in rounds]
    return [
        method,
        *_accuracies([course.marks[-1] for course in courses]),
        spread([one.kept(course.marks[-1]) for one, course in zip(rounds, courses, strict=True)]),
        spread([course.count("rejected") for course in courses], 0) if method in GATED else None,
        spread([sum(course.steps) for course in courses], 0),
        spread([course.cpu_s for course in courses], 0),
    ]


def _cycles(rounds: list[Round], method: str) -> list[list[Cell]]:
    """A row a cycle; what the gate did is counted where the seeds differ."""
    rows: list[list[Cell]] = []
    for cycle, domain in enumerate(rounds[0].stream.chunk_domains):
        marks = [one.courses[method].marks[cycle] for one in rounds]
        kept = spread([one.kept(mark) for one, mark in zip(rounds, marks, strict=True)])
        statuses = Counter(one.courses[method].reports[cycle].status for one in rounds)
        verdict = ", ".join(status if len(rounds) == 1 else f"{count} {status}" for status, count in statuses.items())
        rows.append([f"{cycle + 1} {domain}", *_accuracies(marks), kept, verdict])
    return rows


def _accuracies(marks: list[Marks]) -> list[str]:
    """Of each domain and of all."""
    by_domain = [spread([mark.accuracy[domain] for mark in marks], 2) for domain in marks[0].accuracy]
    return [*by_domain, spread([mark.mean for mark in marks])]


def _matrix(rounds: list[Round], method: str) -> list[list[float]]:
    """Accuracy (cycles, domains), the mean over the seeds."""
    tables = [[list(mark.accuracy.values()) for mark in one.courses[method].marks] for one in rounds]
    return [[float(share) for share in row] for row in np.mean(tables, axis=0)]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="DIR",
        help="embed queries by the vectors.npz in it (default: by the frozen model)",
    )


BENCHMARK = Benchmark("bench_real_stream", __doc__, run, data=NEED, takes_model=True, add_options=_add_options)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
