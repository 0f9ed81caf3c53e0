"""Which route is best for queries of a pattern: a Beta posterior for each, and the share of draws in which it wins.

A route's quality in a pattern is that of its trajectories there, what is recent counting most, after a prior: as much
as two trajectories (:data:`PRIOR`) of what the route is worth in all other patterns, and that after as much of what
anything is worth. So a few trajectories don't make it certain.

Compared are the routes that were taken here. What was only taken elsewhere may be of no use here, however well it goes
there (a tool for refunds does not reset a password): it is asked for by name, or where nothing was tried here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sona.bank.pattern import verdicts_of
from sona.bank.verdicts import ALL, pooled
from sona.patterns import UNKNOWN, Pattern, RouteEstimate, Verdict, kind_of

PRIOR = 2.0
"""Trajectories that a route's worth elsewhere counts for."""
IGNORANCE = 1.0
"""Trajectories, half of them good, that are counted besides: what is good everywhere else may not be so here."""
DRAWS = 2000
"""Of each posterior; a probability comes out within .02."""
SEED = 20_000
TAIL = 5.0
"""Percent to either side of the interval."""


def everywhere(patterns: Sequence[Pattern]) -> dict[str, Verdict]:
    """By route, its verdict in all ``patterns``; under "" that of all their trajectories."""
    whole: dict[str, Verdict] = {}
    for pattern in patterns:
        for route, verdict in verdicts_of(pattern).items():
            whole[route] = pooled(whole[route], verdict) if route in whole else verdict
    return whole


def candidates(pattern: Pattern, whole: Mapping[str, Verdict], kind: str | None) -> tuple[str, ...]:
    """The routes of ``kind`` (None: any) that were rated in ``pattern``; where there is none, those rated anywhere."""
    here = tuple(route for route, verdict in pattern.routes.items() if verdict.count and kind in (None, kind_of(route)))
    return here or tuple(route for route in whole if route and kind in (None, kind_of(route)))


def estimates(pattern: Pattern, whole: Mapping[str, Verdict], routes: Sequence[str]) -> list[RouteEstimate]:
    """Of each of ``routes``, the highest expected quality first.

    Args:
        pattern: whose queries it is about.
        whole: :func:`everywhere`.
        routes: each once; one that nobody took yet is worth what anything is.
    """
    if not routes:
        return []
    a, b = np.asarray([_posterior(pattern, whole, route) for route in routes]).T
    draws = np.random.default_rng(SEED).beta(a, b, size=(DRAWS, len(routes)))
    best = np.bincount(draws.argmax(1), minlength=len(routes)) / DRAWS
    low, high = np.percentile(draws, (TAIL, 100 - TAIL), axis=0)
    found = [
        RouteEstimate(
            route=route,
            quality=float(a[at] / (a[at] + b[at])),
            low=float(low[at]),
            high=float(high[at]),
            count=pattern.routes[route].count if route in pattern.routes else 0,
            best=float(best[at]),
        )
        for at, route in enumerate(routes)
    ]
    return sorted(found, key=lambda one: (-one.quality, one.route))


def drawn(pattern: Pattern, whole: Mapping[str, Verdict], routes: Sequence[str], rng: np.random.Generator) -> str:
    """One of ``routes``, each as often as it may be the best (Thompson 1933, doi:10.2307/2332286)."""
    a, b = np.asarray([_posterior(pattern, whole, route) for route in routes]).T
    return routes[int(rng.beta(a, b).argmax())]


def _posterior(pattern: Pattern, whole: Mapping[str, Verdict], route: str) -> tuple[float, float]:
    """The two parameters of the Beta distribution of a route's quality in ``pattern``."""
    anything = whole.get(ALL, Verdict())
    own = pattern.routes.get(route, Verdict())
    usual = _elsewhere(whole.get(route, own), own, anything.mean if anything.count else UNKNOWN)
    right = IGNORANCE * UNKNOWN + PRIOR * usual + own.recent_weight * own.recent_mean
    wrong = IGNORANCE * UNKNOWN + PRIOR * (1 - usual) + own.recent_weight * (1 - own.recent_mean)
    return right, wrong


def _elsewhere(everywhere: Verdict, own: Verdict, prior: float) -> float:
    """The mean quality of a route in all patterns but its ``own``, drawn towards the ``prior`` where few took it."""
    count = max(everywhere.count - own.count, 0)
    total = everywhere.count * everywhere.mean - own.count * own.mean if count else 0.0
    return min(max((total + PRIOR * prior) / (count + PRIOR), 0.0), 1.0)
