"""Is the model served as fast as it can be, and does an answer depend on what is asked beside it?

Method. The shipped model, greedy, one thread of torch, in this process; ``http`` and ``load`` ask ``sona serve``, which
runs in its own.

* ``throughput``: an engine answers the questions of all skills that the model came with, asked by 1, 8 and 64 clients,
  each of which reads its answer as it is written and then asks its next question. The peer is transformers'
  ``model.generate`` on the same weights, one question after the other. They take turns, round by round.
  ``requests_s`` is of whole rounds; ``first_ms`` the time until a client has the first piece of text, ``gap_ms`` that
  between two pieces, which is a token or some that came at once. ``unlike`` counts answers that are not the peer's.
  ``throughput.over_generate`` is the rate at 64 clients over the peer's.
* ``swap``: 8 clients ask on and on, for as long without a swap as with 20, in each round; versions with random adapters
  are swapped in, attested, in turn. ``extra_ms`` is a request's time beyond the median of the same question by the same
  version where no swap was about; ``swap.worst_extra_ms`` is the largest of those that a swap fell into, and
  ``swap.quiet_worst_extra_ms`` of those that a mere wait in a swap's place fell into; the same for the medians.
  ``swap.refused`` counts requests without an answer; ``swap.mixed`` answers that are not, token for token, what the
  version that they name writes, alone, in another model that was loaded for it.
* ``http``: 1, 8 and 64 clients of ``sona serve``, each of which reads its answer as a stream; the figures are those of
  ``throughput``, with HTTP and the clients' own work on the same processors. The peer is ``transformers serve`` with
  continuous batching, turn by turn; it keeps nothing of what it answers.
* ``load``: 8 clients ask ``sona serve`` ten thousand requests, one after the other each, in blocks with nothing else
  (``idle``) and beside a cycle (``cycle``) in turn. Its learner is a process of one thread and low priority; in every
  second cycle it is killed at a random moment, while another client does what should be refused, hangs up, or reads
  slowly; between the cycles versions are rolled back and forth. ``p99.cycle_over_idle`` is of whole answers, of the
  cycles that were not disturbed, but for the first, which starts the process. ``refused`` and ``mixed`` are those of
  all ``requests``; each answer is computed again, alone, after the server has ended. ``lost`` counts answers that are
  not in the store then.
* ``exact``: batches of 3 to 40 random prompts of 3 to 130 tokens, by the base and three adapters, that join at random
  moments; each answer is then written alone. ``exact.differ_share`` is the share of tokens that differ.

What would make the figures misleading. The model has 0.8 M parameters: most of a step is Python and not arithmetic, so
that rows come almost free; a larger model gains less. The clients run on the event loop of the same process, and share
its interpreter with the thread that answers. The answers are short (about 8 tokens): longer ones would show less of the
first token's wait. A worst case on a shared machine is also its neighbours': hence the quiet one beside it. ``exact``
holds for this processor's library of products (MKL): another one may round otherwise. That ``unlike`` is not 0 would be
no error: generate() pads and masks otherwise, and two tokens may be as likely.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.serving import exact, http, load, swaps, throughput
from benchmarks.table import Cell, spread

PARTS = ("throughput", "http", "load", "swap", "exact")
ROUNDS, QUICK_ROUNDS = 5, 1
REQUESTS, QUICK_REQUESTS = 256, 64
SWAP_ROUNDS, SWAPS, QUICK_SWAPS = 3, 20, 6
TOKENS, QUICK_TOKENS = 10_000, 500
LOAD, QUICK_LOAD = 10_000, 600


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--only``."""
    parser.add_argument("--only", choices=PARTS, help="one part alone")


def run(call: Call) -> None:
    """Each part for each seed."""
    parts = {"throughput": _throughput, "http": _http, "load": _load, "swap": _swap, "exact": _exact}
    for name, part in parts.items():
        if call.options.only in (None, name):
            part(call)


def _throughput(call: Call) -> None:
    rows: list[list[Cell]] = []
    for seed in call.seeds:
        call.progress(f"throughput, seed {seed}")
        rounds, requests = (QUICK_ROUNDS, QUICK_REQUESTS) if call.quick else (ROUNDS, REQUESTS)
        found = throughput.measure(seed, rounds, requests)
        peer = float(np.median(found.peer))
        call.result("throughput.generate.requests_s", peer)
        for clients, ours in found.ours.items():
            rate = float(np.median(ours.requests_s))
            call.result(f"throughput.clients{clients}.requests_s", rate)
            for name, times in (("first", ours.first_ms), ("gap", ours.gap_ms)):
                for share in (50, 99):
                    value = float(np.percentile(times, share))
                    call.result(f"throughput.clients{clients}.{name}_p{share}_ms", value)
        call.result("throughput.over_generate", float(np.median(found.ours[64].requests_s)) / peer)
        call.result("throughput.unlike", found.unlike)
        call.result("throughput.refused", found.refused)
        call.note(f"{found.answers} answers of {found.tokens} tokens, {found.unlike} unlike generate's")
    figures = ("first_p50_ms", "first_p99_ms", "gap_p50_ms", "gap_p99_ms")
    rows.append(["model.generate, one by one", spread(call.values("throughput.generate.requests_s"), 1), *[None] * 4])
    for clients in throughput.CLIENTS:
        label = f"throughput.clients{clients}"
        cells = [spread(call.values(f"{label}.{name}"), 1) for name in ("requests_s", *figures)]
        rows.append([f"{clients} clients", *cells])
    note = f"64 clients over generate: {spread(call.values('throughput.over_generate'), 1)}"
    call.table("Requests of the shipped model", ["", "requests/s", *figures], rows, note)


