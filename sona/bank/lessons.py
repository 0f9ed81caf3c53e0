"""Lessons: of which patterns they are asked, what a distiller is given, and which of its drafts a pattern keeps.

A distiller is whoever writes them: the served model (:mod:`sona.loops.distiller`), or a host's own function, such as
one that asks a larger model::

    def distill(request: LessonRequest) -> list[LessonDraft]: ...

    sona.open("agent-store", distill=distill)

It is called from the thread that learns, once for each pattern that is due, and may take its time: requests go on
meanwhile, and only closing the engine waits for a call under way. What it raises is logged and counted, and costs no
more than its lessons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from sona.bank.cell import FAILED
from sona.bank.shelf import Asked
from sona.checks import check_one_of, check_text, shown, tuple_of
from sona.config import LessonsConfig
from sona.errors import InvalidInputError
from sona.patterns import ADVICE, UNKNOWN, Advice, Exemplar, Lesson, Pattern, PatternChange
from sona.types import Record

log = logging.getLogger("sona.lessons")

GROWN = 1.5
"""A pattern is asked of again when it has grown by this factor."""
FEWEST_SHOWN = 2
"""Exemplars with a text that a distiller needs to see."""
LONGEST = {"title": 80, "when": 200, "text": 400}
"""Characters of a lesson's parts. What is longer is no lesson but an essay, and would fill the prompts."""
MOST_DROPPED = 4
"""Lessons of a pattern that are remembered because they did not help."""
MOST_DRAFTS = 100
"""That are looked at of one answer: it may be a generator without an end."""


class LessonDraft(Record, kw_only=True):
    """A lesson as a distiller writes it."""

    title: str
    """Up to 80 characters."""
    when: str
    """The queries that it is for, up to 200."""
    advice: Advice
    """Whether to do what ``text`` says, or to avoid it."""
    text: str
    """Up to 400."""
    trajectory_ids: tuple[str, ...] = ()
    """Those of the request that it rests on; none: all of them."""


class LessonRequest(Record, kw_only=True):
    """What a distiller is asked: what do these teach?"""

    pattern: Pattern
    """How such queries went on the whole, and by each route."""
    best: tuple[Exemplar, ...]
    """The best rated, best first: of quality 0.5 or more. They show the beginnings of query and answer;
    :meth:`sona.Engine.get` has the whole."""
    worst: tuple[Exemplar, ...]
    """The worst rated, worst first."""
    most: int
    """Lessons that are wanted, at most."""
    dropped: tuple[Lesson, ...] = ()
    """Lessons that the pattern had, and that did not help: not to be written again."""

    @property
    def known(self) -> tuple[Lesson, ...]:
        """The lessons that the pattern has, with what came of them."""
        return self.pattern.lessons

    @property
    def trajectory_ids(self) -> tuple[str, ...]:
        """Of all exemplars: what a draft may name."""
        return tuple(dict.fromkeys(one.trajectory_id for one in (*self.best, *self.worst)))

    @property
    def shown(self) -> tuple[str, ...]:
        """All trajectories of which something may find its way into an answer, through the known lessons too."""
        earlier = (name for one in (*self.known, *self.dropped) for name in one.shown)
        return tuple(dict.fromkeys((*self.trajectory_ids, *earlier)))


Drafts: TypeAlias = Iterable[LessonDraft | Lesson | Mapping[str, Any] | str]
"""Mappings have the keys of a :class:`LessonDraft`. A text is what could not be read as one: it counts as turned down.
"""
Distiller: TypeAlias = Callable[[LessonRequest], Drafts | None]


def due(
    patterns: Iterable[Pattern], asked: Mapping[str, Asked], settings: LessonsConfig, most: int, cycle: int
) -> list[LessonRequest]:
    """The requests of one cycle: of patterns that it touched, that have grown by half since they were asked of, and
    that have something to teach. Those that have grown most come first, ``settings.per_cycle`` of them at most.

    Args:
        patterns: all of the bank.
        asked: by pattern id, what is remembered of its lessons.
        settings: ``per_cycle``, ``min_rated``.
        most: lessons that a pattern keeps.
        cycle: the number of this one.
    """
    if most < 1 or settings.per_cycle < 1:
        return []
    touched = [
        (pattern, asked.get(pattern.id, Asked()))
        for pattern in patterns
        if pattern.touched_cycle == cycle and pattern.verdict.count >= settings.min_rated
    ]
    ripe = [(pattern, before) for pattern, before in touched if pattern.count >= GROWN * before.count]
    ripe.sort(key=lambda pair: (-pair[0].count / max(pair[1].count, 1), pair[0].id))
    requests = (request_of(pattern, before, most) for pattern, before in ripe)
    return list(islice((request for request in requests if request is not None), settings.per_cycle))


def request_of(pattern: Pattern, before: Asked, most: int) -> LessonRequest | None:
    """What there is to ask of it; None where there is nothing to compare, and neither a clear success nor a clear
    failure.
    """
    best = tuple(one for one in pattern.exemplars if one.quality >= FAILED and _says_something(one))
    worst = tuple(one for one in pattern.failures if _says_something(one))
    low, high = pattern.verdict.interval
    clear = (best and worst) or (best and low > UNKNOWN) or (worst and high < UNKNOWN)
    if not clear or len(best) + len(worst) < FEWEST_SHOWN:
        return None
    return LessonRequest(pattern=pattern, best=best, worst=worst, most=most, dropped=before.dropped)


