"""What does recording cost the caller, how much of it is durable a second, and does it go on like that?

Method. The caller's side (``record.*``) is timed call by call on an engine with the shipped model, so that token ids
are checked too. ``record`` is the call with a trajectory that was built before; ``whole`` begins with arrays and texts,
and holds the building and checking of two steps and the trajectory. In a *burst* calls follow each other, *paced* they
come a thousand a second, as to a host that does other things too, and *cold* each follows 64 MB of other memory being
touched: what the slowest of the paced calls take (ADR 6). *machine, paced* records nothing: it changes one byte of 150
pages at the same pace, ten lines of numpy; where its 99 % are not far below those of ``record()``, they tell of the
machine and not of ``record()``. The peer, @ruvector/sona (npm), does begin, two steps and end with the same width, in
memory only and without token ids, texts or checks; it stands against our ``whole`` without token ids. A step of its
interface is its activations, a vector as wide as the query's, so three vectors go through N-API, while ours is one
vector and two steps with a name: ``record.peer_over_ours`` compares what each is made for. *peer, steps without
activations* gives it empty ones, so that both hand over one vector (``peer_bare_over_ours``). Rounds alternate; each
figure is the median of the rounds' percentiles.

``durable.per_s`` counts records of 3.8 kB (384 numbers, 500 ids) whose synced commit has returned, a batch to a commit:
of the store alone, from ``record()`` to ``flush()`` in one thread, and beside them what would be the limit on this
disk: Python's own sqlite3 with one bare table, and a log file that is synced after each batch. *bare log* writes the
records one by one to a buffered file of Python's, as logs often are; *bare log, one write* joins the batch and hands it
to the system in one call, the least that can be done: ``over_bare_log`` and ``over_bare_log_one_write``. All take
turns. Each batch is built just before it is stored, which is not timed; with all built before the first, the store
does a seventh worse against the log (ADR 15).

``million`` records a million trajectories with feedback in one process: its memory at the end over that after the first
tenth, and the last tenth's rate over the first's.

What would make the figures misleading. A disk whose sync returns before the data are safe makes everything durable
look fast: compare with the bare log in the same table. Percentiles beyond 99 % are those of a shared machine: the
scheduler, not the code. The writer shares the interpreter with the caller, so a burst is faster than it would be if the
host also worked in between; the paced row shows that. A burst that is longer than ``store.queue_bytes`` is rejected.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

import sona
from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.fast_loop import caller, durable, million, peer
from benchmarks.fast_loop.caller import Kind, Latency
from benchmarks.fast_loop.traffic import Traffic
from benchmarks.table import Cell

MAIN_WIDTH, TOKENS = 384, 500
WIDTHS = (256, MAIN_WIDTH, 1024)
THREADS = 8
BATCHES = (1, 32, 256)
PARTS = ("caller", "durable", "million")


def run(call: Call) -> None:
    """The parts that were asked for."""
    where: Path | None = call.options.disk
    if "caller" in call.options.only:
        _caller(call, where)
    if "durable" in call.options.only:
        _durable(call, where)
    if "million" in call.options.only:
        _million(call, where)


def _caller(call: Call, where: Path | None) -> None:
    rounds, calls = (2, 500) if call.quick else (7, 3000)
    found: dict[tuple[str, int, int], list[Latency]] = {}
    absent = peer.trouble()
    for round_number in range(rounds):
        call.progress(f"caller's side, round {round_number + 1} of {rounds}")
        for width in WIDTHS:
            if width == MAIN_WIDTH:
                found.setdefault(("machine, paced", 0, 0), []).append(Latency.of(caller.machine(calls // 3)))
            for tokens in (0, TOKENS):
                for name, latency in _ours(width, tokens, calls, round_number, where).items():
                    found.setdefault((name, width, tokens), []).append(latency)
            for name, (activations, attention) in {} if absent else _peers(width).items():
                found.setdefault((name, width, 0), []).append(peer.latency(width, calls, activations, attention))
    middle = {key: _median(values) for key, values in found.items()}
    rows: list[list[Cell]] = [[*key, one.median, one.p99, one.p999] for key, one in sorted(middle.items())]
    columns = ["what", "width", "token ids", "median us", "99 % us", "99.9 % us"]
    call.table("What recording costs the caller", columns, rows, absent and f"the peer is absent: {absent}")
    _tell_caller(call, middle)


def _peers(width: int) -> dict[str, tuple[int, int]]:
    """By name, how many activations and how many attention weights go with each of the peer's steps."""
    return {
        "peer": (width, 0),
        "peer, steps without activations": (0, 0),
        "peer, with attention weights": (width, width),
    }


