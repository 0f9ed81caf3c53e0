"""A bank without what comes from certain trajectories: what an erasure takes out of it.

Means of several embeddings, counts and verdicts stay: nobody can tell from them who said what. What a trajectory said,
or was called, goes: exemplars, lessons that were written from it, the names of routes, and its embedding where that
stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec

from sona.bank.cell import Cell
from sona.bank.shelf import Asked, Body, Shelf, Stray
from sona.bank.verdicts import ALL
from sona.patterns import Exemplar, Lesson, Pattern

Named = Callable[[str], bool]
"""Whether what has this id or name is to go."""
T = TypeVar("T")


def without(shelf: Shelf, gone: Named, route_gone: Named) -> Shelf:
    """Without what ``gone`` is true of, by the id of a trajectory, and without the routes of which ``route_gone`` is
    true; itself where there is none.
    """
    trajectories = {one.trajectory_id for one in shelf.all_exemplars()}
    lessons = [one for pattern in shelf.patterns.values() for one in pattern.lessons]
    lessons += [one for asked in shelf.asked.values() for one in asked.dropped]
    trajectories |= {name for one in lessons for name in _seen(one)} | set(shelf.sample.ids)
    routes = {route for cell in _cells(shelf) for route in cell.verdicts} - {ALL}
    routes |= {route for pattern in shelf.patterns.values() for route in pattern.routes}
    names = {name for name in trajectories if gone(name)}, {route for route in routes if route_gone(route)}
    return _Sieve(*names).shelf(shelf) if any(names) else shelf


class _Sieve:
    """Lets through what has to do with neither these trajectories nor these routes."""

    def __init__(self, trajectories: set[str], routes: set[str]) -> None:
        self._trajectories, self._routes = trajectories, routes

    def shelf(self, shelf: Shelf) -> Shelf:
        patterns = {name: self._pattern(pattern) for name, pattern in shelf.patterns.items()}
        strays = [stray for stray in shelf.strays if not self._is_of_one(stray.cell)]
        # What has lost a lesson may be asked for another at once.
        lost = {name for name, one in patterns.items() if len(one.lessons) < len(shelf.patterns[name].lessons)}
        return replace(
            shelf,
            patterns=patterns,
            bodies={name: self._body(body, shelf.patterns[name]) for name, body in shelf.bodies.items()},
            strays=tuple(self._stray(stray) for stray in strays),
            forgotten=shelf.forgotten + sum(one.cell.count for one in shelf.strays if one not in strays),
            sample=shelf.sample.without(self._trajectories.__contains__),
            asked={name: self._asked(asked, begin_anew=name in lost) for name, asked in shelf.asked.items()},
        )

    def _pattern(self, pattern: Pattern) -> Pattern:
        return msgspec.structs.replace(
            pattern,
            exemplars=self._exemplars(pattern.exemplars),
            failures=self._exemplars(pattern.failures),
            lessons=self._lessons(pattern.lessons),
            routes=self._verdicts(pattern.routes),
        )

    def _asked(self, asked: Asked, begin_anew: bool) -> Asked:
        return Asked(count=0 if begin_anew else asked.count, dropped=self._lessons(asked.dropped))

    def _lessons(self, lessons: tuple[Lesson, ...]) -> tuple[Lesson, ...]:
        return tuple(one for one in lessons if self._trajectories.isdisjoint(_seen(one)))

    def _body(self, body: Body, pattern: Pattern) -> Body:
        cells = [self._blurred(cell, pattern) if self._is_of_one(cell) else cell for cell in body.cells]
        return msgspec.structs.replace(body, cells=tuple(self._cell(cell) for cell in cells))

    def _is_of_one(self, cell: Cell) -> bool:
        """Whether its sum is the embedding of a trajectory that is to go."""
        return cell.count == 1 and any(one.trajectory_id in self._trajectories for one in cell.exemplars)

    def _blurred(self, cell: Cell, pattern: Pattern) -> Cell:
        """As if it lay where its pattern does."""
        mean = pattern.spread * pattern.vector()
        return msgspec.structs.replace(cell, total=mean.astype("<f4").tobytes())

    def _stray(self, stray: Stray) -> Stray:
        return msgspec.structs.replace(stray, cell=self._cell(stray.cell))

    def _cell(self, cell: Cell) -> Cell:
        return msgspec.structs.replace(
            cell, exemplars=self._exemplars(cell.exemplars), verdicts=self._verdicts(cell.verdicts)
        )

    def _exemplars(self, exemplars: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
        return tuple(one for one in exemplars if one.trajectory_id not in self._trajectories)

    def _verdicts(self, verdicts: Mapping[str, T]) -> dict[str, T]:
        return {route: verdict for route, verdict in verdicts.items() if route not in self._routes}


def _seen(lesson: Lesson) -> tuple[str, ...]:
    """What its text may come from."""
    return (*lesson.trajectory_ids, *lesson.shown)


def _cells(shelf: Shelf) -> list[Cell]:
    inside = [cell for body in shelf.bodies.values() for cell in body.cells]
    return [*inside, *(stray.cell for stray in shelf.strays)]
