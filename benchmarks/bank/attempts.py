"""Recorded attempts of agents at tasks, with what they were rated, in the order of time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.dataset import DataNeed, Row, read_rows

SUCCESS = 0.5  # from this quality on


@dataclass(frozen=True)
class Attempt:
    """A query as an agent handled it."""

    query: str
    response: str
    routes: tuple[str, ...]
    """The agent, and each tool that it used, in the order of their first use: ``agent:react_base``, ``tool:Search``."""
    quality: float
    """From 0 to 1."""
    run: str
    """All its trials came one after the other, without those of other runs between."""
    trial: int

    @property
    def succeeded(self) -> bool:
        """Half the reward or more; most rewards are 0 or 1."""
        return self.quality >= SUCCESS


class Source(NamedTuple):
    """A form in which attempts are written down."""

    fields: frozenset[str]
    """A row has all of them."""
    read: Callable[[Row], Attempt]


def in_time_order(folder: Path, seed: int) -> list[Attempt]:
    """The attempts in ``folder``: run after run as the file first names them, and trial after trial within a run.

    The data have no clock. The tasks of one trial don't depend on each other, and come in an order that ``seed`` draws:
    that of the file would give the outcomes away, because some logs list the trial's successes first.
    """
    rows = list(read_rows(folder))
    source = _source(rows[0]) if rows else None
    if source is None:
        return []
    attempts = [source.read(row) for row in rows]
    random.Random(f"attempts {seed}").shuffle(rows_order := list(range(len(attempts))))
    runs = {run: place for place, run in enumerate(dict.fromkeys(attempt.run for attempt in attempts))}
    shuffled = [attempts[place] for place in rows_order]
    return sorted(shuffled, key=lambda attempt: (runs[attempt.run], attempt.trial))


def seen_before(attempts: Sequence[Attempt], cycle: int) -> list[bool]:
    """Of each attempt, whether a cycle of so many before its own had the same query, word for word."""
    known: set[str] = set()
    found: list[bool] = []
    for start in range(0, len(attempts), cycle):
        queries = [attempt.query for attempt in attempts[start : start + cycle]]
        found += [query in known for query in queries]
        known.update(queries)
    return found


def _tau_bench(row: Row) -> Attempt:
    """The query is the user's first message: the brief that the simulated user has is not shown to the agent."""
    said = [(message["role"], message.get("content") or "") for message in row["messages"]]
    calls = [call["name"] for message in row["messages"] for call in message.get("tool_calls") or ()]
    return Attempt(
        query=next(text for role, text in said if role == "user"),
        response=next((text for role, text in reversed(said) if role == "assistant"), ""),
        routes=_routes(row["agent"], calls),
        quality=float(row["reward"]),
        run=f"{row['domain']} {row['agent']}",
        trial=int(row["trial"]),
    )


def _reflexion(row: Row) -> Attempt:
    return Attempt(
        query=row["question"],
        response=row["steps"][-1]["action"] if row["steps"] else "",
        routes=_routes(row["run"], _tools(row)),
        quality=float(row["reward"]),
        run=row["run"],
        trial=int(row["trial"]),
    )


def _react(row: Row) -> Attempt:
    return Attempt(
        query=row["task"],
        response=row["steps"][-1]["action"] if row["steps"] else "",
        routes=_routes("react", _tools(row)),
        quality=float(row["reward"]),
        run=row["env"],
        trial=0,
    )


SOURCES = (
    Source(frozenset({"agent", "trial", "task", "messages", "reward"}), _tau_bench),
    Source(frozenset({"run", "trial", "question", "steps", "reward"}), _reflexion),
    Source(frozenset({"env", "task", "steps", "reward"}), _react),
)


def _source(row: Row) -> Source | None:
    return next((source for source in SOURCES if source.fields <= row.keys()), None)


def _tools(row: Row) -> list[str]:
    """``Search`` of ``Search[Nick Park]``."""
    return [step["action"].split("[", 1)[0] for step in row["steps"]]


def _routes(agent: str, tools: Sequence[str]) -> tuple[str, ...]:
    return (f"agent:{agent}", *dict.fromkeys(f"tool:{tool}" for tool in tools))


NEED = DataNeed(
    "reward and what the agent did (as tau-bench, Reflexion, ReAct have them)", lambda row: bool(_source(row))
)
