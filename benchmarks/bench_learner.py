"""How long does a request wait while a cycle runs: in a thread of the host, and in a process of its own?

Method. One engine for each mode, on the shipped model, with the same traffic, in one process and turn by turn: requests
one after another with nothing else to do (``idle``), then the same while a cycle runs (``cycle``). A request is
``engine.generate`` of 16 tokens for a prompt that it has not just had. Of a cycle counts what lies between its first
progress of ``place`` and its end; the first one of each mode makes the base model's probes and is left out, as is the
start of the process, which is told apart: ``start_s`` from asking for a cycle until its process begins to load the base
model, ``load_s`` until it has it.

``p50`` and ``p99`` are of all requests of a kind, in milliseconds; ``p50_over_idle`` and ``p99_over_idle`` are those of
the cycle over those of the same engine idle. ``cycle_s`` is how long a cycle takes beside those requests.
``learner_mib`` is what the learner's process has of its own (private pages) after its last cycle, ``learner_rss_mib``
what it has in all, with what it shares with others, such as the libraries' code.

What would make the figures misleading. The shipped model has 0.8 M parameters: a request is mostly Python, which is
where a thread hurts most, and the copy of the weights costs nothing; a large model on a CPU waits for cores and memory
bandwidth instead, and takes a second copy. With other work on the machine all of them rise, the tail most, and a
learner of low priority waits for it: read the idle rows first. On one core a process helps by its priority alone.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

import sona
from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.table import Cell
from sona.config import Config, CycleConfig, LearnerConfig, ServeConfig, TrainConfig
from sona.ports import Report
from sona.tiny import AgentWorld
from sona.types import Progress

MODES = ("thread", "process")
ROUNDS, QUICK_ROUNDS = 5, 2
IDLE_REQUESTS = 100
BATCH = 120  # trajectories of a cycle
TOKENS = 16


class Host:
    """One engine, and what its requests took."""

    def __init__(self, folder: Path, mode: str, seed: int) -> None:
        learner = LearnerConfig(mode="process" if mode == "process" else "thread")
        serve = ServeConfig(device="cpu", threads=1)
        config = Config(
            seed=seed, serve=serve, learner=learner, train=TrainConfig(max_steps=40), cycle=CycleConfig(probes=32)
        )
        self.engine = sona.open_sync(folder, model="tiny", config=config).start()
        self.world, self._seed, self._asked = AgentWorld(seed), seed, 0
        self.prompts = [one.prompt for one in self.world.sample("tool_call", 512, seed, "held_out")]
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.cycles: list[float] = []

    def ask(self, kind: str) -> None:
        """One request."""
        prompt = self.prompts[self._asked % len(self.prompts)]
        self._asked += 1
        began = time.perf_counter()
        self.engine.generate(prompt, max_new_tokens=TOKENS)
        self.waits[kind].append(1e3 * (time.perf_counter() - began))

    def record(self, batch: int) -> None:
        """What a cycle learns from."""
        task = ("tool_call", "routing_policy")[batch % 2]
        for example in self.world.sample(task, BATCH, 1000 * self._seed + batch):
            self.engine.record(sona.Trajectory(messages=example.prompt, response=example.response), quality=1.0)
        self.engine.flush()

    def cycle(self, kind: str) -> dict[str, float]:
        """A cycle with requests beside it; when each of its stages came, in seconds."""
        at: dict[str, float] = {}
        began, over = time.perf_counter(), threading.Event()

        def on_progress(progress: Progress) -> None:
            if progress.stage == "load the model":
                at.setdefault("start", time.perf_counter() - began)
                at["load"] = time.perf_counter() - began
            at.setdefault(progress.stage, time.perf_counter() - began)

        learning = threading.Thread(target=self._learn, args=(on_progress, over))
        learning.start()
        while not over.is_set():
            self.ask(kind if "place" in at else "start")
        learning.join()
        if kind == "cycle":
            self.cycles.append(time.perf_counter() - began)
        return at

    def _learn(self, on_progress: Report, over: threading.Event) -> None:
        try:
            self.engine.learn(on_progress)
        finally:
            over.set()


def run(call: Call) -> None:
    """Both modes turn by turn, for each seed."""
    for seed in call.seeds:
        with tempfile.TemporaryDirectory() as folder:
            _measure(call, {mode: Host(Path(folder) / mode, mode, seed) for mode in MODES})
    rows: list[list[Cell]] = []
    for mode in MODES:
        for kind in ("idle", "cycle"):
            figures = [float(np.mean(call.values(f"learner.{mode}.{kind}.{name}"))) for name in ("p50_ms", "p99_ms")]
            over = [float(np.mean(call.values(f"learner.{mode}.{name}_over_idle"))) for name in ("p50", "p99")]
            rows.append([f"{mode}, {kind}", *figures, *(over if kind == "cycle" else (1.0, 1.0))])
    call.table("A request of 16 tokens (ms)", ["", "p50", "p99", "p50 over idle", "p99 over idle"], rows)
    told = ("start_s", "load_s", "learner_mib", "learner_rss_mib")
    call.table("The process", list(told), [[float(np.mean(call.values(f"learner.process.{name}"))) for name in told]])


def _measure(call: Call, hosts: dict[str, Host]) -> None:
    for mode, host in hosts.items():
        call.progress(f"{mode}: the first cycle")
        host.record(0)
        at = host.cycle("first")
        if mode == "process":
            call.result("learner.process.start_s", at["start"])
            call.result("learner.process.load_s", at["load"])
    for number in range(1, 1 + (QUICK_ROUNDS if call.quick else ROUNDS)):
        for mode, host in hosts.items():
            call.progress(f"{mode}: round {number}")
            host.record(number)
            for _ in range(IDLE_REQUESTS):
                host.ask("idle")
            host.cycle("cycle")
    for mode, host in hosts.items():
        for name, share in (("p50", 50), ("p99", 99)):
            idle, cycle = (float(np.percentile(host.waits[kind], share)) for kind in ("idle", "cycle"))
            call.result(f"learner.{mode}.idle.{name}_ms", idle)
            call.result(f"learner.{mode}.cycle.{name}_ms", cycle)
            call.result(f"learner.{mode}.{name}_over_idle", cycle / idle)
        for kind in ("idle", "cycle"):
            call.result(f"learner.{mode}.{kind}.requests", len(host.waits[kind]))
        call.result(f"learner.{mode}.cycle_s", float(np.median(host.cycles)))
    pid = hosts["process"].engine.status().learner.pid
    if pid is not None:
        for name, value in _memory_mib(pid).items():
            call.result(f"learner.process.{name}", value)
    for host in hosts.values():
        host.engine.close()


def _memory_mib(pid: int) -> dict[str, float]:
    """A process's own memory, and all that it has mapped and touched."""
    found: dict[str, int] = defaultdict(int)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return {
        "learner_mib": (found["Private_Clean"] + found["Private_Dirty"]) / 1024,
        "learner_rss_mib": found["Rss"] / 1024,
    }


BENCHMARK = Benchmark(name="bench_learner", about=__doc__, run=run)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
