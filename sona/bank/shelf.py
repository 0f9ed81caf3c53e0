"""What is in a bank: patterns with their cells, rows that belong to none so far, and the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sona.bank.cell import Cell, groups_of
from sona.bank.pattern import sum_of, verdicts_of
from sona.bank.sample import Sample
from sona.checks import check_count, check_kind, tuple_of
from sona.config import BankConfig
from sona.errors import InvalidInputError
from sona.patterns import Exemplar, Lesson, Pattern, PatternChange
from sona.types import Record

MOST_CHANGES = 2000
"""Lines of history that are kept."""


class Body(Record, kw_only=True):
    """What a pattern is made of."""

    cells: tuple[Cell, ...]
    tested: int
    """Its trajectories when it was last looked at whether it should be two."""

    def __post_init__(self) -> None:
        cells = tuple_of(self.cells, Cell, "cells")
        if not cells or len({len(cell.total) for cell in cells}) != 1:
            raise InvalidInputError("body: cells of different widths, or none")
        check_count(self.tested, "tested")

    @classmethod
    def of(cls, pattern: Pattern) -> Body:
        """Of a pattern of which nothing finer is known: one cell."""
        cell = Cell(
            count=max(pattern.count, 1),
            total=sum_of(pattern).astype("<f4").tobytes(),
            verdicts=verdicts_of(pattern),
            exemplars=(*pattern.exemplars, *pattern.failures),
        )
        return cls(cells=(cell,), tested=pattern.count)


class Stray(Record, kw_only=True):
    """What lay far from every pattern: it may be the first of its kind."""

    cell: Cell
    cycle: int
    """That brought it."""

    def __post_init__(self) -> None:
        check_kind(self.cell, Cell, "cell")
        check_count(self.cycle, "cycle")


class Asked(Record, kw_only=True):
    """What is remembered of the lessons of a pattern, beside those that it has."""

    count: int = 0
    """Its trajectories when lessons were last asked of them; 0: never."""
    dropped: tuple[Lesson, ...] = ()
    """The newest of those that did not help."""

    def __post_init__(self) -> None:
        check_count(self.count, "asked count")
        tuple_of(self.dropped, Lesson, "dropped lessons")


@dataclass(frozen=True)
class Shelf:
    """All of it. Immutable."""

    patterns: Mapping[str, Pattern] = field(default_factory=dict)
    """By id, in the order of their birth."""
    bodies: Mapping[str, Body] = field(default_factory=dict)
    """By the same ids."""
    strays: tuple[Stray, ...] = ()
    forgotten: int = 0
    """Trajectories of patterns that were pruned, and strays of long ago."""
    changes: tuple[PatternChange, ...] = ()
    """The newest :data:`MOST_CHANGES`, oldest first."""
    cycle: int = 0
    """The last one that it learned from."""
    half_life: float = BankConfig().half_life
    """By which that cycle let things fade."""
    sample: Sample = Sample()  # noqa: RUF009 - frozen
    """Of all rows."""
    asked: Mapping[str, Asked] = field(default_factory=dict)
    """By pattern id; without those that were never asked of."""

    def body(self, name: str) -> Body:
        """What the pattern ``name`` is made of."""
        found = self.bodies.get(name)
        return Body.of(self.patterns[name]) if found is None else found

    @property
    def learned(self) -> int:
        """Trajectories that it has seen: those of patterns, strays and what is forgotten."""
        held = sum(pattern.count for pattern in self.patterns.values())
        return held + sum(stray.cell.count for stray in self.strays) + self.forgotten

    def strays_as_groups(self) -> tuple[list[int], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """Counts and sums of the strays."""
        groups = groups_of([stray.cell for stray in self.strays])
        return [stray.cell.count for stray in self.strays], groups.sums.astype(np.float32)

    def exemplars(self) -> int:
        """How many different trajectories are exemplars."""
        return len({one.trajectory_id for one in self.all_exemplars()})

    def all_exemplars(self) -> list[Exemplar]:
        """Those that are shown of patterns, and those that lie with cells, which are mostly the same."""
        shown = [one for pattern in self.patterns.values() for one in (*pattern.exemplars, *pattern.failures)]
        cells = [cell for body in self.bodies.values() for cell in body.cells]
        return [*shown, *(one for cell in (*cells, *(s.cell for s in self.strays)) for one in cell.exemplars)]