def _http(call: Call) -> None:
    names: list[str] = []
    for seed in call.seeds:
        call.progress(f"http, seed {seed}")
        rounds, requests = (QUICK_ROUNDS, QUICK_REQUESTS) if call.quick else (ROUNDS, REQUESTS)
        result = http.measure(seed, rounds, requests)
        parts = {"http": result.ours, "http.transformers_serve": result.peer or {}}
        for part, by_clients in parts.items():
            for clients, found in by_clients.items():
                _note_times(call, f"{part}.clients{clients}", found)
        names = [f"{part}.clients{clients}" for part, found in parts.items() for clients in found]
        if result.peer is None:
            call.note("transformers serve: not installed, make peers does it")
            continue
        for clients, found in result.ours.items():
            over = float(np.median(found.requests_s) / np.median(result.peer[clients].requests_s))
            call.result(f"http.over_transformers_serve.clients{clients}", over)
    figures = ("requests_s", "first_p50_ms", "first_p99_ms", "gap_p50_ms", "gap_p99_ms")
    rows: list[list[Cell]] = [
        [name.removeprefix("http."), *(spread(call.values(f"{name}.{figure}"), 1) for figure in figures)]
        for name in names
    ]
    call.table("Requests over HTTP", ["", "requests/s", *figures[1:]], rows)


def _note_times(call: Call, name: str, found: http.Measured) -> None:
    call.result(f"{name}.requests_s", float(np.median(found.requests_s)))
    for kind, times in (("first", found.first_ms), ("gap", found.gap_ms)):
        for share in (50, 99):
            call.result(f"{name}.{kind}_p{share}_ms", float(np.percentile(times, share)))


def _load(call: Call) -> None:
    for seed in call.seeds:
        call.progress(f"load, seed {seed}")
        found = load.measure(seed, QUICK_LOAD if call.quick else LOAD)
        for kind, times in (("idle", found.idle_s), ("cycle", found.cycle_s)):
            for share in (50, 99):
                call.result(f"p{share}.{kind}_ms", 1e3 * float(np.percentile(times, share)))
        for share in (50, 99):
            over = float(np.percentile(found.cycle_s, share) / np.percentile(found.idle_s, share))
            call.result(f"p{share}.cycle_over_idle", over)
        call.result("requests", found.requests)
        call.result("refused", len(found.refused))
        call.result("mixed", found.mixed)
        call.result("lost", found.lost)
        for name in ("versions", "cycles", "published", "kills", "rollbacks", "faults"):
            call.result(f"load.{name}", getattr(found, name))
        call.result("load.mishandled", len(found.mishandled))
        for trouble in sorted({*found.refused, *found.mishandled}):
            call.note(trouble)
    names = [f"p{share}.{kind}" for share in (50, 99) for kind in ("idle_ms", "cycle_ms", "cycle_over_idle")]
    names += ["requests", "refused", "mixed", "lost"]
    names += [f"load.{name}" for name in ("cycles", "published", "kills", "rollbacks", "faults", "mishandled")]
    call.table("sona serve while it learns", ["", "value"], [[name, spread(call.values(name), 2)] for name in names])


def _swap(call: Call) -> None:
    for seed in call.seeds:
        call.progress(f"swap, seed {seed}")
        rounds, count = (1, QUICK_SWAPS) if call.quick else (SWAP_ROUNDS, SWAPS)
        found = swaps.measure(seed, rounds, count)
        call.result("swap.worst_extra_ms", max(found.swap_extra_ms, default=0.0))
        call.result("swap.quiet_worst_extra_ms", max(found.quiet_extra_ms, default=0.0))
        call.result("swap.median_extra_ms", float(np.median(found.swap_extra_ms or [0.0])))
        call.result("swap.quiet_median_extra_ms", float(np.median(found.quiet_extra_ms or [0.0])))
        call.result("swap.median_ms", float(np.median(found.swap_ms)))
        call.result("swap.requests", found.requests)
        call.result("swap.refused", found.refused)
        call.result("swap.mixed", found.mixed)
    names = [
        "swap.requests",
        "swap.refused",
        "swap.mixed",
        *(f"swap.{name}_ms" for name in ("worst_extra", "quiet_worst_extra")),
    ]
    names += ["swap.median_extra_ms", "swap.quiet_median_extra_ms", "swap.median_ms"]
    call.table("Swaps under traffic", ["", "value"], [[name, spread(call.values(name), 1)] for name in names])


def _exact(call: Call) -> None:
    for seed in call.seeds:
        call.progress(f"exact, seed {seed}")
        found = exact.measure(seed, QUICK_TOKENS if call.quick else TOKENS)
        call.result("exact.tokens", found.tokens)
        call.result("exact.differ_share", found.differ / found.tokens)
        call.result("exact.largest_nats", found.largest)
    names = ("exact.tokens", "exact.differ_share", "exact.largest_nats")
    call.table("In a batch and alone", ["", "value"], [[name, spread(call.values(name), 6)] for name in names])


BENCHMARK = Benchmark(name="bench_serving", about=__doc__, run=run, add_options=add_options)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
