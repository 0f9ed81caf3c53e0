"""Clients that ask, wait for the answer, and ask again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import anyio

from sona.answer_stream import AnswerStream
from sona.tiny import SKILLS, sample
from sona.types import Reply


@dataclass(frozen=True)
class Answered:
    """One request as its client saw it; times in seconds, on one clock."""

    question: str
    reply: Reply
    began: float
    pieces: tuple[float, ...]
    """When each piece of the text came."""
    ended: float

    @property
    def first_s(self) -> float:
        """Until the first piece."""
        return (self.pieces[0] if self.pieces else self.ended) - self.began

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece and the next: a token, or some that came at once."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


@dataclass
class Seen:
    """What all clients saw, or why a request was refused."""

    answered: list[Answered] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


Ask = Callable[[str], AnswerStream]


def questions(seed: int, count: int) -> list[str]:
    """Of all skills that the shipped model came with, mixed."""
    each = [example.prompt for skill in SKILLS for example in sample(skill, -(-count // len(SKILLS)), seed)]
    Random(seed).shuffle(each)
    return each[:count]


async def traffic(ask: Ask, asked: Sequence[str] | Iterator[str], clients: int, seen: Seen) -> None:
    """Have ``clients`` ask all of ``asked``, each its next question once its last one is answered."""
    waiting = iter(asked)
    async with anyio.create_task_group() as group:
        for _ in range(clients):
            group.start_soon(_client, ask, waiting, seen)


async def _client(ask: Ask, waiting: Iterable[str], seen: Seen) -> None:
    for question in waiting:
        began, pieces = time.perf_counter(), list[float]()
        try:
            stream = ask(question)
            async for _ in stream:
                pieces.append(time.perf_counter())
        except Exception as error:  # whatever kept it from its answer is what is counted here
            seen.refused.append(f"{type(error).__name__}: {error}")
        else:
            seen.answered.append(Answered(question, stream.reply, began, tuple(pieces), time.perf_counter()))
