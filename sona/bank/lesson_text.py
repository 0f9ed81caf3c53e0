"""Lessons in a language model's words: the question that it is asked, and the strict reading of its answer.

One lesson is one line of five fields, which small models keep to more often than to JSON::

    DO | Look the order up | a question about an order | Call the lookup with the order's number first. | 1, 3

The queries and answers in the question are anybody's words. They stand on one line each, without the sign that parts
the fields; but a model may still follow what they say, so lessons deserve no more trust than what users write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sona.bank.lessons import LessonDraft, LessonRequest
from sona.patterns import Advice, Exemplar

PART = "|"
MOST_LINES = 100
"""That are read of an answer."""

_ADVICE: dict[str, Advice] = {"do": "do", "avoid": "avoid"}
_NUMBERS = re.compile(r"\[?[0-9]{1,4}\]?(\s*,\s*\[?[0-9]{1,4}\]?)*")
_BULLET = re.compile(r"^(?:[-*•]|[0-9]{1,2}[.)])\s+")


def question(best: Sequence[Exemplar], worst: Sequence[Exemplar], most: int) -> str:
    """The question about these exemplars, which are numbered from 1 in this order, for up to ``most`` lessons."""
    shown = [_example(number, one) for number, one in enumerate((*best, *worst), start=1)]
    return "\n".join(
        [
            "Queries of one kind, each with its answer and how good that was, from 0 (useless) to 1 (right):",
            *shown,
            f"What do they teach whoever answers such queries next? Write at most {most} short lessons and nothing "
            "else, each on one line, in this form:",
            "DO | title | for which queries | what to do | numbers of the examples that show it",
            "AVOID | title | for which queries | what not to do | numbers of the examples that show it",
        ]
    )


def _example(number: int, exemplar: Exemplar) -> str:
    return f"[{number}] quality {exemplar.quality:.2f}\nQuery: {_inert(exemplar.prompt)}\n" + (
        f"Answer: {_inert(exemplar.response)}"
    )


def _inert(text: str) -> str:
    return " ".join(text.replace(PART, "/").split())


def answered(text: str, request: LessonRequest) -> list[LessonDraft | str]:
    """A draft for each line that is one, and each other line that is not blank as it is. Numbers of examples that
    were not shown name nothing; a line that names none is no draft.
    """
    ids = [one.trajectory_id for one in (*request.best, *request.worst)]
    lines = [line.strip() for line in text.splitlines()[:MOST_LINES]]
    return [_draft(line, ids) or line for line in lines if line]


def _draft(line: str, ids: Sequence[str]) -> LessonDraft | None:
    fields = [field.strip() for field in _BULLET.sub("", line).split(PART)]
    if len(fields) != 5:
        return None
    advice, title, when, text, numbers = fields
    if advice.lower() not in _ADVICE or not (title and when and text) or not _NUMBERS.fullmatch(numbers):
        return None
    places = [int(number) - 1 for number in re.findall("[0-9]+", numbers)]
    named = tuple(dict.fromkeys(ids[place] for place in places if 0 <= place < len(ids)))
    if not named:
        return None
    return LessonDraft(title=title, when=when, advice=_ADVICE[advice.lower()], text=text, trajectory_ids=named)
