"""What a query recalls, as text for a prompt.

One recalled pattern reads like this::

    Queries like this one: 48 rated, quality 0.82 (0.71 to 0.89).
    - Do: Look it up. When: an order. Call the lookup first. With it queries went 0.12 better than usual, in 6 trials.
    - Avoid: Promising a date. When: an order has not left yet. The date is often wrong.
    - Way tool:lookup: quality 0.91 (0.80 to 0.96), taken 31 times.
    - Example of quality 0.95: "Where is my order 17?" was answered "It left on Monday."

Intervals hold 90 %. The examples are what users and agents wrote, and lessons were written from them: a host that puts
them into a prompt gives them the trust that it gives its users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from sona.bank.cell import FAILED
from sona.bank.placing import EXCERPT
from sona.checks import check_count, check_function, tuple_of
from sona.patterns import Exemplar, Lesson, Recall, Verdict, kind_of
from sona.types import Record

ROUTES, EXEMPLARS, FAILURES = 4, 2, 1
"""Of each pattern, at most: routes, the best examples, and the worst one."""

CountTokens = Callable[[str], int]
"""How many tokens a text is."""


class PromptText(Record, kw_only=True):
    """Several recalled patterns as one text."""

    text: str
    """"" where nothing fits."""
    tokens: int
    """Of the text."""
    ids: tuple[str, ...]
    """Of the patterns and lessons that are in it, for :attr:`sona.Trajectory.recalled`."""


def text_of(recall: Recall) -> str:
    """All that is known of the pattern, a line each."""
    return "\n".join([_heading(recall), *(line for _, line in _items(recall))])


def with_text(recall: Recall, count_tokens: CountTokens | None = None) -> Recall:
    """``recall`` with its text, and how long that is, where there is a way to count."""
    text = text_of(recall)
    tokens = None if count_tokens is None else count_tokens(text)
    return msgspec.structs.replace(recall, text=text, tokens=tokens)


def in_prompt(recalls: Sequence[Recall], *, max_tokens: int, count_tokens: CountTokens) -> PromptText:
    """As much of ``recalls`` as fits into ``max_tokens``: nearest first, and of each its lessons, then its routes, then
    its examples. A line is in it whole or not at all; where one is too long, shorter ones may follow.

    Args:
        recalls: as :meth:`sona.Engine.recall` or :meth:`sona.bank.bank.Bank.recall` gives them.
        max_tokens: of the whole text.
        count_tokens: such as :meth:`sona.Engine.count_tokens`, or another tokenizer's.

    Raises:
        InvalidInputError: ``max_tokens`` is no whole number from 0 on, ``recalls`` no list of
            :class:`sona.patterns.Recall`, or ``count_tokens`` no function.
    """
    check_count(max_tokens, "max_tokens")
    check_function(count_tokens, "count_tokens", "a plain function that takes a text, such as engine.count_tokens,")
    recalls = tuple_of(recalls, Recall, "recalls")
    parts: list[_Part] = []
    spent = 0
    for recall in recalls:
        opening, owner = f"{_heading(recall)}\n", recall.pattern.id
        for name, line in _items(recall):
            part = _Part(opening + line, owner, name)
            if (cost := count_tokens(f"{part.text}\n")) <= max_tokens - spent:
                parts.append(part)
                spent += cost
                opening = owner = ""
    text = _joined(parts)
    while parts and count_tokens(text) > max_tokens:  # a tokenizer may see other tokens where lines meet
        parts.pop()
        text = _joined(parts)
    ids = dict.fromkeys(name for part in parts for name in (part.pattern, part.lesson) if name)
    return PromptText(text=text, tokens=count_tokens(text) if text else 0, ids=tuple(ids))


class _Part(NamedTuple):
    """A line; the first one of a pattern has the heading before it, and the pattern's id."""

    text: str
    pattern: str
    lesson: str


def _joined(parts: Sequence[_Part]) -> str:
    return "\n".join(part.text for part in parts)


def _heading(recall: Recall) -> str:
    verdict = recall.pattern.verdict
    known = f"{verdict.count} rated, {_quality(verdict)}" if verdict.count else "none rated so far"
    return f"Queries like this one: {known}."


def _items(recall: Recall) -> Iterator[tuple[str, str]]:
    """The lines under the heading, what is worth most first; each with the id of its lesson, if it is one."""
    pattern = recall.pattern
    for lesson in sorted(pattern.lessons, key=lambda one: -one.worth):
        yield lesson.id, _lesson(lesson)
    for route in _telling(pattern.routes):
        verdict = pattern.routes[route]
        yield "", f"- Way {route}: {_quality(verdict)}, taken {_times(verdict.count)}."
    best = [one for one in pattern.exemplars if one.quality >= FAILED and one.prompt]
    worst = [one for one in pattern.failures if one.prompt]
    for exemplar in (*best[:EXEMPLARS], *worst[:FAILURES]):
        yield "", _example(exemplar)


def _telling(routes: Mapping[str, Verdict]) -> list[str]:
    """Of each kind the route that is surest to be good and, where there is another, the one that is surest to be bad;
    of few kinds then the next best ones, :data:`ROUTES` in all.
    """
    ranked = sorted(routes, key=lambda name: (-routes[name].interval[0], -routes[name].mean, name))
    worst_first = sorted(routes, key=lambda name: (routes[name].interval[1], routes[name].mean, name))
    first = {kind_of(name): name for name in reversed(ranked)}
    last = {kind_of(name): name for name in reversed(worst_first)}
    chosen = dict.fromkeys((*first.values(), *last.values(), *ranked))
    kept = list(chosen)[:ROUTES]
    return [name for name in ranked if name in kept]


def _quality(verdict: Verdict) -> str:
    low, high = verdict.interval
    return f"quality {verdict.mean:.2f} ({low:.2f} to {high:.2f})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _lesson(lesson: Lesson) -> str:
    parts = (lesson.title, f"When: {lesson.when}", lesson.text)
    return f"- {lesson.advice.capitalize()}: {' '.join(_sentence(part) for part in parts)}{_evidence(lesson)}"


def _evidence(lesson: Lesson) -> str:
    """What came of it, as a sentence after others; "" before anyone has tried it."""
    if not lesson.tried:
        return ""
    by = f"{abs(lesson.effect):.2f}"
    went = "as usual" if by == "0.00" else f"{by} {'better' if lesson.effect > 0 else 'worse'} than usual"
    return f" With it queries went {went}, in {lesson.tried} {'trial' if lesson.tried == 1 else 'trials'}."


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?", "…")) else f"{line}."


def _example(exemplar: Exemplar) -> str:
    query, answer = _line(exemplar.prompt), _line(exemplar.response)
    answered = f'was answered "{answer}"' if answer else "was not answered in words"
    return f'- Example of quality {exemplar.quality:.2f}: "{query}" {answered}'


def _line(excerpt: str) -> str:
    """On one line, with a sign where it is the beginning of something longer."""
    return " ".join(excerpt.split()) + ("…" if len(excerpt) >= EXCERPT else "")
