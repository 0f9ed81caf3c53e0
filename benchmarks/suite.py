"""All benchmarks in one run: one JSON, one page of Markdown, the pictures."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark
from benchmarks.machine import commit, machine
from benchmarks.options import OUT, add_data, add_model, new_parser
from benchmarks.table import Table

HERE = Path(__file__).resolve().parent
REPORT = "report.md"


@dataclass
class Outcome:
    """What became of one benchmark."""

    name: str
    word: str = "measured"
    """... or why not."""
    failed: bool = False
    measured: dict[str, Any] = field(default_factory=dict)
    """Its JSON file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every benchmark that can run; 1 where one failed, which stops none of the others."""
    parser = new_parser("Run every benchmark; those whose data are not given are skipped.", OUT / "results.json")
    add_data(parser, "what a benchmark reads; each takes the folders that suit it")
    add_model(parser)
    options = parser.parse_args(arguments)
    outcomes = [_run(benchmark, options) for benchmark in discover()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"commit": commit(), "machine": machine(), "benchmarks": {o.name: o.measured or o.word for o in outcomes}}
    options.out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    (options.out.parent / REPORT).write_text(report(outcomes), encoding="utf-8")
    for outcome in outcomes:
        print(f"{outcome.name}: {outcome.word}")
    print(f"written: {options.out} and {REPORT} beside it")
    return int(any(outcome.failed for outcome in outcomes))


def discover() -> Iterator[Benchmark]:
    """The ``BENCHMARK`` of each ``bench_*.py`` beside this file, by name."""
    for file in sorted(HERE.glob("bench_*.py")):
        benchmark = importlib.import_module(f"benchmarks.{file.stem}").BENCHMARK
        assert isinstance(benchmark, Benchmark)
        assert benchmark.name == file.stem
        yield benchmark


def _run(benchmark: Benchmark, options: Namespace) -> Outcome:
    """In a process of its own, so that no benchmark measures what another left behind."""
    data = [folder for folder in options.data if benchmark.data is not None and benchmark.data.fits(folder)]
    if trouble := benchmark.trouble(data):
        return Outcome(benchmark.name, f"skipped: {trouble}")
    out = options.out.parent / f"{benchmark.name}.json"
    out.unlink(missing_ok=True)  # of an earlier run, which must not pass for this one's
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *_passed_on(benchmark, options, data, out)]
    done = subprocess.run(command, check=False)
    if done.returncode or not out.is_file():
        return Outcome(benchmark.name, f"failed with exit code {done.returncode}", failed=True)
    return Outcome(benchmark.name, measured=json.loads(out.read_text(encoding="utf-8")))


def _passed_on(benchmark: Benchmark, options: Namespace, data: list[Path], out: Path) -> list[str]:
    words = ["--out", str(out), "--seeds", "".join(f"{seed}," for seed in options.seeds)]
    words += ["--quick"] * options.quick
    for folder in data:
        words += ["--data", str(folder)]
    for model in options.model if benchmark.takes_model else ():
        words += ["--model", model]
    return words


def report(outcomes: Sequence[Outcome]) -> str:
    """The page: where it was measured, then each benchmark's tables and pictures."""
    place = ", ".join(f"{key} {value}" for key, value in machine().items())
    parts = ["# Benchmarks", "", f"Commit {commit()}; {place}.", ""]
    for outcome in outcomes:
        parts += [f"## {outcome.name}", ""]
        if not outcome.measured:
            parts += [f"{outcome.word}", ""]
            continue
        quick = ", `--quick`: too small to count" if outcome.measured["quick"] else ""
        parts += [f"Seeds {outcome.measured['seeds']}, {outcome.measured['seconds']:.0f} s{quick}.", ""]
        parts += [Table.from_json(table).markdown() for table in outcome.measured["tables"]]
        parts += [f"![{picture}]({picture})\n" for picture in outcome.measured["pictures"]]
    return "\n".join(parts)
