"""Patterns to look at, in as few words as a test can bear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sona.bank.verdicts import verdict_of
from sona.patterns import Exemplar, Lesson, Pattern, Verdict

HOSTILE = "<script>alert('\"&')</script>\x1b]0;owned\x07 \u202e$x_{2"
"""Markup, an escape sequence that names the terminal's window, a mark that turns the line around, and a formula."""


def rated(count: int, mean: float) -> Verdict:
    """Of so many qualities that are all ``mean``."""
    return verdict_of([mean] * count)


def pattern(
    name: str = "p1-0",
    *,
    at: int | None = 0,
    count: int = 20,
    verdict: Verdict | None = None,
    routes: Mapping[str, Verdict] | None = None,
    prompt: str = "where is my order",
    lessons: tuple[Lesson, ...] = (),
    family: str = "",
) -> Pattern:
    """``at`` seeds its centroid."""
    exemplar = Exemplar(trajectory_id=f"t-{name}", quality=1.0, similarity=0.9, prompt=prompt, response="on its way")
    return Pattern(
        id=name,
        centroid=np.random.default_rng(at).normal(size=8).astype("<f4").tobytes(),
        count=count,
        spread=0.8,
        verdict=rated(count // 2, 0.75) if verdict is None else verdict,
        routes=dict(routes or {}),
        exemplars=(exemplar,) if prompt else (),
        failures=(Exemplar(trajectory_id="bad", quality=0.0, similarity=0.5, prompt="and now", response=""),),
        lessons=lessons,
        family=family,
        weight=float(count),
        born_cycle=1,
        touched_cycle=2,
    )


def lesson() -> Lesson:
    return Lesson(
        title="Ask for the number",
        when="an order is asked about",
        advice="do",
        text="Ask for the order's number.\nThen look it up.",
        trajectory_ids=("t1", "t2"),
        helpful=3,
        harmful=1,
        gain=0.8,
        noise=1.0,
        born_cycle=2,
    )
