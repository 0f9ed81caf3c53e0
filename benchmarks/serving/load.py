"""Ten thousand requests to ``sona serve`` while it learns, its learner killed now and then, and versions swapped."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio
import httpx
import msgspec

import sona
from benchmarks.serving.server import Server
from benchmarks.serving.traffic import questions
from benchmarks.serving.vandals import Vandal
from benchmarks.serving.web import TOKENS, Got, Seen, crowd
from sona.config import Config, ServeConfig
from sona.errors import UnknownIdError
from sona.tiny import AgentWorld

CLIENTS = 8
QUESTIONS = 48
BATCH = 120
"""Trajectories of a cycle, which wait in the store from the start."""
KILL_EVERY = 2
"""The learner is killed in every second cycle."""
SETTINGS = f"""
[serve]
device = "cpu"
threads = 1
max_new_tokens = {TOKENS}
[cycle]
min_trajectories = {BATCH}
max_trajectories = {BATCH}
probes = 32
interval_s = 1e6
[train]
max_steps = 60
[service]
max_body_bytes = 1_000_000
"""


@dataclass
class Result:
    """Of one run."""

    idle_s: list[float] = field(default_factory=list)
    """What requests took with no cycle about."""
    cycle_s: list[float] = field(default_factory=list)
    """Those that lie within a cycle."""
    requests: int = 0
    refused: list[str] = field(default_factory=list)
    mixed: int = 0
    versions: int = 0
    """That answers name."""
    cycles: int = 0
    published: int = 0
    kills: int = 0
    rollbacks: int = 0
    faults: int = 0
    mishandled: list[str] = field(default_factory=list)
    lost: int = 0
    """Answers that were said to be recorded and are not in the store."""


class Cycles:
    """What the stream of events tells of them."""

    def __init__(self) -> None:
        self.under_way = False
        self.finished = self.published = self.failed = 0
        self.changed = anyio.Event()

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Until it is cancelled."""
        async with client.stream("GET", "/events", timeout=None) as feed:
            async for line in feed.aiter_lines():
                if line.startswith("data: "):
                    self._take(msgspec.json.decode(line.removeprefix("data: ")))

    def _take(self, event: dict[str, object]) -> None:
        kind = event.get("type")
        if kind == "cycle_started":
            self.under_way = True
        elif kind == "cycle_finished":
            self.under_way = False
            self.finished += 1
            self.failed += event.get("status") == "failed"
        elif kind == "version_published":
            self.published += 1
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, under_way: bool) -> None:
        """Return when a cycle is, or is no more, under way."""
        while self.under_way is not under_way:
            await self.changed.wait()


def measure(seed: int, requests: int) -> Result:
    """One run; then each answer again, alone."""
    with tempfile.TemporaryDirectory() as folder:
        store, result = Path(folder) / "store", Result()
        _fill(store, seed, requests)
        with Server(store, SETTINGS, "--no-learn") as server:
            seen = anyio.run(_run, server, seed, requests, result)
        result.requests, result.refused = len(seen.got) + len(seen.refused), seen.refused
        _check(store, seen.got, result)
    return result