def _ours(width: int, tokens: int, calls: int, seed: int, where: Path | None) -> dict[str, Latency]:
    traffic = Traffic.of(500, width, tokens, seed)
    found: dict[str, Latency] = {}
    kinds: tuple[Kind, ...] = ("record", "whole")
    with TemporaryDirectory(dir=where) as folder, sona.open_sync(folder, model="tiny") as engine:
        caller.burst(engine, traffic, 200, "whole")
        for kind in kinds:
            found[f"{kind}, burst"] = Latency.of(caller.burst(engine, traffic, calls, kind))
            found[f"{kind}, paced"] = Latency.of(caller.paced(engine, traffic, calls // 3, kind))
            found[f"{kind}, burst of {THREADS} threads"] = Latency.of(
                caller.burst(engine, traffic, calls, kind, THREADS)
            )
        found["record, cold"] = Latency.of(caller.cold(engine, traffic))
    return found


def _median(values: list[Latency]) -> Latency:
    return Latency(
        *(statistics.median(part) for part in zip(*((v.median, v.p99, v.p999) for v in values), strict=True))
    )


def _tell_caller(call: Call, middle: dict[tuple[str, int, int], Latency]) -> None:
    call.result("record.burst_median_us", middle["record, burst", MAIN_WIDTH, TOKENS].median)
    call.result("record.paced_p99_us", middle["record, paced", MAIN_WIDTH, TOKENS].p99)
    call.result("record.machine_p99_us", middle["machine, paced", 0, 0].p99)
    call.result("record.paced_median_us", middle["record, paced", MAIN_WIDTH, TOKENS].median)
    call.result("record.cold_median_us", middle["record, cold", MAIN_WIDTH, TOKENS].median)
    call.result("record.whole_burst_median_us", middle["whole, burst", MAIN_WIDTH, TOKENS].median)
    call.result("record.whole_paced_p99_us", middle["whole, paced", MAIN_WIDTH, TOKENS].p99)
    if ("peer", MAIN_WIDTH, 0) in middle:
        ours = middle["whole, burst", MAIN_WIDTH, 0].median
        call.result("record.peer_over_ours", middle["peer", MAIN_WIDTH, 0].median / ours)
        bare = middle["peer, steps without activations", MAIN_WIDTH, 0].median
        call.result("record.peer_bare_over_ours", bare / ours)


def _durable(call: Call, where: Path | None) -> None:
    rounds = 2 if call.quick else 7
    traffic = Traffic.of(1000, MAIN_WIDTH, TOKENS, seed=0)
    rows = []
    for batch in BATCHES:
        records = min(100 * batch, 2000 if call.quick else 20_000)
        found: dict[str, list[float]] = {name: [] for name in durable.WAYS}
        for round_number in range(rounds):
            call.progress(f"durable records, {batch} to a commit, round {round_number + 1} of {rounds}")
            for name, rate in durable.rates(traffic, records, batch, where).items():
                found[name].append(rate)
        middle = {name: statistics.median(rates) for name, rates in found.items()}
        over_log, over_one_write = (
            statistics.median(ours / log for ours, log in zip(found["store"], found[name], strict=True))
            for name in ("bare log", "bare log, one write")
        )
        rows.append([batch, *(round(rate) for rate in middle.values()), over_log, over_one_write])
        call.result(f"durable.per_s.{batch}", middle["store"])
        call.result(f"durable.recorded_per_s.{batch}", middle["record() to durable"])
        call.result(f"durable.over_bare_log.{batch}", over_log)
        call.result(f"durable.over_bare_log_one_write.{batch}", over_one_write)
    columns = ["records to a commit", *durable.WAYS, "store over bare log", "... over one write"]
    call.table("Durable records a second", columns, rows, "3.8 kB each; the ratio is the median of the rounds' ratios")


def _million(call: Call, where: Path | None) -> None:
    count = 20_000 if call.quick else 1_000_000
    call.progress(f"{count} trajectories in one process")
    parts = million.measure(count, where)
    rows = [[part.recorded, round(part.rss_bytes / 2**20), round(part.per_s)] for part in parts]
    call.table("Many trajectories, each with a feedback", ["recorded", "memory, MiB", "trajectories/s"], rows)
    call.result("million.rss_ratio", parts[-1].rss_bytes / parts[0].rss_bytes)
    call.result("million.rate_ratio", parts[-1].per_s / parts[0].per_s)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument(
        "--disk", type=Path, metavar="DIR", help="where stores are made (default: the temporary folder)"
    )


BENCHMARK = Benchmark(name="bench_fast_loop", about=__doc__, run=run, add_options=_add_options)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
