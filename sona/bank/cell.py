"""Cells: the small tight parts of a pattern, so that it can be cut, joined and counted without its members.

They are the clustering features of BIRCH (Zhang, Ramakrishnan & Livny 1996, doi:10.1145/233269.233324): the count and
the sum of the rows, which add. What else is known of the members, such as how well it went, lies with them, so a
pattern that is cut in two has two exact halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from sona.bank.verdicts import by_route, joined
from sona.bank.ward import Groups
from sona.checks import Float32, check_count, check_kind, check_text, tuple_of
from sona.errors import InvalidInputError
from sona.patterns import Exemplar, Verdict
from sona.types import Record

BEST_EACH, WORST_EACH = 2, 1
"""Exemplars that a cell keeps: from all its cells a pattern has some of each corner."""
FAILED = 0.5
"""A quality below it is a failure."""

_set = msgspec.structs.force_setattr


class Cell(Record, kw_only=True):
    """A part of a pattern."""

    count: int
    """Trajectories in it."""
    total: bytes
    """float32 (width,): the sum of their unit rows."""
    verdicts: dict[str, Verdict] = msgspec.field(default_factory=dict)
    """By route, and under "" of all."""
    exemplars: tuple[Exemplar, ...] = ()
    """The best rated, and the worst that failed."""

    def __post_init__(self) -> None:
        check_count(self.count, "cell count")
        if not self.count or not self.total or len(self.total) % 4 or not np.isfinite(self.vector()).all():
            raise InvalidInputError(f"cell of {self.count}: its sum is no vector of finite numbers")
        for route, verdict in self.verdicts.items():
            check_text(route, "cell route", empty=True)
            check_kind(verdict, Verdict, f"verdicts[{route!r}]")
        _set(self, "exemplars", tuple_of(self.exemplars, Exemplar, "cell exemplars"))

    def vector(self) -> Float32:
        """The sum of its rows, float32 (width,), a read-only view."""
        return np.frombuffer(self.total, dtype="<f4")


class Rated(msgspec.Struct, frozen=True):
    """A trajectory as a cell takes it."""

    quality: float | None
    routes: tuple[str, ...]
    exemplar: Exemplar | None
    """None where it has no quality."""


def cell_of(total: Float32, members: Sequence[Rated]) -> Cell:
    """Of the ``members`` of one cycle, whose unit rows sum to ``total`` (width,)."""
    rated = [(member.routes, member.quality) for member in members if member.quality is not None]
    exemplars = [member.exemplar for member in members if member.exemplar is not None]
    return Cell(
        count=len(members),
        total=total.astype("<f4").tobytes(),
        verdicts=by_route(rated),
        exemplars=outstanding(exemplars, BEST_EACH, WORST_EACH),
    )


def as_one(cells: Sequence[Cell]) -> Cell:
    """All of them as one."""
    if len(cells) == 1:
        return cells[0]
    return Cell(
        count=sum(cell.count for cell in cells),
        total=groups_of(cells).sums.sum(0, dtype=np.float64).astype("<f4").tobytes(),
        verdicts=joined(cell.verdicts for cell in cells),
        exemplars=outstanding([one for cell in cells for one in cell.exemplars], BEST_EACH, WORST_EACH),
    )


def groups_of(cells: Sequence[Cell]) -> Groups:
    """What is needed to judge what belongs together."""
    width = len(cells[0].total) // 4
    sums = np.frombuffer(b"".join(cell.total for cell in cells), dtype="<f4").reshape(len(cells), width)
    return Groups(np.asarray([cell.count for cell in cells], dtype=np.float64), sums)


def outstanding(exemplars: Sequence[Exemplar], best: int, worst: int) -> tuple[Exemplar, ...]:
    """The ``best`` best rated, nearest to the centre first among equals, no prompt twice; then, of the others, the
    ``worst`` worst rated that failed, the worst first.
    """
    ranked = sorted(exemplars, key=lambda one: (-one.quality, -one.similarity))
    unique = {one.prompt or one.trajectory_id: one for one in reversed(ranked)}
    left = sorted(unique.values(), key=lambda one: (-one.quality, -one.similarity))
    failed = [one for one in reversed(left[best:]) if one.quality < FAILED]
    return (*left[:best], *failed[:worst])
