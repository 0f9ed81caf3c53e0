"""The word world of a seed: which tasks there are, and what is right in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from benchmarks.forgetting.agent_tasks import Knowledge, Redaction, Routing, SlotFilling, ToolCall
from benchmarks.forgetting.base_skills import BASE_SKILLS, Task
from benchmarks.forgetting.overlap_tasks import overlap_tasks
from benchmarks.forgetting.vocabulary import (
    ACCOUNTS,
    DAY_CODES,
    DAYS,
    ERRORS,
    PLANS,
    REGIONS,
    TEAMS,
    answer_ids,
    prompt_ids,
)

BASE = "base"
"""Names the base skills, all together."""
VARIANTS = 4
"""Small tasks a family in the world of many."""


class Question(NamedTuple):
    """A prompt and its right answer."""

    prompt: tuple[int, ...]
    """Token ids, from the start token to the opening of an answer."""
    answer: tuple[int, ...]
    """Token ids, the end token included."""


@dataclass(frozen=True)
class World:
    """Tasks by name, in the order in which they arrive."""

    tasks: Mapping[str, Task]

    def sample(self, name: str, count: int, key: str) -> list[Question]:
        """``count`` questions of a task, or of :data:`BASE` (its skills in turn); the same ``key`` gives the same."""
        rng = Random(f"{name}/{key}")
        skills = list(BASE_SKILLS.values()) if name == BASE else [self.tasks[name]]
        drawn = [skills[place % len(skills)](rng) for place in range(count)]
        return [Question(prompt_ids(prompt), answer_ids(answer)) for prompt, answer in drawn]


def plain_world(seed: int) -> World:
    """Five tasks in words of their own."""
    return World(_shuffled(_five(Random(f"plain/{seed}")), seed))


def overlap_world(seed: int) -> World:
    """Five tasks that share all words but a verb."""
    return World(_shuffled(overlap_tasks(Random(f"overlap/{seed}")), seed))


def drift_world(seed: int) -> World:
    """The five tasks, then, as ``new <name>``, the same prompts with other right answers."""
    first = _shuffled(_five(Random(f"plain/{seed}")), seed)
    changed = _shuffled(_five_changed(first, Random(f"drift/{seed}")), seed + 1)
    return World({**first, **{f"new {name}": task for name, task in changed.items()}})


def many_world(seed: int) -> World:
    """Twenty small tasks: each family four times, with other words, formats and tables."""
    rng = Random(f"many/{seed}")
    return World(_shuffled({name: task for part in range(VARIANTS) for name, task in _small(part, rng).items()}, seed))


def _five(rng: Random) -> dict[str, Task]:
    openings = [f"user {polite}{verb}" for polite in ("", "please ") for verb in ("set", "turn", "make")]
    phrasings = ("lookup acct KEY", "tell me about acct KEY", "acct KEY ?", "user lookup KEY please")
    tickets = ("ticket err ERROR svc SERVICE retries NUMBER", "fault code ERROR tries NUMBER in SERVICE")
    return {
        "tool": ToolCall(openings, "TOOL { ARGUMENT : NUMBER | room : ROOM }"),
        "slot": SlotFilling("book trip", _codes(rng), "src SOURCE dst TARGET day CODE"),
        "facts": Knowledge(phrasings, _facts(ACCOUNTS[:20], rng), "plan PLAN region REGION"),
        "redact": Redaction(("redact", "hide"), {"name": "[N]", "city": "[C]", "level": "X"}),
        "route": Routing(tickets, _teams(ERRORS, rng), few="retry", many="escalate"),
    }


def _five_changed(first: Mapping[str, Task], rng: Random) -> dict[str, Task]:
    """The same prompts as those of ``first``; formats, tables and rules are others."""
    tool, facts, redact, route = (first[name] for name in ("tool", "facts", "redact", "route"))
    assert isinstance(tool, ToolCall)
    assert isinstance(facts, Knowledge)
    assert isinstance(redact, Redaction)
    assert isinstance(route, Routing)
    return {
        "tool": ToolCall(tool.openings, "TOOL ( room = ROOM , ARGUMENT = NUMBER )"),
        "slot": SlotFilling("book trip", _codes(rng), "day CODE dst TARGET src SOURCE"),
        "facts": Knowledge(facts.phrasings, _facts(ACCOUNTS[:20], rng), "plan PLAN region REGION"),
        "redact": Redaction(redact.openings, {"name": "X", "room": "[N]", "svc": "[C]"}),
        "route": Routing(route.phrasings, _teams(ERRORS, rng), few="escalate", many="retry", limit=4),
    }


def _small(part: int, rng: Random) -> dict[str, Task]:
    """The five tasks with this number: each opens with a word that no other task opens with."""
    forms = (
        "TOOL { ARGUMENT : NUMBER | room : ROOM }",
        "TOOL ( room = ROOM , ARGUMENT = NUMBER )",
        "room ROOM ; TOOL ARGUMENT NUMBER",
        "ARGUMENT NUMBER for TOOL in ROOM",
    )
    trips = (
        "src SOURCE dst TARGET day CODE",
        "day CODE dst TARGET src SOURCE",
        "TARGET ; SOURCE ; CODE",
        "to TARGET from SOURCE on CODE",
    )
    plans = ("plan PLAN region REGION", "region REGION plan PLAN", "PLAN ; REGION", "REGION = PLAN")
    masks = (
        {"name": "[N]", "city": "[C]", "level": "X"},
        {"name": "X", "room": "[N]", "svc": "[C]"},
        {"city": "X", "svc": "[N]", "level": "[C]"},
        {"room": "X", "city": "[N]", "name": "[C]"},
    )
    tool = ("set", "turn", "make", "user")[part]
    trip = ("book", "trip", "day", "src")[part]
    look = ("lookup", "tell", "acct", "who")[part]
    hide = ("redact", "hide", "name", "card")[part]
    ticket = ("ticket", "fault", "retry", "code")[part]
    accounts, errors = ACCOUNTS[6 * part : 6 * part + 6], ERRORS[3 * part : 3 * part + 3]
    return {
        f"tool{part}": ToolCall((tool,), forms[part]),
        f"slot{part}": SlotFilling(trip, _codes(rng), trips[part]),
        f"facts{part}": Knowledge(
            (f"{look} KEY for WHO", f"{look} WHO about KEY ?"), _facts(accounts, rng), plans[part]
        ),
        f"redact{part}": Redaction((hide,), masks[part]),
        f"route{part}": Routing(
            (f"{ticket} err ERROR svc SERVICE tries NUMBER", f"{ticket} tries NUMBER in SERVICE err ERROR"),
            _teams(errors, rng),
            few=("retry", "escalate")[part % 2],
            many=("escalate", "retry")[part % 2],
            limit=2 + part,
        ),
    }


def _shuffled(tasks: Mapping[str, Task], seed: int) -> dict[str, Task]:
    names = list(tasks)
    Random(f"order/{seed}").shuffle(names)
    return {name: tasks[name] for name in names}


def _codes(rng: Random) -> dict[str, str]:
    return dict(zip(DAYS, rng.sample(DAY_CODES, len(DAYS)), strict=True))


def _facts(accounts: tuple[str, ...], rng: Random) -> dict[str, tuple[str, str]]:
    return {account: (rng.choice(PLANS), rng.choice(REGIONS)) for account in accounts}


def _teams(errors: tuple[str, ...], rng: Random) -> dict[str, str]:
    return {error: rng.choice(TEAMS) for error in errors}
