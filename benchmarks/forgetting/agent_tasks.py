"""Five families of an agent's tasks. Each needs a table, a format or a rule that the base model can't know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.forgetting.base_skills import CLASSES, Words
from benchmarks.forgetting.vocabulary import CITIES, DIGITS, NAMES, ROOMS, SERVICES

ARGUMENT_OF = {"alarm": "time", "light": "level", "heat": "level", "tune": "time"}
"""The tools, and the argument of each that the number is for."""
SPOKEN = (NAMES, CITIES, DIGITS, ROOMS, SERVICES)
"""The classes of words that tasks are about."""


def fill(form: str, **values: str) -> Words:
    """The words of ``form``, its placeholders (in capitals) replaced."""
    return [values.get(word, word) for word in form.split()]


def spoken(rng: Random, count: int) -> Words:
    """``count`` words, each of a class drawn first."""
    return [rng.choice(rng.choice(SPOKEN)) for _ in range(count)]


@dataclass(frozen=True)
class ToolCall:
    """A tool call in a format of its own."""

    openings: Sequence[str]
    form: str
    """With TOOL, ARGUMENT, NUMBER and ROOM."""

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        tool, room, number = rng.choice(list(ARGUMENT_OF)), rng.choice(ROOMS), rng.choice(DIGITS)
        order = rng.choice(("TOOL in ROOM to NUMBER", "TOOL at NUMBER in ROOM"))
        values = {"TOOL": tool, "ARGUMENT": ARGUMENT_OF[tool], "NUMBER": number, "ROOM": room}
        return [*rng.choice(self.openings).split(), *fill(order, **values)], fill(self.form, **values)


@dataclass(frozen=True)
class SlotFilling:
    """A trip's two cities and its day; the day is written as a table says."""

    opening: str
    codes: Mapping[str, str]
    """The code of each day."""
    form: str
    """With SOURCE, TARGET and CODE."""

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        source, target = rng.sample(CITIES, 2)
        day = rng.choice(list(self.codes))
        order = rng.choice(("from SOURCE to TARGET on DAY", "on DAY from SOURCE to TARGET"))
        prompt = fill(order, SOURCE=source, TARGET=target, DAY=day)
        answer = fill(self.form, SOURCE=source, TARGET=target, CODE=self.codes[day])
        return [*self.opening.split(), *prompt], answer


@dataclass(frozen=True)
class Knowledge:
    """Facts about accounts, asked in several ways."""

    phrasings: Sequence[str]
    """With KEY; one with WHO names a person too, which changes nothing."""
    facts: Mapping[str, tuple[str, str]]
    """The plan and region of each account."""
    form: str
    """With PLAN and REGION."""

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        key = rng.choice(list(self.facts))
        plan, region = self.facts[key]
        return fill(rng.choice(self.phrasings), KEY=key, WHO=rng.choice(NAMES)), fill(
            self.form, PLAN=plan, REGION=region
        )


@dataclass(frozen=True)
class Redaction:
    """Words rewritten by their class."""

    openings: Sequence[str]
    masks: Mapping[str, str]
    """What stands for the words of a class; other words stay."""

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        words = spoken(rng, rng.randint(2, 3))
        return [rng.choice(self.openings), *words], [self.masks.get(CLASSES[word], word) for word in words]


@dataclass(frozen=True)
class Routing:
    """Who takes a ticket: a table by the error, and a rule by the number of tries."""

    phrasings: Sequence[str]
    """With ERROR, SERVICE and NUMBER."""
    teams: Mapping[str, str]
    """The team of each error."""
    few: str
    """What is done below ``limit`` tries."""
    many: str
    """What is done from ``limit`` on."""
    limit: int = 3

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        error, service, tries = rng.choice(list(self.teams)), rng.choice(SERVICES), rng.randrange(7)
        prompt = fill(rng.choice(self.phrasings), ERROR=error, SERVICE=service, NUMBER=DIGITS[tries])
        return prompt, [self.few if tries < self.limit else self.many, service, "team", self.teams[error]]
