"""How a pattern is founded and how it grows: counts, quality statistics, centroid, exemplars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank.clustering import unit_rows
from sona.checks import Float32
from sona.types import Exemplar, Pattern


@dataclass(frozen=True)
class Member:
    """One trajectory as the bank sees it."""

    trajectory_id: str
    embedding: Float32
    """(width,)"""
    quality: float | None
    prompt: str
    response: str


class Moments(NamedTuple):
    """Count, mean and sum of squared differences from the mean."""

    n: int
    mean: float
    m2: float


EMPTY = Moments(0, 0.5, 0.0)
NO_DIRECTION = 1e-6  # a mean of unit rows that is no longer than this is rounding
EXCERPT = 200  # characters of a prompt or response that an exemplar keeps


def moments(values: Sequence[float]) -> Moments:
    """Of ``values``; a mean of 0.5 where there are none."""
    if not values:
        return EMPTY
    array = np.asarray(values, dtype=np.float64)
    return Moments(len(values), float(array.mean()), float(((array - array.mean()) ** 2).sum()))


def merged(a: Moments, b: Moments) -> Moments:
    """Moments of both sets together (Chan, Golub & LeVeque 1979, eq. 2.1)."""
    if not a.n or not b.n:
        return a if a.n else b
    n, delta = a.n + b.n, b.mean - a.mean
    return Moments(n, a.mean + delta * b.n / n, a.m2 + b.m2 + delta**2 * a.n * b.n / n)


def found(name: str, rows: Float32, group: Sequence[Member], keep: int, cycle: int) -> Pattern:
    """A new pattern from a cluster: its ``rows``, float32 (n, width) of norm 1, and the members that they stand for."""
    centroid = _direction(rows.sum(0, dtype=np.float64), len(rows), rows[0])
    similarity = rows @ centroid
    quality = moments([member.quality for member in group if member.quality is not None])
    return Pattern(
        id=name,
        centroid=centroid.astype("<f4").tobytes(),
        count=len(group),
        quality_count=quality.n,
        quality_mean=quality.mean,
        quality_m2=quality.m2,
        spread=float(similarity.mean()),
        exemplars=_best(_exemplars(group, similarity), keep),
        born_cycle=cycle,
        touched_cycle=cycle,
    )


def join(known: Pattern, new: Pattern, keep: int) -> Pattern:
    """``known`` with the members of ``new`` in it, under its own id.

    Centroid and spread are those of all members together: of unit rows, the mean cosine to their mean direction is the
    length of their mean, so that count, spread and centroid are the sum of the rows.
    """
    total = known.count + new.count
    sums = _sum(known) + _sum(new)
    centroid = _direction(sums, total, known.vector())
    quality = merged(
        Moments(known.quality_count, known.quality_mean, known.quality_m2),
        Moments(new.quality_count, new.quality_mean, new.quality_m2),
    )
    return Pattern(
        id=known.id,
        centroid=centroid.astype("<f4").tobytes(),
        count=total,
        quality_count=quality.n,
        quality_mean=quality.mean,
        quality_m2=quality.m2,
        spread=float(sums @ centroid) / total,
        exemplars=_best((*known.exemplars, *new.exemplars), keep),
        born_cycle=known.born_cycle,
        touched_cycle=new.touched_cycle,
    )


def _sum(pattern: Pattern) -> npt.NDArray[np.float64]:
    return pattern.count * pattern.spread * pattern.vector().astype(np.float64)


def _direction(sums: npt.NDArray[np.float64], count: int, otherwise: Float32) -> Float32:
    """Of the sum of ``count`` unit rows; ``otherwise`` where they cancel out."""
    return unit_rows(sums[None].astype(np.float32))[0] if np.linalg.norm(sums) > NO_DIRECTION * count else otherwise


def _exemplars(group: Sequence[Member], similarity: Float32) -> list[Exemplar]:
    return [
        Exemplar(
            trajectory_id=member.trajectory_id,
            quality=member.quality,
            similarity=float(value),
            prompt=member.prompt[:EXCERPT],
            response=member.response[:EXCERPT],
        )
        for member, value in zip(group, similarity, strict=True)
        if member.quality is not None
    ]


def _best(exemplars: Sequence[Exemplar], keep: int) -> tuple[Exemplar, ...]:
    """The ``keep`` best rated, nearest to the centre first among equals, no prompt twice."""
    ranked = sorted(exemplars, key=lambda exemplar: (-exemplar.quality, -exemplar.similarity))
    unique = {exemplar.prompt or exemplar.trajectory_id: exemplar for exemplar in reversed(ranked)}
    return tuple(sorted(unique.values(), key=ranked.index)[:keep])
