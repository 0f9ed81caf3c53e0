"""A pattern from its cells: centroid, spread, verdicts, exemplars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.bank.cell import FAILED, Cell, groups_of, outstanding
from sona.bank.vectors import unit_rows
from sona.bank.verdicts import ALL, faded
from sona.checks import Float32
from sona.config import BankConfig
from sona.patterns import Exemplar, Lesson, Pattern, Verdict

NO_DIRECTION = 1e-6
"""A mean of unit rows that is no longer than this is rounding."""
MOST_FAILURES = 2


@dataclass(frozen=True)
class Member:
    """One trajectory as the bank sees it."""

    trajectory_id: str
    embedding: Float32
    """(width,)"""
    quality: float | None
    prompt: str
    response: str
    routes: tuple[str, ...] = ()
    """Which ways it took, such as ``tool:search`` or ``model:small``."""
    recalled: tuple[str, ...] = ()
    """Ids of the patterns and lessons that were recalled for it."""


def pattern_of(
    name: str,
    cells: Sequence[Cell],
    verdicts: Mapping[str, Verdict],
    settings: BankConfig,
    cycle: int,
    *,
    born: int,
    weight: float,
    lessons: tuple[Lesson, ...] = (),
    family: str = "",
) -> Pattern:
    """The pattern ``name`` of these ``cells``, at least one, touched in ``cycle``; with ``verdicts`` by route."""
    groups = groups_of(cells)
    count = int(groups.counts.sum())
    total = groups.sums.sum(0, dtype=np.float64)
    centroid = _direction(total, count, groups.sums[0])
    exemplars, failures = shown_of(cells, settings.exemplars)
    return Pattern(
        id=name,
        centroid=centroid.astype("<f4").tobytes(),
        count=count,
        spread=float(np.clip(total @ centroid / count, -1.0, 1.0)),
        verdict=verdicts.get(ALL, Verdict()),
        routes={route: verdict for route, verdict in verdicts.items() if route != ALL},
        exemplars=exemplars,
        failures=failures,
        lessons=lessons,
        family=family,
        weight=min(weight, count),
        born_cycle=born,
        touched_cycle=cycle,
    )


def shown_of(cells: Sequence[Cell], most: int) -> tuple[tuple[Exemplar, ...], tuple[Exemplar, ...]]:
    """Of a pattern of these ``cells``, the ``most`` exemplars that it shows, and those that failed."""
    chosen = outstanding([one for cell in cells for one in cell.exemplars], most, MOST_FAILURES)
    return chosen[:most], tuple(one for one in reversed(chosen) if one.quality < FAILED)[:MOST_FAILURES]


def weight_at(pattern: Pattern, cycle: int, half_life: float) -> float:
    """Its weight as of a later ``cycle``."""
    return pattern.weight * faded(cycle - pattern.touched_cycle, half_life)


def verdicts_of(pattern: Pattern) -> dict[str, Verdict]:
    """By route, and under :data:`sona.bank.verdicts.ALL` of all its trajectories."""
    return {ALL: pattern.verdict, **pattern.routes}


def sum_of(pattern: Pattern) -> npt.NDArray[np.float64]:
    """(width,) the sum of its members' unit rows: its direction, and as long as the sum of their cosines to it."""
    return pattern.count * pattern.spread * pattern.vector().astype(np.float64)


def _direction(total: npt.NDArray[np.float64], count: int, otherwise: npt.NDArray[np.floating]) -> Float32:
    """Of the sum of ``count`` unit rows; where they cancel out that of the sum ``otherwise``."""
    cancelled = np.linalg.norm(total) <= NO_DIRECTION * count
    chosen = unit_rows((otherwise if cancelled else total)[None].astype(np.float32))[0]
    return chosen if chosen.any() else _first_axis(len(chosen))


def _first_axis(width: int) -> Float32:
    axis = np.zeros(width, dtype=np.float32)
    axis[0] = 1.0
    return axis