def _fill(store: Path, seed: int, requests: int) -> None:
    """What the cycles will learn from: right answers to two tasks that the model lacks, in turn."""
    world = AgentWorld(seed)
    with sona.open_sync(store, model="tiny", config=Config(serve=ServeConfig(device="cpu", threads=1))) as engine:
        for number in range(4 + requests // 400):
            task = ("tool_call", "routing_policy")[number % 2]
            for example in world.sample(task, BATCH, 1000 * seed + number):
                engine.record(
                    sona.Trajectory(messages=example.prompt, response=example.response), quality=1.0, wait_s=10.0
                )


@asynccontextmanager
async def _clients(server: Server, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(server.client()) for _ in range(count)]


async def _run(server: Server, seed: int, requests: int, result: Result) -> Seen:
    seen, cycles, asked = Seen(), Cycles(), itertools.cycle(questions(seed, QUESTIONS))
    async with _clients(server, CLIENTS + 3) as clients:
        *crowd_of, feed, office, street = clients
        await crowd(crowd_of, itertools.islice(asked, 4 * CLIENTS), Seen())  # warm
        vandal = Vandal(street, seed, pause_s=0.02)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cycles.follow, feed)
            # The first one starts the process and makes the probes: its requests count, and its times do not.
            await _cycle(office, cycles, crowd_of, asked, seen)
            cycle_s = 1.0  # of one that is left alone, as soon as there was one
            while len(seen.got) + len(seen.refused) < requests or not result.cycle_s:
                await _quiet(crowd_of, asked, seen, result)
                kill = Random(f"{seed}/{cycles.finished}") if cycles.finished % KILL_EVERY == 0 else None
                async with anyio.create_task_group() as faults:
                    if kill is not None:
                        faults.start_soon(vandal.run)
                        faults.start_soon(_kill, server, kill.uniform(0.0, cycle_s), result)
                    began = time.perf_counter()
                    times = await _cycle(office, cycles, crowd_of, asked, seen)
                    faults.cancel_scope.cancel()
                if kill is None:
                    result.cycle_s += times
                    cycle_s = time.perf_counter() - began
                await _roll_back(office, result)
            tasks.cancel_scope.cancel()
        result.faults, result.mishandled = vandal.done, vandal.wrong
    result.cycles, result.published = cycles.finished, cycles.published
    return seen


async def _quiet(clients: list[httpx.AsyncClient], asked: Iterator[str], seen: Seen, result: Result) -> None:
    mine = Seen()
    await crowd(clients, itertools.islice(asked, 60 * CLIENTS), mine)
    result.idle_s += [one.took_s for one in mine.got]
    seen.got += mine.got
    seen.refused += mine.refused


async def _cycle(
    office: httpx.AsyncClient, cycles: Cycles, clients: list[httpx.AsyncClient], asked: Iterator[str], seen: Seen
) -> list[float]:
    """A cycle with requests beside it; what those took that began and ended in it."""
    mine, over = Seen(), anyio.Event()
    (await office.post("/learn")).raise_for_status()
    await cycles.until(under_way=True)
    began = time.perf_counter()

    def on_and_on() -> Iterator[str]:
        while not over.is_set():
            yield next(asked)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crowd, clients, on_and_on(), mine)
        await cycles.until(under_way=False)
        ended = time.perf_counter()
        over.set()
    seen.got += mine.got
    seen.refused += mine.refused
    await anyio.sleep(0.2)  # the server is ready for the next one
    return [one.took_s for one in mine.got if one.began >= began and one.ended <= ended]


async def _kill(server: Server, after_s: float, result: Result) -> None:
    await anyio.sleep(after_s)
    if (pid := server.learner) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            result.kills += 1


async def _roll_back(office: httpx.AsyncClient, result: Result) -> None:
    """To the version before, and back: two swaps more."""
    told = (await office.get("/versions")).json()
    names = [one["id"] for one in told["versions"]]
    if len(names) < 3:
        return
    for name in (names[-2], told["current"]):
        (await office.post(f"/versions/{name}/rollback")).raise_for_status()
        result.rollbacks += 1


def _check(store: Path, got: list[Got], result: Result) -> None:
    """Every answer once more, alone, by the version that it names; and whether it was recorded."""
    named = sorted({(one.version, one.question) for one in got})
    result.versions = len({version for version, _ in named})
    wanted: dict[tuple[str, str], tuple[int, ...]] = {}
    config = Config(serve=ServeConfig(device="cpu", threads=1))
    with sona.open_sync(store, model="tiny", config=config) as engine:
        for version, question in named:
            if engine.version.id != version:
                engine.roll_back(version)
            wanted[version, question] = engine.generate(question, max_new_tokens=TOKENS).token_ids
        result.mixed = sum(one.token_ids != wanted[one.version, one.question] for one in got)
        for one in got:
            try:
                engine.get(one.trajectory)
            except UnknownIdError:
                result.lost += 1
