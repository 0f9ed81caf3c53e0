"""Does APOLLO learn full weights as AdamW does with less memory, and what must be sent after a step?

Method. *Learning*: the shipped model's shape and its own text, in batches of 16, for 200 steps: ``skills`` from nothing
on the text that the shipped model was made from, ``agent`` from the shipped weights on an agent's three tasks, which
they can't do. Loss is the weighted cross-entropy on 256 questions that are never trained on, in nats. Each method has
the same batches, betas, clip and schedule (10 steps up, level, down to zero over the last 60 %), and the learning rate
that ended best on a seed of its own, half decades apart and with a worse one on each side. Methods: ``adamw`` (torch),
``apollo`` of rank 32, a quarter of the width, and ``mini`` of rank 1, both with the embedding on AdamW as in the paper;
``apollo_all`` and ``mini_all`` project the embedding too; ``sgd``, plain, keeps nothing at all and has one rate for
everything. ``apollo.<course>.<method>.loss_over_adamw`` compares the ends, seed by seed.

*State*: bytes kept between two steps over AdamW's, ``apollo.<method>.state_over_adamw``;
``apollo.state_over_adamw`` is that of ``apollo``. ``apollo.<method>.step_ms`` is the optimizer's step alone, turn by
turn on gradients of the same model, the median, on one thread; ``apollo.pass_ms`` the forward and backward pass of such
a batch.

*Sync*: trainings on the agent's tasks, each at its method's rate, saved after each step for 10 steps, or every 10
steps, after 20 steps that don't count. For each: the share of the 4 KiB blocks that changed, which would have to be
sent as they are, and the size of the delta that ``sona.storage.deltas`` writes (exclusive or, sorted by byte place,
zstd) over that of the whole file. ``sync.bytes_over_full`` is the latter for AdamW in float32, every step. ``lora``
sends the adapter's file alone, which is small to begin with: compare its bytes. ``bf16_*`` are trainings of bfloat16
weights: AdamW rounded by chance, AdamW with float32 masters, of which the weights as served are sent, and APOLLO
rounded by chance. ``*_gentle`` are the same at a rate of 1e-5, with which large models are often tuned.

What would make the figures misleading. The model has 0.8 M weights and 200 steps are few: the paper's claims are about
models and runs that are a thousand times larger, where a rank of a quarter of the width is hundreds and a projection
says more. The embedding is a quarter of this model and a few percent of a large one, so with it on AdamW the state
looks large here; ``*_all`` show the other end. A state that is not stored is not free: each projection is drawn anew in
each step, which is in ``step_ms``. AdamW is torch's, one call for all tensors, where ours takes them one by one, which
on tensors this small counts. Loss after 200 steps says nothing of what was forgotten. Its floor in ``agent`` is about
.09, the random words of the prompts, which all methods reach: compare the way there. How many bytes a step changes
depends on how far it goes: at a tenth of the rate less changes, above all in bfloat16, and nearer to the end of a
schedule too; a block that has one changed number counts as changed. The files of another model compress like those of
this one only as far as their weights are alike. With ``--quick`` there are 20 steps, one course, fixed rates, and a
save after each step alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

import numpy as np
import torch

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.optimizers.cost import costs
from benchmarks.optimizers.course import COURSES, shipped
from benchmarks.optimizers.methods import METHODS, Curve, best_rate, learn
from benchmarks.optimizers.sync import TRAININGS, Synced, lora_rate, synced
from benchmarks.table import Cell, spread

STEPS, QUICK_STEPS = 200, 20
TUNING_SEED = 100
TURNS, QUICK_TURNS = 40, 8
EVERY = {"step": 1, "ten_steps": 10}
SYNCS, QUICK_SYNCS = 10, 2

Rates = Mapping[str, float]
"""Learning rate by method."""


def run(call: Call) -> None:
    """The curves, the costs, the bytes."""
    torch.set_num_threads(1)
    rates: Rates = {}
    for course in ["agent"] if call.quick else COURSES:
        rates = _learning(call, course)
    _costs(call)
    _sync(call, {**rates, "lora": lora_rate(shipped())})


def _learning(call: Call, course: str) -> Rates:
    """The curves of a course; returns the rates that were the best."""
    rates, curves = {}, {}
    for name, method in METHODS.items():
        rates[name] = method.first_rate if call.quick else _rate(call, course, name)
        call.result(f"apollo.{course}.{name}.rate", rates[name])
        curves[name] = [
            learn(COURSES[course](seed), method, rates[name], seed, QUICK_STEPS if call.quick else STEPS)
            for seed in call.seeds
        ]
        call.progress(f"{course}, {name}: {[round(curve.losses[-1], 3) for curve in curves[name]]}")
        for place, curve in enumerate(curves[name]):
            call.result(f"apollo.{course}.{name}.loss", curve.losses[-1])
            ratio = curve.losses[-1] / curves["adamw"][place].losses[-1]
            call.result(f"apollo.{course}.{name}.loss_over_adamw", ratio)
    _show_curves(call, course, rates, curves)
    return rates


def _rate(call: Call, course: str, name: str) -> float:
    ends = best_rate(COURSES[course], METHODS[name], TUNING_SEED, STEPS)
    found = ", ".join(f"{rate:.2g}: {loss:.3f}" for rate, loss in sorted(ends.items()))
    call.note(f"{course}, {name}, loss by learning rate (seed {TUNING_SEED}): {found}")
    return min(ends, key=ends.__getitem__)


def _show_curves(call: Call, course: str, rates: Rates, curves: Mapping[str, list[Curve]]) -> None:
    steps = curves["adamw"][0].steps
    shown = [place for place, step in enumerate(steps) if place in (0, 1, 2, len(steps) // 2, len(steps) - 1)]
    rows: list[list[Cell]] = []
    for name, found in curves.items():
        points = [spread([curve.losses[place] for curve in found]) for place in shown]
        over = spread(call.values(f"apollo.{course}.{name}.loss_over_adamw"))
        rows.append([name, f"{rates[name]:.2g}", *points, over])
    columns = ["", "rate", *(f"{steps[place]} steps" for place in shown), "end over AdamW's"]
    call.table(f"Loss on held-out questions, {course}", columns, rows, "nats; mean ± deviation over seeds")
    with call.picture(f"{BENCHMARK.name}-{course}", 7.0, 4.5) as figure:
        if figure is not None:
            axes = figure.add_subplot()
            for name, found in curves.items():
                axes.plot(
                    steps, np.mean([curve.losses for curve in found], axis=0), label=f"{name} ({rates[name]:.2g})"
                )
            axes.set(xlabel="step", ylabel="held-out loss (nats)", yscale="log", title=course)
            axes.legend()


def _costs(call: Call) -> None:
    call.progress("costs")
    found, pass_ms = costs(METHODS, call.seeds[0], QUICK_TURNS if call.quick else TURNS)
    call.result("apollo.pass_ms", pass_ms)
    rows: list[list[Cell]] = []
    for name, cost in found.items():
        over = cost.state_bytes / found["adamw"].state_bytes
        call.result(f"apollo.{name}.step_ms", cost.step_ms)
        call.result(f"apollo.{name}.state_over_adamw", over)
        rows.append([name, cost.state_bytes, over, cost.step_ms])
    call.result("apollo.state_over_adamw", found["apollo"].state_bytes / found["adamw"].state_bytes)
    note = f"forward and backward pass of a batch: {pass_ms:.1f} ms; AdamW is torch's, all tensors in one call"
    call.table("What a step takes", ["", "state (bytes)", "over AdamW's", "step (ms)"], rows, note)


def _sync(call: Call, rates: Rates) -> None:
    for when, every in list(EVERY.items())[: 1 if call.quick else None]:
        rows: list[list[Cell]] = []
        for name, training in TRAININGS.items():
            call.progress(f"sync every {when}: {name}")
            syncs = QUICK_SYNCS if call.quick else SYNCS
            rate = training.rate if isinstance(training.rate, float) else rates[training.rate]
            found = [synced(training, rate, seed, syncs, every) for seed in call.seeds]
            rows.append([name, f"{rate:.2g}", *_tell_sync(call, f"{name}.{when}", found)])
            if (name, when) == ("adamw", "step"):
                for one in found:
                    call.result("sync.bytes_over_full", one.delta / one.full)
        columns = ["", "rate", "full file", "changed blocks", "XOR + zstd", "over full", "ms"]
        call.table(f"Bytes to send, saved every {when.replace('_', ' ')}", columns, rows, "means over syncs and seeds")


def _tell_sync(call: Call, label: str, found: list[Synced]) -> list[Cell]:
    for one in found:
        call.result(f"sync.{label}.full_bytes", one.full)
        call.result(f"sync.{label}.blocks_over_full", one.blocks)
        call.result(f"sync.{label}.delta_over_full", one.delta / one.full)
        call.result(f"sync.{label}.save_ms", one.save_ms)
    full, blocks, delta, ms = (float(np.mean(column)) for column in zip(*found, strict=True))
    return [f"{full:,.0f}", blocks, f"{delta:,.0f}", delta / full, f"{ms:.1f}"]


BENCHMARK = Benchmark(name="bench_optimizers", about=__doc__, run=run)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
