"""Is leave-one-out exact, and how much faster than a full pass for each memory?

Method. Conversations of about 2,000 random tokens, 16 memories, 8 responses, that a Qwen3 of 4 layers, 256 wide, with
random weights reads in float32. The memories stand before the conversation (``front``), two in each turn
(``interleaved``), or four in each turn of the second half (``late``); the vocabulary is 8,192 or 151,936. Times are CPU
seconds of one thread, each method in turn in each round, of which the best counts.

* ``naive``: N + 1 full passes with the log-softmax of all logits. ``rows``: the same with the output head on the
  responses' rows alone. ``ours``: :class:`sona.attribution.leave_one_out.LeaveOneOut`.
  ``speedup.<layout>.<vocabulary>`` is naive over ours.
* ``online``: after each turn the new response is scored against all memories so far; naive and rows do N + 1 passes a
  turn, ours keeps a cache of each variant. ``speedup.online`` is of the interleaved layout at 8,192, over naive;
  ``speedup.online_over_rows`` over rows.
* ``engine``: such a conversation of words, two memories in each turn, as a host records it: ``engine.memories`` scores
  each turn's answer, and the memories' weights, templates and tokenizing included. ``speedup.engine`` is each turn read
  from its beginning (``candidates.live_bytes = 0``, which is ``ours`` of each turn) over read on from the last one;
  ``max_abs_diff.engine`` the largest difference of an answer's dependence on its memories between the two, in nats.
* ``max_abs_diff``: the largest difference of a token's log-probability from naive's, in nats, of all that was measured.
* ``context_cite``: that package's own passes and regression, 64 ablations, for the last of the 8 responses alone. It
  answers another question (a linear model of what memories do together), so only its time is comparable.

What would make the figures misleading. Random weights take the time of trained ones, but their effects mean nothing.
The model is small: of a larger one the output head is a smaller share at the same vocabulary, and the last layer, which
ours runs on the responses' rows alone, one of many. The longer the responses, the less is saved by scoring them alone.
Rendering and tokenizing the variants is in ``engine`` alone. Other programs on the machine make CPU seconds longer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.leave_one_out import peer
from benchmarks.leave_one_out.engine import engine
from benchmarks.leave_one_out.measuring import Measured, matrix, online
from benchmarks.leave_one_out.scenario import LAYOUTS
from benchmarks.table import Cell, spread

SMALL, LARGE = 8192, 151_936
ROUNDS = {SMALL: 3, LARGE: 1}
METHODS = ("naive", "rows", "ours")
QUICK_LAYOUTS = ("interleaved",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--vocab``."""
    parser.add_argument("--vocab", type=int, choices=(SMALL, LARGE), help="one size of the vocabulary alone")


def run(call: Call) -> None:
    """Each layout and vocabulary, then online, for each seed."""
    if lacking := peer.trouble():
        call.note(lacking)
    sizes = [call.options.vocab] if call.options.vocab else [SMALL] if call.quick else [SMALL, LARGE]
    rows: list[list[Cell]] = []
    for vocab in sizes:
        for layout in QUICK_LAYOUTS if call.quick else LAYOUTS:
            for seed in call.seeds:
                call.progress(f"{layout}, vocabulary {vocab}, seed {seed}")
                _tell(call, f"{layout}.{vocab}", matrix(layout, vocab, seed, 1 if call.quick else ROUNDS[vocab]))
                if not lacking and not call.quick and (vocab == SMALL or layout == "interleaved"):  # it takes minutes
                    call.result(f"seconds.{layout}.{vocab}.context_cite", peer.last_response_s(layout, vocab, seed))
            rows.append(_row(call, f"{layout}.{vocab}"))
    if SMALL in sizes:
        for seed in call.seeds:
            call.progress(f"online, seed {seed}")
            found = online("interleaved", SMALL, seed, 1 if call.quick else ROUNDS[SMALL])
            _tell(call, "online", found)
            call.result("speedup.online_over_rows", found["rows"].best / found["ours"].best)
        rows.append(_row(call, "online"))
        for seed in call.seeds:
            call.progress(f"engine, seed {seed}")
            anew, live, apart = engine(seed, 1 if call.quick else ROUNDS[SMALL])
            call.result("seconds.engine.anew", anew)
            call.result("seconds.engine.live", live)
            call.result("speedup.engine", anew / live)
            call.result("max_abs_diff.engine", apart)
    columns = ["", *(f"{name} s" for name in METHODS), "context-cite s", "naive/ours", "largest difference"]
    note = "CPU seconds of one thread; context-cite: of the last response alone; the difference is in nats, of a token"
    call.table("Leave-one-out of 16 memories and 8 responses", columns, rows, note)
    call.result("max_abs_diff", max(value for row in rows for value in call.values(f"max_abs_diff.{row[0]}")))


def _tell(call: Call, label: str, found: dict[str, Measured]) -> None:
    for name in METHODS:
        call.result(f"seconds.{label}.{name}", found[name].best)
    call.result(f"speedup.{label}", found["naive"].best / found["ours"].best)
    call.result(f"max_abs_diff.{label}", found["ours"].difference)


def _row(call: Call, label: str) -> list[Cell]:
    seconds = [spread(call.values(f"seconds.{label}.{name}"), 2) for name in (*METHODS, "context_cite")]
    difference = max(call.values(f"max_abs_diff.{label}"))
    return [label, *seconds, spread(call.values(f"speedup.{label}"), 2), f"{difference:.1e}"]


BENCHMARK = Benchmark(name="bench_leave_one_out", about=__doc__, run=run, add_options=add_options)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
