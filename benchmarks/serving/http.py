"""Requests a second over HTTP, and what a client waits for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx

from benchmarks.serving.server import Server
from benchmarks.serving.traffic import questions
from benchmarks.serving.web import TOKENS, Streamed, read

CLIENTS = (1, 8, 64)
SETTINGS = f"""
[serve]
device = "cpu"
threads = 1
max_new_tokens = {TOKENS}
"""


@dataclass
class Measured:
    """A list of rounds, and of single times in ms."""

    requests_s: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)


def measure(seed: int, rounds: int, requests: int) -> dict[int, Measured]:
    """By number of clients, turn by turn in each round; every answer is streamed."""
    found = {clients: Measured() for clients in CLIENTS}
    asked = questions(seed, requests)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "store", SETTINGS, "--no-learn") as server:
        anyio.run(_run, server, asked, rounds, found)
    return found


async def _run(server: Server, asked: list[str], rounds: int, found: dict[int, Measured]) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(max(CLIENTS))]
        await _round(clients[:8], asked[:32])
        for _ in range(rounds):
            for count, measured in found.items():
                began = time.perf_counter()
                streamed = await _round(clients[:count], asked)
                measured.requests_s.append(len(asked) / (time.perf_counter() - began))
                measured.first_ms += [one.first_ms for one in streamed]
                measured.gap_ms += [gap for one in streamed for gap in one.gaps_ms]


async def _round(clients: list[httpx.AsyncClient], asked: list[str]) -> list[Streamed]:
    streamed, waiting = list[Streamed](), iter(asked)

    async def one(client: httpx.AsyncClient, waiting: Iterator[str]) -> None:
        for question in waiting:
            streamed.append(await read(client, question))

    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(one, client, waiting)
    return streamed
