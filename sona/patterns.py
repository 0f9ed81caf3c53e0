"""The bank's nouns: patterns, what is known of each route, exemplars, lessons, and what a query recalls of them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec
import numpy as np

from sona.checks import (
    Float32,
    check_count,
    check_id,
    check_kind,
    check_mapping,
    check_number,
    check_one_of,
    check_quality,
    check_text,
    pack_vector,
    tuple_of,
)
from sona.errors import InvalidInputError
from sona.types import COSINES, Record, new_id

_set = msgspec.structs.force_setattr

Advice = Literal["do", "avoid"]
ADVICE: tuple[Advice, ...] = get_args(Advice)
Change = Literal["born", "split", "merged", "pruned"]
CHANGES: tuple[Change, ...] = get_args(Change)

CONFIDENT = 1.6448536269514722
"""Standard deviations to both sides of the mean that hold 90 % of a normal distribution."""
UNKNOWN = 0.5
"""Where no quality was given."""


def kind_of(route: str) -> str:
    """What a route is one of, such as ``tool`` of ``tool:search``; "" where it does not say."""
    kind, colon, _ = route.partition(":")
    return kind if colon else ""


class Verdict(Record, kw_only=True):
    """How well it went: the qualities of a pattern's trajectories, or of those that took one route."""

    count: int = 0
    """How many have a quality."""
    mean: float = UNKNOWN
    """Of all of them; 0.5 where there is none."""
    m2: float = 0.0
    """Sum of squared differences from the mean (Welford 1962), for the variance and for merging."""
    recent_weight: float = 0.0
    """How many, where each counts by a fiftieth less than the one after it: 50 at most."""
    recent_mean: float = UNKNOWN
    """Of all of them by that weight: how well it goes lately."""

    def __post_init__(self) -> None:
        check_count(self.count, "verdict count")
        _set(self, "mean", check_quality(self.mean, "verdict mean"))
        # No sum of squared differences in [0, 1] is larger than a quarter of their number (Popoviciu 1935).
        _set(self, "m2", check_number(self.m2, "verdict m2", 0.0, self.count / 4 + 1e-6))
        _set(self, "recent_weight", check_number(self.recent_weight, "recent_weight", 0.0, self.count * (1 + 1e-6)))
        _set(self, "recent_mean", check_quality(self.recent_mean, "recent_mean"))

    @property
    def std(self) -> float:
        """Standard deviation of the quality (n - 1 in the denominator); 0 below two values."""
        return math.sqrt(max(self.m2, 0.0) / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """In which the mean of many more lies, by 90 %: Wilson's score interval (1927, doi:10.2307/2276774).

        It is made for right and wrong. Graded qualities vary less than those of the same mean, so theirs is at most
        as wide. (0, 1) where there is none.
        """
        if not self.count:
            return 0.0, 1.0
        n, z2 = self.count, CONFIDENT**2
        middle = (self.mean + z2 / (2 * n)) / (1 + z2 / n)
        half = CONFIDENT / (1 + z2 / n) * math.sqrt(self.mean * (1 - self.mean) / n + z2 / (4 * n * n))
        return max(middle - half, 0.0), min(middle + half, 1.0)

    @property
    def trend(self) -> float:
        """By how much it goes better lately than on the whole, in quality: from -1 to 1; 0 where nothing is known."""
        return self.recent_mean - self.mean if self.count else 0.0


class Exemplar(Record, kw_only=True):
    """A trajectory that stands for its pattern."""

    trajectory_id: str
    quality: float
    similarity: float
    """Cosine to the pattern's centroid, as it was in the cycle that learned it."""
    prompt: str
    """The beginning of the query."""
    response: str
    """The beginning of the answer."""

    def __post_init__(self) -> None:
        check_id(self.trajectory_id, "trajectory_id")
        _set(self, "quality", check_quality(self.quality))
        _set(self, "similarity", check_number(self.similarity, "similarity", *COSINES))
        check_text(self.prompt, "exemplar prompt", empty=True)
        check_text(self.response, "exemplar response", empty=True)


class Lesson(Record, kw_only=True):
    """What a pattern's best and worst trajectories teach, in words."""

    title: str
    when: str
    """The queries that it is for."""
    advice: Advice
    """Whether to do what ``text`` says, or to avoid it."""
    text: str
    trajectory_ids: tuple[str, ...]
    """Those that it rests on."""
    id: str = msgspec.field(default_factory=new_id)
    helpful: int = 0
    """Trials, which are rated trajectories that had recalled it, that went at least as well as is usual for their
    pattern."""
    harmful: int = 0
    """... and those that went worse."""
    gain: float = 0.0
    """By how much the trials went better than usual, in quality, all together; below 0: worse."""
    noise: float = 0.0
    """The variance that ``gain`` has where the lesson changes nothing, at most (:mod:`sona.bank.trials`)."""
    born_cycle: int = 0
    shown: tuple[str, ...] = ()
    """All trajectories whose texts its distiller may have seen, whatever it says that it rests on: with the erasure of
    any of them it goes."""
    trials: bytes = b""
    """Which trajectories were tried last, and what each of them gained (:mod:`sona.bank.trials`)."""

    def __post_init__(self) -> None:
        check_id(self.id, "lesson id")
        check_one_of(self.advice, ADVICE, "lesson advice")
        for name in ("title", "when", "text"):
            check_text(getattr(self, name), f"lesson {name}")
        for name in ("trajectory_ids", "shown"):
            _set(self, name, tuple_of(getattr(self, name), str, f"lesson {name}"))
            for trajectory_id in getattr(self, name):
                check_id(trajectory_id, f"lesson {name}")
        for name in ("helpful", "harmful", "born_cycle"):
            check_count(getattr(self, name), f"lesson {name}")
        most = self.tried * (1 + 1e-6)  # a quality is no farther than 1 from another
        _set(self, "gain", check_number(self.gain, "lesson gain", -most, most))
        _set(self, "noise", check_number(self.noise, "lesson noise", 0.0))
        check_kind(self.trials, bytes, "lesson trials")
        if len(self.trials) % 8:
            raise InvalidInputError(f"lesson trials: {len(self.trials)} bytes; 8 for each trial are allowed")

    @property
    def tried(self) -> int:
        """Its trials: how many rated trajectories had recalled it."""
        return self.helpful + self.harmful

    @property
    def effect(self) -> float:
        """By how much its trials went better than usual, in quality, on the average: from -1 to 1; 0 without any."""
        return self.gain / self.tried if self.tried else 0.0

    @property
    def effect_interval(self) -> tuple[float, float]:
        """In which the effect of many more trials lies, by 90 %; (-1, 1) without any."""
        if not self.tried:
            return -1.0, 1.0
        half = CONFIDENT * math.sqrt(self.noise)
        return max((self.gain - half) / self.tried, -1.0), min((self.gain + half) / self.tried, 1.0)

    @property
    def worth(self) -> float:
        """By which lessons are ranked: the lower end of ``effect_interval``; of one that was never tried 0."""
        return self.effect_interval[0] if self.tried else 0.0


class Pattern(Record, kw_only=True):
    """A cluster of trajectories. Its id stays the same from cycle to cycle."""

    id: str
    centroid: bytes
    """float32 bytes, unit norm, in the bank's centred space."""
    count: int
    """Trajectories in it so far."""
    spread: float
    """Mean cosine of its members to the centroid."""
    verdict: Verdict = Verdict()
    """Of all of them. Where routes differ it says little: read ``routes``."""
    routes: dict[str, Verdict] = msgspec.field(default_factory=dict)
    """Of those that took each route, such as ``tool:search`` or ``model:small``; the most taken ones."""
    exemplars: tuple[Exemplar, ...] = ()
    """The best rated ones."""
    failures: tuple[Exemplar, ...] = ()
    """The worst rated ones, of a quality below 0.5."""
    lessons: tuple[Lesson, ...] = ()
    family: str = ""
    """The name of the family of patterns that it belongs to; "" before families were made."""
    weight: float = 0.0
    """How many trajectories, where one of ``half_life`` cycles ago counts half, as of ``touched_cycle``."""
    born_cycle: int = 0
    touched_cycle: int = 0

    def __post_init__(self) -> None:
        check_id(self.id, "pattern id")
        _set(self, "centroid", pack_vector(self.centroid, "centroid"))
        for name in ("count", "born_cycle", "touched_cycle"):
            check_count(getattr(self, name), name)
        _set(self, "spread", check_number(self.spread, "spread", *COSINES))
        _set(self, "weight", check_number(self.weight, "weight", 0.0, self.count * (1 + 1e-6)))
        check_kind(self.verdict, Verdict, "verdict")
        check_mapping(self.routes, "routes")
        for route, verdict in self.routes.items():
            check_id(route, "route")
            check_kind(verdict, Verdict, f"routes[{route!r}]")
        for name, kind in (("exemplars", Exemplar), ("failures", Exemplar), ("lessons", Lesson)):
            _set(self, name, tuple_of(getattr(self, name), kind, name))
        check_text(self.family, "family", empty=True)
        if self.verdict.count > self.count:
            raise InvalidInputError(f"verdict: of {self.verdict.count}; at most count, {self.count}, is allowed")
        if self.touched_cycle < self.born_cycle:
            raise InvalidInputError(
                f"touched_cycle: {self.touched_cycle}; born_cycle, {self.born_cycle}, or a later one is allowed"
            )

    def vector(self) -> Float32:
        """The centroid, float32 (width,), a read-only view."""
        return np.frombuffer(self.centroid, dtype="<f4")


class Recall(Record, kw_only=True):
    """One pattern that is near to a query."""

    pattern: Pattern
    similarity: float
    """Cosine of the query to the centroid, in the bank's centred space."""
    text: str = ""
    """What is known of the pattern, for a prompt: lessons, routes, exemplars (:mod:`sona.bank.prompting`). An engine's
    ``recall`` writes it; the bank's own, which takes microseconds, leaves it empty."""
    tokens: int | None = None
    """How long the text is, in tokens of the served model; None where there is no model, or no text."""

    def __post_init__(self) -> None:
        check_kind(self.pattern, Pattern, "pattern")
        _set(self, "similarity", check_number(self.similarity, "similarity", *COSINES))
        check_text(self.text, "recall text", empty=True)
        if self.tokens is not None:
            check_count(self.tokens, "recall tokens")

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the pattern and its lessons: what belongs into :attr:`sona.Trajectory.recalled`."""
        return (self.pattern.id, *(lesson.id for lesson in self.pattern.lessons))


class PatternChange(Record, kw_only=True):
    """One line of the bank's history."""

    cycle: int
    change: Change
    """``born`` from new trajectories; ``split``, so that a part became a pattern of its own; ``merged`` into another
    one; ``pruned``, because hardly anything had come to it for long."""
    pattern: str
    """Whom it happened to."""
    other: str = ""
    """The pattern that it was split from, or merged into."""
    count: int = 0
    """Trajectories in ``pattern`` then."""

    def __post_init__(self) -> None:
        check_count(self.cycle, "cycle")
        check_one_of(self.change, CHANGES, "change")
        check_id(self.pattern, "pattern id")
        if self.other:
            check_id(self.other, "pattern id")
        check_count(self.count, "count")


class RouteEstimate(Record, kw_only=True):
    """What one route is worth for queries of a pattern."""

    route: str
    quality: float
    """Expected: the pattern's own evidence, what is recent counting most, and as much as two trajectories of what the
    route is worth elsewhere."""
    low: float
    high: float
    """... which lies in between by 90 %."""
    count: int
    """Rated trajectories of this pattern that took it: the evidence behind it. 0: known from elsewhere only."""
    best: float
    """Probability that it is the best of those that were compared."""

    def __post_init__(self) -> None:
        check_id(self.route, "route")
        for name in ("quality", "low", "high", "best"):
            _set(self, name, check_quality(getattr(self, name), name))
        check_count(self.count, "count")


class BestRoute(Record, kw_only=True):
    """Which route to take for a query."""

    chosen: RouteEstimate
    """The one of the highest expected quality; where exploration was asked for, the one that was drawn."""
    others: tuple[RouteEstimate, ...]
    """The best first."""
    pattern: str
    """The pattern that the query is like."""
    similarity: float
    """Cosine of the query to its centroid."""

    def __post_init__(self) -> None:
        check_kind(self.chosen, RouteEstimate, "chosen")
        _set(self, "others", tuple_of(self.others, RouteEstimate, "others"))
        check_id(self.pattern, "pattern id")
        _set(self, "similarity", check_number(self.similarity, "similarity", *COSINES))

    @property
    def route(self) -> str:
        """The name of the chosen one."""
        return self.chosen.route
