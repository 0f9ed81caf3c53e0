"""What is known of a pattern, in few words: the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sona.excerpt import excerpt
from sona.patterns import Exemplar, Lesson, Pattern, PatternChange, Verdict, kind_of

SURE = 0.5
"""A route is compared with others where the 90 % interval of its quality is no wider: nine qualities about 0.5 make it
so, or three that are all alike."""
RECENT_SHARE = 0.6
"""Where more than this of what is known is recent, nothing is known of a trend: below about 75 qualities."""
UNRATED = "-"


class BestAndWorst(NamedTuple):
    """Two routes of one pattern."""

    best: str
    worst: str


def best_and_worst(routes: Mapping[str, Verdict]) -> BestAndWorst | None:
    """Of the kind of routes (such as ``tool``) in which it matters most: the one that is the best even at the low end
    of its interval, and of the others the one that is the worst even at the high end of its own.

    None where of no kind two have enough evidence and can be told apart: the mean of each must lie outside the other's
    interval.
    """
    kinds: dict[str, dict[str, Verdict]] = {}
    for name, verdict in routes.items():
        kinds.setdefault(kind_of(name), {})[name] = verdict
    found = [pair for some in kinds.values() if (pair := _of_a_kind(some)) is not None]
    return max(found, key=lambda pair: routes[pair.best].mean - routes[pair.worst].mean, default=None)


def _of_a_kind(routes: Mapping[str, Verdict]) -> BestAndWorst | None:
    sure = sorted(name for name, verdict in routes.items() if verdict.interval[1] - verdict.interval[0] <= SURE)
    if len(sure) < 2:
        return None
    best = max(sure, key=lambda name: routes[name].interval[0])
    worst = min((name for name in sure if name != best), key=lambda name: routes[name].interval[1])
    above, below = routes[best], routes[worst]
    apart = above.interval[0] > below.mean and above.mean > below.interval[1]
    return BestAndWorst(best, worst) if apart else None


def quality(verdict: Verdict) -> str:
    """The mean, or a dash where nothing was rated."""
    return f"{verdict.mean:.2f}" if verdict.count else UNRATED


def interval(verdict: Verdict) -> str:
    """The mean's 90 % interval; "" where nothing was rated."""
    low, high = verdict.interval
    return f"{low:.2f}-{high:.2f}" if verdict.count else ""


def quality_and_interval(verdict: Verdict) -> str:
    """Both, such as ``0.87 (0.76-0.93)``."""
    return f"{quality(verdict)} ({interval(verdict)})" if verdict.count else UNRATED


def trend_of(verdict: Verdict) -> float | None:
    """By how much it goes better lately; None where nearly all that is known is recent, with little before it."""
    return verdict.trend if verdict.recent_weight < verdict.count * RECENT_SHARE else None


def trend(verdict: Verdict) -> str:
    """The trend with its sign; "" where nothing is known of it."""
    value = trend_of(verdict)
    return "" if value is None else signed(value)


def signed(value: float) -> str:
    """A difference of qualities, with its sign."""
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}"  # rather than "-0.00"


def like(pattern: Pattern, most: int = 80) -> str:
    """The beginning of the query that is nearest to the pattern's centre among those that it keeps; "" for none."""
    kept = pattern.exemplars or pattern.failures
    return excerpt(max(kept, key=_similarity).prompt, most) if kept else ""


def effect(lesson: Lesson) -> str:
    """What came of a lesson, such as ``+0.12 (-0.03 to +0.27) against what is usual, in 6 trials``."""
    if not lesson.tried:
        return "never tried"
    low, high = map(signed, lesson.effect_interval)
    trials = f"{lesson.tried} {'trial' if lesson.tried == 1 else 'trials'}"
    return f"{signed(lesson.effect)} ({low} to {high}) against what is usual, in {trials}"


def what_happened(change: PatternChange) -> str:
    """A line of the history."""
    number = f"{change.count} {'trajectory' if change.count == 1 else 'trajectories'}"
    name, other = excerpt(change.pattern), excerpt(change.other)
    return {
        "born": f"{name} born of {number}",
        "split": f"{name} split from {other}, with {number}",
        "merged": f"{name} merged into {other}, with {number}",
        "pruned": f"{name} pruned, with {number}: it had hardly any weight left",
    }[change.change]


def _similarity(exemplar: Exemplar) -> float:
    return exemplar.similarity
