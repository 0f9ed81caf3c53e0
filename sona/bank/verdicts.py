"""Verdicts from qualities, and put together: exact moments, and a mean that forgets.

It forgets by what follows, not by time: a route that breaks is seen after some fifty tries of it, be they a day or a
month, and one that nobody takes keeps its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from sona.patterns import Verdict

ALL = ""
"""The route that every trajectory takes."""
RECENT = 50.0
"""Trajectories back, at which one counts by a factor of e less for what is recent."""
MOST_ROUTES = 32
"""Of a pattern; beyond it the least taken ones are forgotten. A host that names a route for every query would fill the
bank otherwise."""
ROUNDING = 1e-9
"""Of a mean of qualities."""


def verdict_of(qualities: Sequence[float]) -> Verdict:
    """Of the ``qualities`` that one cycle brought."""
    if not qualities:
        return Verdict()
    values = np.asarray(qualities, dtype=np.float64)
    mean = min(max(float(values.mean()), 0.0), 1.0)  # the mean of equal numbers may be off by a rounding
    m2 = float(((values - mean) ** 2).sum())
    weight = RECENT * (1 - _kept(len(values)))
    return Verdict(count=len(values), mean=mean, m2=m2, recent_weight=weight, recent_mean=mean)


def followed(before: Verdict, after: Verdict) -> Verdict:
    """Of both sets of qualities, those of ``after`` being later: what was recent has moved back by their number."""
    return _both(before, after, before.recent_weight * _kept(after.count), after.recent_weight)


def pooled(a: Verdict, b: Verdict) -> Verdict:
    """Of both sets of qualities, where nobody knows which are later."""
    return _both(a, b, a.recent_weight, b.recent_weight)


def moved(verdict: Verdict, old: float, new: float) -> Verdict:
    """As if one of the qualities, ``old``, had been ``new``. What is recent moves as much as the mean does: by what
    one of them has in it, where nobody knows how recent that one is.

    With d = new - old the mean m becomes m' = m + d / n, and since m2 is the sum of squares less n m^2, it becomes
    m2 + d ((old - m) + (new - m')).
    """
    if not verdict.count:
        return verdict
    step = (new - old) / verdict.count
    mean = min(max(verdict.mean + step, 0.0), 1.0)
    m2 = verdict.m2 + (new - old) * ((old - verdict.mean) + (new - mean))
    return msgspec.structs.replace(
        verdict,
        mean=mean,
        # None of [0, 1] with this mean has a larger one (Bhatia & Davis 2000, doi:10.2307/2589180).
        m2=min(max(m2, 0.0), verdict.count * mean * (1 - mean)),
        recent_mean=min(max(verdict.recent_mean + step, 0.0), 1.0),
    )


def holds(verdict: Verdict, quality: float) -> bool:
    """Whether ``quality`` may be one of its qualities: without it, the others have a mean and a variance that
    qualities can have.
    """
    others = verdict.count - 1
    if others < 1:
        return verdict.count == 1 and abs(verdict.mean - quality) <= ROUNDING
    mean = (verdict.count * verdict.mean - quality) / others
    m2 = verdict.m2 - (quality - verdict.mean) * (quality - mean)
    slack = verdict.count * ROUNDING
    return -slack <= mean <= 1 + slack and -slack <= m2 <= others * mean * (1 - mean) + slack


def _kept(count: int) -> float:
    """What is left of a weight of 1 when so many have followed."""
    return float((1 - 1 / RECENT) ** count)


def _both(a: Verdict, b: Verdict, recent_a: float, recent_b: float) -> Verdict:
    """Moments by Chan, Golub & LeVeque 1979, eq. 2.1."""
    if not a.count or not b.count:
        return a if a.count else b
    n, delta, recent = a.count + b.count, b.mean - a.mean, recent_a + recent_b
    return Verdict(
        count=n,
        mean=min(max(a.mean + delta * b.count / n, 0.0), 1.0),
        m2=min(a.m2 + b.m2 + delta**2 * a.count * b.count / n, n / 4),
        recent_weight=min(recent, RECENT),
        recent_mean=min((a.recent_mean * recent_a + b.recent_mean * recent_b) / recent, 1.0),
    )


def faded(cycles: int, half_life: float) -> float:
    """What is left of a weight of 1 after so many ``cycles``."""
    return float(0.5 ** (cycles / half_life))


def by_route(rated: Iterable[tuple[Sequence[str], float]]) -> dict[str, Verdict]:
    """The verdict of each route of the ``rated`` trajectories of one cycle, and under :data:`ALL` of all of them; each
    is given by its routes and its quality.
    """
    qualities: dict[str, list[float]] = {}
    for routes, quality in rated:
        for route in (ALL, *dict.fromkeys(routes)):
            qualities.setdefault(route, []).append(quality)
    return most_taken({route: verdict_of(values) for route, values in qualities.items()})


def joined(verdicts: Iterable[Mapping[str, Verdict]]) -> dict[str, Verdict]:
    """By route, of all of them, pooled."""
    return most_taken(_merged(verdicts, pooled))


def continued(before: Mapping[str, Verdict], after: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """By route, of both, those of ``after`` being later."""
    return most_taken(_merged([before, after], followed))


def _merged(
    verdicts: Iterable[Mapping[str, Verdict]], both: Callable[[Verdict, Verdict], Verdict]
) -> dict[str, Verdict]:
    whole: dict[str, Verdict] = {}
    for some in verdicts:
        for route, verdict in some.items():
            whole[route] = both(whole[route], verdict) if route in whole else verdict
    return whole


def most_taken(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """:data:`ALL`, and the :data:`MOST_ROUTES` routes that were taken most."""
    if len(verdicts) <= MOST_ROUTES:
        return verdicts
    ranked = sorted(verdicts, key=lambda route: (route != ALL, -verdicts[route].count, route))
    return {route: verdicts[route] for route in ranked[: MOST_ROUTES + 1]}
