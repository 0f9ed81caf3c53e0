"""A bank whose trajectories are rated anew: what it knows of each is changed, and nothing is counted again.

Where a trajectory lies is told by its exemplar, if it is one. Else it lies in the pattern to which its cycle brought
it, or in what that has become since by the bank's history; of several parts in the nearest one. Of the pattern's cells
it is taken for one of the nearest that can hold such a quality. What lies in no pattern that there is, because that was
pruned, is not known any more, and may be learned anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.cell import BEST_EACH, WORST_EACH, Cell, groups_of, outstanding
from sona.bank.pattern import Member, shown_of, verdicts_of
from sona.bank.placing import Search, exemplar_of
from sona.bank.shelf import Body, Shelf, Stray
from sona.bank.vectors import unit_rows
from sona.bank.verdicts import ALL, holds, moved
from sona.checks import Float32
from sona.patterns import Exemplar, Pattern, PatternChange, Verdict


@dataclass(frozen=True)
class Revision:
    """A trajectory that was learned, and was rated anew."""

    member: Member
    """With its quality of now."""
    quality: float
    """That it was learned with."""
    pattern: str
    """To which it was brought then; "" where it was far from all."""
    cycle: int
    """That learned it."""


class Revised(NamedTuple):
    """What became of the revisions."""

    shelf: Shelf
    pattern_ids: list[str | None]
    """For each, the pattern that it lies in; "" where it is a stray; None where it is not known any more."""


class _Place(NamedTuple):
    """A cell of a pattern, or, where that is "", a stray."""

    pattern: str
    at: int


def revised(shelf: Shelf, x: Float32, revisions: Sequence[Revision], search: Search, exemplars: int) -> Revised:
    """``shelf`` with the ``revisions``, of which it knows none, one or all.

    Args:
        shelf: stays as it is.
        x: unit rows in the centred space (revisions, width).
        revisions: each with a rated member.
        search: the patterns of ``shelf``.
        exemplars: that a pattern shows.

    What is not known any more of a pruned pattern is taken out of what is forgotten: it will be counted where it is
    learned anew.
    """
    work = _Work(shelf, {one.member.trajectory_id for one in revisions}, search)
    places = [work.revise(row, one) for row, one in zip(x, revisions, strict=True)]
    pruned = sum(place is None and one.pattern != "" for place, one in zip(places, revisions, strict=True))
    after = replace(work.shelf(exemplars), forgotten=max(shelf.forgotten - pruned, 0))
    return Revised(after, [None if place is None else place.pattern for place in places])


def heirs(patterns: Collection[str], changes: Iterable[PatternChange], after_cycle: int) -> set[str]:
    """What ``patterns`` have become in later cycles than ``after_cycle``: those that they were joined with, and parts
    that were cut from them; none of what was pruned. "" stands for strays, and comes to whatever was born since.
    """
    found = set(patterns)
    for one in changes:
        if one.cycle <= after_cycle:
            continue
        source = {"merged": one.pattern, "split": one.other, "pruned": one.pattern, "born": ""}[one.change]
        if source not in found:
            continue
        if one.change in ("merged", "pruned"):
            found.discard(source)
        if one.change != "pruned":
            found.add(one.other if one.change == "merged" else one.pattern)
    return found - {""}


class _Work:
    """A shelf under work."""

    def __init__(self, shelf: Shelf, names: Collection[str], search: Search) -> None:
        self._before, self._search = shelf, search
        self._cells: dict[str, list[Cell]] = {}
        self._verdicts: dict[str, dict[str, Verdict]] = {}
        self._strays = list(shelf.strays)
        self._shown = _shown(shelf, names)

    def revise(self, row: Float32, one: Revision) -> _Place | None:
        """Where it lies, after it was revised; None where it is not known."""
        assert one.member.quality is not None
        shown = self._shown.get(one.member.trajectory_id, [])
        place = shown[0] if shown else self._place(row, one)
        if place is None:
            return None
        for other in shown[1:]:  # it was counted twice by an earlier sona
            self._put(other, _rated_anew(self._cell(other), one.member))
        self._put(place, _revised_cell(self._cell(place), row, one))
        if place.pattern:
            known = self._verdicts.setdefault(place.pattern, verdicts_of(self._before.patterns[place.pattern]))
            self._verdicts[place.pattern] = _moved(known, one)
        return place

    def _place(self, row: Float32, one: Revision) -> _Place | None:
        """By history."""
        patterns = self._before.patterns
        names = [name for name in heirs({one.pattern}, self._before.changes, one.cycle) if name in patterns]
        if not one.pattern and names:  # a stray of then has founded one of these, or was lost
            names = [name for name, _ in self._search(row[None], 1)[0] if name in names]
        places = [_Place(name, at) for name in sorted(names) for at in range(len(self._cells_of(name)))]
        if not places:
            return None
        sums = unit_rows(groups_of([self._cell(place) for place in places]).sums.astype(np.float32))
        cosines = np.einsum("nd,d->n", sums, row)
        nearest_first: list[int] = np.argsort(-cosines, kind="stable").tolist()
        ranked = [places[at] for at in nearest_first]
        able = [place for place in ranked if _may_hold(self._cell(place), one)]
        return (able or ranked)[0]

    def _cells_of(self, name: str) -> Sequence[Cell]:
        return self._cells.get(name) or self._before.body(name).cells

    def _cell(self, place: _Place) -> Cell:
        return self._cells_of(place.pattern)[place.at] if place.pattern else self._strays[place.at].cell

    def _put(self, place: _Place, cell: Cell) -> None:
        if place.pattern:
            self._cells.setdefault(place.pattern, list(self._before.body(place.pattern).cells))[place.at] = cell
        else:
            self._strays[place.at] = msgspec.structs.replace(self._strays[place.at], cell=cell)

    def shelf(self, exemplars: int) -> Shelf:
        patterns, bodies = dict(self._before.patterns), dict(self._before.bodies)
        for name, cells in self._cells.items():
            bodies[name] = Body(cells=tuple(cells), tested=self._before.body(name).tested)
            patterns[name] = _pattern(patterns[name], cells, self._verdicts.get(name), exemplars)
        strays: tuple[Stray, ...] = tuple(self._strays)
        return replace(self._before, patterns=patterns, bodies=bodies, strays=strays)


def _shown(shelf: Shelf, names: Collection[str]) -> dict[str, list[_Place]]:
    """By the id of each of these trajectories, the cells of which it is an exemplar."""
    found: dict[str, list[_Place]] = {}
    cells = [(_Place(name, at), cell) for name in shelf.patterns for at, cell in enumerate(shelf.body(name).cells)]
    for place, cell in (*cells, *((_Place("", at), stray.cell) for at, stray in enumerate(shelf.strays))):
        for one in cell.exemplars:
            if one.trajectory_id in names:
                found.setdefault(one.trajectory_id, []).append(place)
    return found


def _pattern(before: Pattern, cells: Sequence[Cell], verdicts: Mapping[str, Verdict] | None, most: int) -> Pattern:
    verdicts = verdicts_of(before) if verdicts is None else verdicts
    exemplars, failures = shown_of(cells, most)
    return msgspec.structs.replace(
        before,
        verdict=verdicts[ALL],
        routes={route: verdict for route, verdict in verdicts.items() if route != ALL},
        exemplars=exemplars,
        failures=failures,
    )


def _revised_cell(cell: Cell, row: Float32, one: Revision) -> Cell:
    """With the verdict moved, and the trajectory among the exemplars where it is outstanding now."""
    total = unit_rows(cell.vector()[None])[0]
    exemplar = exemplar_of(one.member, float(np.einsum("d,d->", total, row)))
    others = [known for known in cell.exemplars if known.trajectory_id != one.member.trajectory_id]
    known = [*others, *([] if exemplar is None else [exemplar])]
    return msgspec.structs.replace(
        cell, verdicts=_moved(cell.verdicts, one), exemplars=outstanding(known, BEST_EACH, WORST_EACH)
    )


def _rated_anew(cell: Cell, member: Member) -> Cell:
    """With the quality of now in its exemplars alone."""

    def now(known: Exemplar) -> Exemplar:
        mine = known.trajectory_id == member.trajectory_id
        return msgspec.structs.replace(known, quality=member.quality) if mine else known

    exemplars = outstanding([now(known) for known in cell.exemplars], BEST_EACH, WORST_EACH)
    return msgspec.structs.replace(cell, exemplars=exemplars)


def _may_hold(cell: Cell, one: Revision) -> bool:
    """Whether its qualities may be those of trajectories of which one was this."""
    known = [cell.verdicts[route] for route in (ALL, *one.member.routes) if route in cell.verdicts]
    return ALL in cell.verdicts and all(holds(verdict, one.quality) for verdict in known)


def _moved(verdicts: Mapping[str, Verdict], one: Revision) -> dict[str, Verdict]:
    """With the new quality in place of the old one, of all and of the routes that it took."""
    assert one.member.quality is not None
    taken = {ALL, *one.member.routes}
    return {
        route: moved(verdict, one.quality, one.member.quality) if route in taken else verdict
        for route, verdict in verdicts.items()
    }
