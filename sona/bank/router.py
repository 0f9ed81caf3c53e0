"""Which adapter answers a query: a linear classifier on the frozen base model's features of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.bank.ridge import fit
from sona.checks import Float32

Floats = npt.NDArray[np.floating]

RIDGE = 1e-4
"""Penalty for each row. Of real queries of six domains .74 reached their own at it, .65 at .003, .44 at .1."""

BARS = np.linspace(0.3, -1.0, 27)
"""From which the bar is chosen, the highest first: one that costs the known queries nothing keeps unknown ones away.
With a single skill the base's value mirrors the skill's, and at a bar of 0 a query unlike both is a coin toss. Where
skills overlap none has a value above 0, which is a share of one half, and a bar there sent 84 % of real queries to the
base; with the bar where leave-one-out has it, 70 % reached their skill and 1 % the base."""


@dataclass(frozen=True, eq=False)
class SkillRouter:
    """Picks a skill's adapter, or the untouched base where a query is like nothing known.

    The values are one-against-all: a query unlike every class has none far above 0, and goes to the base.
    """

    adapters: tuple[str, ...]
    """The adapter of each class but the first, which is the base. Several classes may share one."""
    mean: Float32
    """(width,)"""
    scale: Float32
    """(width,)"""
    weights: Float32
    """(width, classes)"""
    offset: Float32
    """(classes,)"""
    bar: float
    """What a skill's value must exceed, beside the base's and the other skills'."""

    def route(self, features: Float32) -> list[str | None]:
        """The adapter's name for each row of ``features`` (n, width); None for the base."""
        values = ((features - self.mean) / self.scale) @ self.weights + self.offset  # (n, classes)
        chosen = _answering(values, self.adapters)(self.bar)
        return [self.adapters[place - 1] if place else None for place in chosen]


@dataclass(frozen=True)
class RouterFit:
    """A router, and how well it does on queries that it was not fitted to."""

    router: SkillRouter
    right: dict[str, float]
    """Share of each skill's rows that reach their adapter, and of the base's (``base``) that stay, each row left out of
    the fit in turn."""


def fit_router(base: Float32, skills: Mapping[str, Float32], adapters: Mapping[str, str]) -> RouterFit:
    """The router for what is known.

    The bar is calibrated on leave-one-out values: of :data:`BARS` the highest at which fewest are misrouted, the base's
    queries counted against the mean over the skills'. (A bound on the base's share alone went too far: where the
    classes overlap, a few rows of the base that look like a skill raised the bar until half of that skill's own stayed
    away.)

    Args:
        base: float32 (rows, width), at least one: queries that the untouched base answers.
        skills: float32 (rows, width) by skill, at least one row each.
        adapters: by skill the name of its adapter.
    """
    found = fit([base, *skills.values()], RIDGE)
    names = tuple(adapters[skill] for skill in skills)
    starts = np.cumsum([0, len(base), *(len(rows) for rows in skills.values())])
    owners = np.repeat(np.arange(1 + len(skills)), np.diff(starts))  # (rows,) 0 the base
    answered = _answering(found.left_out, names)
    shares = np.stack([_right(answered(bar), owners, names) for bar in BARS])  # (bars, classes)
    wrong = (1 - shares[:, 0]) + ((1 - shares[:, 1:]).mean(1) if skills else 0.0)
    best = int(np.argmin(np.round(wrong, 9)))
    router = SkillRouter(names, found.mean, found.scale, found.weights, found.offset, float(BARS[best]))
    return RouterFit(router, dict(zip(["base", *skills], shares[best].tolist(), strict=True)))


def _answering(values: Floats, names: Sequence[str]) -> Callable[[float], npt.NDArray[np.intp]]:
    """Given a bar, which class answers each row of ``values`` (n, classes)."""
    if not names:
        return lambda bar: np.zeros(len(values), dtype=np.intp)
    best = 1 + values[:, 1:].argmax(1)
    value = values[np.arange(len(values)), best]
    ahead = value > values[:, 0]
    return lambda bar: np.where(ahead & (value > bar), best, 0)


def _right(answering: npt.NDArray[np.intp], owners: npt.NDArray[np.intp], names: Sequence[str]) -> Floats:
    """(classes,) share of each class' rows that the base, or its skill's adapter, answers."""
    by_class = ["", *names]
    same = np.asarray([[one == other for other in by_class] for one in by_class])
    return np.asarray([same[owner, answering[owners == owner]].mean() for owner in range(len(by_class))])
