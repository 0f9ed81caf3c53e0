"""Verdicts from qualities, and put together: exact moments, and a mean that forgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sona.patterns import Verdict

ALL = ""
"""The route that every trajectory takes."""
MOST_ROUTES = 32
"""Of a pattern; beyond it the least taken ones are forgotten. A host that names a route for every query would fill the
bank otherwise."""


def verdict_of(qualities: Sequence[float], cycle: int) -> Verdict:
    """Of the ``qualities`` that one cycle brought."""
    if not qualities:
        return Verdict()
    values = np.asarray(qualities, dtype=np.float64)
    mean = min(max(float(values.mean()), 0.0), 1.0)  # the mean of equal numbers may be off by a rounding
    m2 = float(((values - mean) ** 2).sum())
    return Verdict(count=len(values), mean=mean, m2=m2, recent_weight=float(len(values)), recent_mean=mean, cycle=cycle)


def together(a: Verdict, b: Verdict, half_life: float) -> Verdict:
    """Of both sets of qualities (Chan, Golub & LeVeque 1979, eq. 2.1); what is recent, as of the later cycle."""
    if not a.count or not b.count:
        return a if a.count else b
    n, delta, cycle = a.count + b.count, b.mean - a.mean, max(a.cycle, b.cycle)
    own, other = (one.recent_weight * faded(cycle - one.cycle, half_life) for one in (a, b))
    recent = own + other
    return Verdict(
        count=n,
        mean=min(max(a.mean + delta * b.count / n, 0.0), 1.0),
        m2=min(a.m2 + b.m2 + delta**2 * a.count * b.count / n, n / 4),
        recent_weight=recent,
        recent_mean=min((a.recent_mean * own + b.recent_mean * other) / recent, 1.0) if recent else a.recent_mean,
        cycle=cycle,
    )


def faded(cycles: int, half_life: float) -> float:
    """What is left of a weight of 1 after so many ``cycles``."""
    return float(0.5 ** (cycles / half_life))


def by_route(rated: Iterable[tuple[Sequence[str], float]], cycle: int) -> dict[str, Verdict]:
    """The verdict of each route of the ``rated`` trajectories of one cycle, and under :data:`ALL` of all of them; each
    is given by its routes and its quality.
    """
    qualities: dict[str, list[float]] = {}
    for routes, quality in rated:
        for route in (ALL, *dict.fromkeys(routes)):
            qualities.setdefault(route, []).append(quality)
    return most_taken({route: verdict_of(values, cycle) for route, values in qualities.items()})


def joined(verdicts: Iterable[Mapping[str, Verdict]], half_life: float) -> dict[str, Verdict]:
    """By route, of all of them."""
    whole: dict[str, Verdict] = {}
    for some in verdicts:
        for route, verdict in some.items():
            whole[route] = together(whole[route], verdict, half_life) if route in whole else verdict
    return most_taken(whole)


def most_taken(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """:data:`ALL`, and the :data:`MOST_ROUTES` routes that were taken most."""
    if len(verdicts) <= MOST_ROUTES:
        return verdicts
    ranked = sorted(verdicts, key=lambda route: (route != ALL, -verdicts[route].count, route))
    return {route: verdicts[route] for route in ranked[: MOST_ROUTES + 1]}
