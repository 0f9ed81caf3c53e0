"""Requests a second over HTTP, and what a client waits for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import httpx

from benchmarks.serving.server import Server
from benchmarks.serving.traffic import questions
from benchmarks.serving.transformers_serve import TransformersServe, is_installed
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


@dataclass
class Result:
    """By number of clients."""

    ours: dict[int, Measured]
    peer: dict[int, Measured] | None
    """transformers serve; None where it is not installed."""


Read = Callable[[httpx.AsyncClient, str], Awaitable[Streamed]]


def measure(seed: int, rounds: int, requests: int) -> Result:
    """Both servers, and the numbers of clients, turn by turn in each round; every answer is streamed."""
    asked = questions(seed, requests)
    result = Result(_empty(), _empty() if is_installed() else None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(Server(folder / "store", SETTINGS, "--no-learn"))
        peer = stack.enter_context(TransformersServe(folder / "peer")) if result.peer is not None else None
        anyio.run(_run, server, peer, asked, rounds, result)
    return result


def _empty() -> dict[int, Measured]:
    return {clients: Measured() for clients in CLIENTS}


async def _run(server: Server, peer: TransformersServe | None, asked: list[str], rounds: int, result: Result) -> None:
    async with AsyncExitStack() as stack:

        async def enter(client: httpx.AsyncClient) -> httpx.AsyncClient:
            return await stack.enter_async_context(client)

        ours = [await enter(server.client()) for _ in range(max(CLIENTS))]
        turns: list[tuple[list[httpx.AsyncClient], Read, dict[int, Measured]]] = [(ours, read, result.ours)]
        if peer is not None and result.peer is not None:
            theirs = [await enter(httpx.AsyncClient(base_url=peer.url, timeout=120.0)) for _ in ours]
            # Its first piece is the prompt.
            turns.append((theirs, partial(read, model=str(peer.model), skip=1), result.peer))
        for clients, read_one, _ in turns:
            await _round(clients[:8], read_one, asked[:32])
        for _ in range(rounds):
            for count in CLIENTS:
                for clients, read_one, found in turns:
                    await _measure(clients[:count], read_one, asked, found[count])


async def _measure(clients: list[httpx.AsyncClient], read_one: Read, asked: list[str], measured: Measured) -> None:
    began = time.perf_counter()
    streamed = await _round(clients, read_one, asked)
    measured.requests_s.append(len(asked) / (time.perf_counter() - began))
    measured.first_ms += [one.first_ms for one in streamed]
    measured.gap_ms += [gap for one in streamed for gap in one.gaps_ms]


async def _round(clients: list[httpx.AsyncClient], read_one: Read, asked: list[str]) -> list[Streamed]:
    streamed, waiting = list[Streamed](), iter(asked)

    async def one(client: httpx.AsyncClient, waiting: Iterator[str]) -> None:
        for question in waiting:
            streamed.append(await read_one(client, question))

    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(one, client, waiting)
    return streamed