def _says_something(exemplar: Exemplar) -> bool:
    return bool(exemplar.prompt.strip() and exemplar.response.strip())


def asked_after(request: LessonRequest, answered: bool) -> Asked:
    """What to remember of a request: how many trajectories the pattern had. One that failed may be made again in the
    next cycle, behind all that are due.
    """
    count = request.pattern.count if answered else int(request.pattern.count / GROWN)
    return Asked(count=count, dropped=request.dropped)


def asked_and_dropped(before: Asked, dropped: Sequence[Lesson]) -> Asked:
    """What to remember when these lessons are dropped."""
    return Asked(count=before.count, dropped=(*before.dropped, *dropped)[-MOST_DROPPED:])


def asked_after_merges(before: Mapping[str, Asked], changes: Iterable[PatternChange]) -> dict[str, Asked]:
    """``before``, where what is remembered of dropped lessons has gone with each pattern that was ``merged`` to the one
    that took it in: their lessons were told that they did not help, and would be written again.
    """
    asked = dict(before)
    for change in changes:
        if change.change == "merged" and (gone := asked.pop(change.pattern, Asked())).dropped:
            kept_one = asked.get(change.other, Asked())
            asked[change.other] = Asked(
                count=kept_one.count, dropped=(*gone.dropped, *kept_one.dropped)[-MOST_DROPPED:]
            )
    return asked


def accepted(drafts: object, request: LessonRequest, cycle: int, first: int) -> tuple[list[Lesson], int]:
    """The lessons among what a distiller answered, and how many of its drafts were turned down.

    A lesson rests on trajectories of the request; of others that it names nothing is kept, and one that names only
    others is turned down. So is one that is too long, or no lesson at all. What the pattern has or had already
    is no news, and left out without a count, as what is beyond ``request.most``.

    Args:
        drafts: whatever a distiller gave back. Iterating over it may raise.
        request: what it was asked.
        cycle: of the lessons' birth.
        first: the number of the first one among all of the cycle, for its id.
    """
    lessons: list[Lesson] = []
    refused = 0
    known = {_key(one.text) for one in (*request.known, *request.dropped)}
    for draft in listed(drafts):
        try:
            lesson = _lesson(draft, request, f"l{cycle}-{first + len(lessons)}", cycle)
        except InvalidInputError as error:
            refused += 1
            log.info("pattern %s: no lesson: %s", request.pattern.id, error)
            continue
        if _key(lesson.text) not in known and len(lessons) < request.most:
            known.add(_key(lesson.text))
            lessons.append(lesson)
    return lessons, refused


def listed(drafts: object) -> list[object]:
    """What a distiller answered, one by one. Iterating over it may raise."""
    if drafts is None:
        return []
    if isinstance(drafts, (str, bytes, Mapping, Record)) or not isinstance(drafts, Iterable):
        return [drafts]  # not a list of drafts, but perhaps one
    return list(islice(drafts, MOST_DRAFTS))


def _lesson(draft: object, request: LessonRequest, name: str, cycle: int) -> Lesson:
    parts = _parts(draft)
    title, when, text = (_line(parts.get(part), part) for part in LONGEST)
    check_one_of(parts.get("advice"), ADVICE, "advice")
    named = tuple_of(parts.get("trajectory_ids", ()), str, "trajectory_ids")
    own = request.trajectory_ids
    rests_on = tuple(dict.fromkeys(one for one in named if one in own)) if named else own
    if not rests_on:
        raise InvalidInputError(f"trajectory_ids: {shown(named)}; those of the request are allowed")
    return Lesson(
        id=name,
        title=title,
        when=when,
        advice=parts["advice"],
        text=text,
        trajectory_ids=rests_on,
        born_cycle=cycle,
        shown=request.shown,
    )


def _parts(draft: object) -> Mapping[str, Any]:
    if isinstance(draft, (LessonDraft, Lesson)):
        return {name: getattr(draft, name) for name in LessonDraft.__struct_fields__}
    if not isinstance(draft, Mapping):
        raise InvalidInputError(f"draft: {shown(draft)}; a LessonDraft, or a mapping with its fields, is allowed")
    if unknown := [key for key in draft if key not in LessonDraft.__struct_fields__]:
        raise InvalidInputError(f"draft: {shown(unknown[0])}; {', '.join(LessonDraft.__struct_fields__)} are allowed")
    return draft


def _line(value: object, part: str) -> str:
    """``value`` on one line."""
    check_text(value, part)
    assert isinstance(value, str)
    line = " ".join(value.split())
    if len(line) > LONGEST[part]:
        raise InvalidInputError(f"{part}: {len(line)} characters; at most {LONGEST[part]} are allowed")
    return line


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def kept(old: Sequence[Lesson], new: Sequence[Lesson], most: int) -> tuple[Lesson, ...]:
    """The ``most`` lessons of a pattern that was asked of anew: first those that have shown that they help, then the
    new ones, which rest on more, then the others.
    """
    ranked = sorted((*new, *old), key=lambda one: (-one.worth, one.harmful, -one.born_cycle))
    return tuple(ranked[:most])
