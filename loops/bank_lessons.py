"""A cycle's work on the bank's lessons: count what was tried, drop what harms, have new ones written.

    rated trajectories ─▶ trials ─▶ sums ─▶ drop the useless ─▶ patterns that are due ─▶ distiller ─▶ keep the best

It belongs to what a cycle publishes: where the gate rejects a cycle, the bank of before stays with its sums, as it
stays with its patterns. A trajectory counts in the cycle that collects it, however late its feedback came.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from sona.bank.bank import Bank
from sona.bank.lessons import Distiller, LessonRequest, accepted, asked_after, asked_and_dropped, due, kept
from sona.bank.pattern import Member
from sona.bank.shelf import Asked
from sona.bank.trials import Trial, Usual, is_useless, trials_of, tried
from sona.config import Config
from sona.patterns import Lesson, Verdict
from sona.ports import Report
from sona.types import Progress

log = logging.getLogger("sona.lessons")


def with_trials(
    before: Bank, after: Bank, members: Sequence[Member], pattern_ids: Sequence[str]
) -> tuple[Bank, dict[str, float]]:
    """``after`` with its lessons after the trials of the ``members`` that had recalled them, and without those that do
    harm; and how many trials and lessons that were.

    Args:
        before: the bank in which it says what was usual before this cycle.
        after: ... with the members in it.
        members: the cycle's trajectories.
        pattern_ids: of the patterns that they lie in now.
    """
    owners = {lesson.id: pattern for pattern in after.patterns for lesson in pattern.lessons}
    if not owners:
        return after, {}
    lessons = {lesson.id: lesson for pattern in after.patterns for lesson in pattern.lessons}
    trials = trials_of(members, pattern_ids, _usual(before, after), lessons)
    by_lesson: dict[str, list[Trial]] = {}
    for trial in trials:
        by_lesson.setdefault(trial.lesson, []).append(trial)
    moved = {name: tried(lessons[name], some) for name, some in by_lesson.items()}
    changed, asked, dropped = dict[str, tuple[Lesson, ...]](), dict(after.asked), 0
    for pattern in {owners[name].id: owners[name] for name in moved}.values():
        current = [moved.get(one.id, one) for one in pattern.lessons]
        useless = [one for one in current if is_useless(one)]
        changed[pattern.id] = tuple(one for one in current if one not in useless)
        if useless:
            asked[pattern.id] = asked_and_dropped(asked.get(pattern.id, Asked()), useless)
            dropped += len(useless)
    helped = sum(trial.helped for trial in trials)
    counts = {"helped": helped, "harmed": len(trials) - helped, "dropped": dropped}
    return after.with_lessons(changed, asked), {f"lessons_{name}": float(count) for name, count in counts.items()}


def _usual(before: Bank, after: Bank) -> Callable[[str], Usual]:
    """By pattern id what was usual ``before``; of what has been split since, that of the whole.

    It is the pattern's own mean, with the mean of all as one trajectory among its own: drawn farther towards that of
    all (:meth:`Bank.usual_quality`), a lesson of a pattern that goes worse than the others would seem to harm.
    """
    known = {pattern.id: pattern.verdict for pattern in before.patterns}
    everything = before.usual_quality("")
    whole = {one.pattern: one.other for one in after.changes if one.change == "split" and one.pattern not in known}

    def usual(name: str) -> Usual:
        while name in whole:
            name = whole[name]
        own = known.get(name, Verdict())
        return Usual((own.count * own.mean + everything) / (own.count + 1), own.count + 1)

    return usual


def with_new_lessons(
    bank: Bank, distill: Distiller, config: Config, cycle: int, report: Report
) -> tuple[Bank, dict[str, float]]:
    """``bank`` with lessons in the patterns that are due; and how many patterns were asked of, how often that failed,
    how many lessons came of it, and how many drafts were none.

    Nothing that ``distill`` does can break the cycle: what it raises is logged and counted.
    """
    requests = due(bank.patterns, bank.asked, config.lessons, config.bank.lessons, cycle)
    asked, lessons = dict(bank.asked), dict[str, tuple[Lesson, ...]]()
    counts = Counter(asked=len(requests), failed=0, written=0, refused=0)
    for done, request in enumerate(requests):
        pattern = request.pattern
        report(Progress(stage="distill", done=done, total=len(requests), note=f"pattern {pattern.id}"))
        answer = _answer(distill, request, cycle, counts["written"])
        asked[pattern.id] = asked_after(request, answer is not None)
        if answer is None:
            counts["failed"] += 1
            continue
        new, refused = answer
        counts.update(written=len(new), refused=refused)
        lessons[pattern.id] = kept(pattern.lessons, new, config.bank.lessons)
    metrics = {f"lessons_{name}": float(count) for name, count in counts.items()}
    return (bank.with_lessons(lessons, asked) if requests else bank), metrics


def _answer(distill: Distiller, request: LessonRequest, cycle: int, first: int) -> tuple[list[Lesson], int] | None:
    """Lessons, and how many drafts were turned down; None where it failed."""
    try:
        return accepted(distill(request), request, cycle, first)
    except (Exception, SystemExit):  # a host's own function may raise anything; no lesson is worth a cycle
        log.exception("pattern %s: its lessons could not be distilled", request.pattern.id)
        return None
