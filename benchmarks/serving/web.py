"""Clients of the service: each asks, waits for its answer, and asks again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import httpx

TOKENS = 48
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Got:
    """One answer as its client saw it; times in seconds on one clock."""

    question: str
    version: str
    token_ids: tuple[int, ...]
    trajectory: str
    began: float
    ended: float

    @property
    def took_s(self) -> float:
        """From the question to the whole answer."""
        return self.ended - self.began


@dataclass
class Seen:
    """What all clients saw."""

    got: list[Got] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Why requests had no answer."""


@dataclass(frozen=True)
class Streamed:
    """The times of one answer that was read as it was written, in ms."""

    first_ms: float
    gaps_ms: list[float]


def body(question: str, **more: object) -> dict[str, object]:
    """A request that always has the same answer."""
    messages = [{"role": "user", "content": question}]
    return {"model": "sona", "messages": messages, "temperature": 0, "max_tokens": TOKENS, **more}


async def ask(client: httpx.AsyncClient, question: str, seen: Seen) -> None:
    """One request, whole."""
    began = time.perf_counter()
    try:
        answer = await client.post(PATH, json=body(question, return_token_ids=True))
        answer.raise_for_status()
        told = answer.json()
    except httpx.HTTPError as error:  # whatever kept it from its answer is what is counted here
        seen.refused.append(f"{type(error).__name__}: {error}")
        return
    ids = tuple(told["choices"][0]["token_ids"])
    headers = answer.headers
    seen.got.append(
        Got(question, headers["x-sona-version"], ids, headers["x-sona-trajectory"], began, time.perf_counter())
    )


async def read(client: httpx.AsyncClient, question: str, model: str = "sona", skip: int = 0) -> Streamed:
    """One request, read as it is written; its first ``skip`` pieces are not the answer's."""
    began, times = time.perf_counter(), list[float]()
    async with client.stream("POST", PATH, json=body(question, stream=True) | {"model": model}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and '"content"' in line:
                times.append(1e3 * (time.perf_counter() - began))
    times = times[skip:]
    first = times[0] if times else 1e3 * (time.perf_counter() - began)
    return Streamed(first, [later - earlier for earlier, later in pairwise(times)])


async def crowd(clients: list[httpx.AsyncClient], questions: Iterable[str], seen: Seen) -> None:
    """Each client asks its next question once its last one is answered, until there are none."""
    waiting = iter(questions)
    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(_one, client, waiting, seen)


async def _one(client: httpx.AsyncClient, waiting: Iterator[str], seen: Seen) -> None:
    for question in waiting:
        await ask(client, question, seen)
