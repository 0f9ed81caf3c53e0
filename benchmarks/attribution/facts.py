"""Who went where: facts as bAbI's first task tells them, so that it is known which of them an answer rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from benchmarks.dataset import Row, read_rows
from sona.attribution.context import Context, Segment

Kind = Literal["unique", "duplicated"]
KINDS: tuple[Kind, ...] = ("unique", "duplicated")
TASK = 1
FACT = re.compile(r"(\w+) ([\w ]+) to the (\w+)\.")
LEAST_FACTS = 4  # fewer leave little to tell apart
MOST_FACTS = 12
BELOW = "\n\n"  # in the message of the segment before, after a blank line


@dataclass(frozen=True)
class Fact:
    """Someone went somewhere."""

    who: str
    verb: str
    where: str

    @property
    def text(self) -> str:
        """As the story tells it."""
        return f"{self.who} {self.verb} to the {self.where}."


@dataclass(frozen=True)
class Case:
    """A question to which the answer is known, and what it rests on."""

    facts: tuple[Fact, ...]
    who: str
    where: str
    support: tuple[int, ...]
    """Which facts say so, each by itself."""

    @property
    def question(self) -> str:
        """As the story asks it."""
        return f"Where is {self.who}?"

    def context(self) -> Context:
        """Every fact a memory in the user's message, then the question with its answer."""
        memories = [
            Segment("memory", fact.text, key=key_of(place), role="" if place else "user", glue=BELOW if place else None)
            for place, fact in enumerate(self.facts)
        ]
        return Context((*memories, Segment("user", self.question, glue=BELOW), Segment("assistant", self.where)))


def key_of(place: int) -> str:
    """A fact's key."""
    return f"fact-{place:02d}"


@dataclass(frozen=True)
class World:
    """The words that stories are made of."""

    people: tuple[str, ...]
    verbs: tuple[str, ...]
    places: tuple[str, ...]

    def story(self, rng: Random, facts: int) -> tuple[Fact, ...]:
        """Facts drawn as bAbI's are; at times one is told twice."""
        told: list[Fact] = []
        while len(told) < facts:
            fact = Fact(rng.choice(self.people), rng.choice(self.verbs), rng.choice(self.places))
            told.append(fact)
            if len(told) < facts and rng.random() < 0.2:
                told.insert(rng.randint(len(told) - 1, len(told)), replace(fact, verb=rng.choice(self.verbs)))
        return tuple(told)


def is_story(row: Row) -> bool:
    """Whether a row is a story with its supporting facts."""
    return {"task", "lines"} <= row.keys()


def read_world(folder: Path) -> World:
    """The words of the task's stories."""
    told = [fact for row in _stories(folder) for fact in _facts(row)]
    return World(*(tuple(sorted({getattr(fact, part) for fact in told})) for part in ("who", "verb", "where")))


def read_cases(folder: Path, kind: Kind, seed: int) -> Iterator[Case]:
    """The questions of the task's stories, the last of each first: those to which exactly one fact is the answer; or
    the same with that fact told a second time, in other words, at a place drawn by chance where it is true too.
    """
    rng = Random(f"{kind}/{seed}")
    for row in _stories(folder):
        for case in reversed(list(_cases(row))):
            if _is_unique(case):
                yield case if kind == "unique" else _told_twice(case, rng)


def _stories(folder: Path) -> Iterator[Row]:
    return (row for row in read_rows(folder) if row.get("task") == TASK)


def _facts(row: Row) -> list[Fact]:
    found = [FACT.fullmatch(line["t"]) for line in row["lines"] if "t" in line]
    return [Fact(*match.groups()) for match in found if match]


def _cases(row: Row) -> Iterator[Case]:
    facts, number = list[Fact](), dict[int, int]()
    for line in row["lines"]:
        if "t" in line:
            number[line["i"]] = len(facts)
            match = FACT.fullmatch(line["t"])
            assert match, line
            facts.append(Fact(*match.groups()))
        elif len(facts) >= LEAST_FACTS:
            support = tuple(number[one] for one in line["support"])
            yield Case(tuple(facts), facts[support[0]].who, line["a"], support)


def _is_unique(case: Case) -> bool:
    """Whether without its support it would have another answer: what the one asked for did before leads elsewhere."""
    others = [fact for place, fact in enumerate(case.facts) if fact.who == case.who and place not in case.support]
    return not others or others[-1].where != case.where


def _told_twice(case: Case, rng: Random) -> Case:
    (at,) = case.support
    before = [place for place, fact in enumerate(case.facts[:at]) if fact.who == case.who]
    again = rng.randint(before[-1] + 1 if before else 0, len(case.facts))
    verbs = sorted({fact.verb for fact in case.facts} - {case.facts[at].verb}) or [case.facts[at].verb]
    copy = replace(case.facts[at], verb=rng.choice(verbs))
    facts = (*case.facts[:again], copy, *case.facts[again:])
    return replace(case, facts=facts, support=tuple(sorted((again, at + (again <= at)))))


def words_of(world: World) -> Sequence[str]:
    """Every word and mark of the stories and their questions."""
    names = [*world.people, *world.verbs, *world.places]
    return sorted({word for name in names for word in name.split()} | {"to", "the", ".", "Where", "is", "?"})
