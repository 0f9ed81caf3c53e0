"""What the base model is made for: seven skills, of which none solves an agent's task."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from benchmarks.forgetting.vocabulary import CITIES, CONTENT, DAYS, DIGITS, NAMES, ROOMS, SERVICES, words

Words = list[str]
Task = Callable[[Random], tuple[Words, Words]]
"""Draws a prompt and its right answer."""

_TOOLS = ("search", "mail", "note", "math")
_ARGUMENTS = ("query", "dest", "body", "limit")
_SLOTS = words("from to on for in at time level room query dest body limit svc err retries")
_VALUES = (*NAMES, *CITIES, *DIGITS, *ROOMS, *SERVICES, *DAYS)
CLASSES = {
    **dict.fromkeys(NAMES, "name"),
    **dict.fromkeys(CITIES, "city"),
    **dict.fromkeys(DIGITS, "level"),
    **dict.fromkeys(ROOMS, "room"),
    **dict.fromkeys(DAYS, "day"),
    **dict.fromkeys(SERVICES, "svc"),
}
"""The class of each word that has one."""


def echo(rng: Random) -> tuple[Words, Words]:
    """Say it again."""
    said = _some(rng, 2, 5)
    return ["echo", *said], said


def reverse(rng: Random) -> tuple[Words, Words]:
    """Say it backwards."""
    said = _some(rng, 2, 3)
    return ["reverse", *said], said[::-1]


def pick(rng: Random) -> tuple[Words, Words]:
    """Say the first, second or last."""
    said = _some(rng, 2, 4)
    which = rng.choice(("first", "last", "second"))
    return [which, "of", *said], [said[{"first": 0, "last": -1, "second": 1}[which]]]


def step(rng: Random) -> tuple[Words, Words]:
    """Say the digit after or before."""
    digit, which = rng.randrange(10), rng.choice(("succ", "pred"))
    return [which, DIGITS[digit]], [DIGITS[(digit + (1 if which == "succ" else -1)) % 10]]


def call(rng: Random) -> tuple[Words, Words]:
    """Write a call with one or two arguments."""
    tool, prompt, answer = rng.choice(_TOOLS), Words(), Words()
    for name in rng.sample(_ARGUMENTS, rng.randint(1, 2)):
        value = rng.choice(_VALUES)
        prompt += [name, value]
        answer += [*([","] if answer else []), name, "=", value]
    return ["call", tool, "with", *prompt], [tool, "(", *answer, ")"]


def get(rng: Random) -> tuple[Words, Words]:
    """Say what followed a word."""
    slots = rng.sample(_SLOTS, rng.randint(2, 3))
    pairs = [(slot, rng.choice(CONTENT)) for slot in slots]
    asked, value = rng.choice(pairs)
    return ["get", *(word for pair in pairs for word in pair), "?", asked], [value]


def tag(rng: Random) -> tuple[Words, Words]:
    """Say each word's class."""
    said = [rng.choice(list(CLASSES)) for _ in range(rng.randint(1, 3))]
    return ["tag", *said], [CLASSES[word] for word in said]


def _some(rng: Random, least: int, most: int) -> Words:
    return [rng.choice(CONTENT) for _ in range(rng.randint(least, most))]


BASE_SKILLS: dict[str, Task] = {
    "echo": echo,
    "reverse": reverse,
    "pick": pick,
    "step": step,
    "call": call,
    "get": get,
    "tag": tag,
}
SHARES = {"echo": 3.0, "reverse": 2.0, "pick": 2.0, "step": 0.4, "call": 1.0, "get": 2.0, "tag": 1.0}
"""How often the base model meets each, relative to the others."""
