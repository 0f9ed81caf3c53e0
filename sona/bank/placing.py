"""One cycle of the bank's life: rows come to patterns, found some, and patterns are cut, joined and forgotten.

    rows ─▶ pieces ─┐
    strays ─────────┼─▶ Ward's agglomeration ─▶ groups ─▶ strays set aside ─▶ cells ─▶ cut ─▶ duplicates joined ─▶ prune
    near patterns ──┘   (sona.bank.ward)

A group with a known pattern in it grows that one; with several, the largest takes the others; without, it is a new one.
Everything costs what is new: patterns that no row comes near are not looked at, but for their weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sona.bank.cell import Cell, Rated, as_one, cell_of, groups_of
from sona.bank.far import far_rows
from sona.bank.pattern import Member, pattern_of, sum_of, verdicts_of, weight_at
from sona.bank.pieces import pieces_of
from sona.bank.sample import grown
from sona.bank.shelf import MOST_CHANGES, Body, Shelf, Stray
from sona.bank.vectors import Ints, distinct, unit_rows
from sona.bank.verdicts import continued, joined
from sona.bank.ward import Floats, Groups, Mask, Scale, agglomerated, evidence_of_two, price_of, reduced
from sona.checks import Float32
from sona.config import BankConfig
from sona.patterns import Change, Exemplar, Lesson, Pattern, PatternChange, Verdict

NEAR = 3
"""Patterns that are looked at for each piece."""
STAY = 0.5
"""Two known patterns become one only where the evidence that they are two falls short by half of its price: what was
told apart yesterday is not put together today for a few rows."""
GROWN = 1.5
"""A pattern is looked at again, whether it should be two, when it has grown by this factor."""
DUPLICATE = 0.98
"""Cosine of two centroids above which they are one pattern, whatever else speaks for two."""
BESIDE = 8
"""Patterns that are looked at for a duplicate: those under work, as they were before, may be among them."""
MOST_STRAYS = 128
"""The newest are kept."""
EXCERPT = 200
"""Characters of a prompt or response that an exemplar keeps."""

Search = Callable[[Float32, int], list[list[tuple[str, float]]]]
"""For each unit row (n, width) the ids of so many nearest patterns, with their cosine."""


@dataclass(eq=False)
class _Part:
    """A cell under work, and the rows of this cycle that are in it."""

    cell: Cell
    rows: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Draft:
    """A pattern under work."""

    name: str
    parts: list[_Part]
    verdicts: dict[str, Verdict]
    born: int
    weight: float
    tested: int
    lessons: tuple[Lesson, ...] = ()
    family: str = ""

    @property
    def count(self) -> int:
        return sum(part.cell.count for part in self.parts)

    def groups(self) -> Groups:
        return groups_of([part.cell for part in self.parts])


class Cycle:
    """One cycle under way."""

    def __init__(
        self, before: Shelf, search: Search, members: Sequence[Member], settings: BankConfig, number: int, seed: int
    ) -> None:
        self._before, self._search, self._members = before, search, members
        self._settings, self._number, self._seed = settings, number, seed
        self._founded = 0
        self._sample = before.sample
        self._changes: list[PatternChange] = []

    def run(self, x: Float32) -> tuple[Shelf, list[str], list[str]]:
        """The next shelf; for each row of ``x`` (members, width), unit rows, its pattern's id, "" for a stray; and the
        ids of the patterns that have changed.
        """
        pieces = pieces_of(x, self._seed)
        near = self._near(x, pieces)
        first, of_row, count = distinct(x)
        groups, known = self._items(x, [rows[np.isin(rows, first)] for rows in pieces], near)
        ids = [member.trajectory_id for member in self._members]
        self._sample = grown(self._before.sample, ids, x, self._settings.grain, self._seed)
        scale = self._scale(x.shape[1])
        of = agglomerated(groups, scale, known=known, stay=STAY)
        far = far_rows(x, _label_of_each(pieces, of), groups, of, known, scale, MOST_STRAYS)
        far &= count[of_row] == 1  # what is repeated is no accident
        drafts, strays = self._drafts(x, pieces, near, of, far)
        drafts = [half for draft in drafts for half in self._cut(draft, scale)]
        return self._closed(drafts, strays)

    # What takes part

    def _near(self, x: Float32, pieces: list[Ints]) -> list[str]:
        """The patterns that may have to do with what is new, in the order of their birth."""
        if not self._before.patterns:
            return []
        directions = [unit_rows(np.stack([x[rows].sum(0) for rows in pieces]))]
        if self._before.strays:
            directions.append(unit_rows(self._before.strays_as_groups()[1]))
        found = {name for line in self._search(np.concatenate(directions), NEAR) for name, _ in line}
        return [name for name in self._before.patterns if name in found]

    def _items(self, x: Float32, pieces: list[Ints], near: list[str]) -> tuple[Groups, Mask]:
        """Pieces, strays and near patterns as groups, in this order; and which are patterns. The pieces come without
        repeated rows: they are no more evidence of a group than one of them.
        """
        counts = [len(rows) for rows in pieces]
        sums = [np.stack([x[rows].sum(0, dtype=np.float64) for rows in pieces])]
        if self._before.strays:
            stray_counts, stray_sums = self._before.strays_as_groups()
            counts += stray_counts
            sums.append(stray_sums.astype(np.float64))
        others = len(counts)
        if near:
            counts += [self._before.patterns[name].count for name in near]
            sums.append(np.stack([sum_of(self._before.patterns[name]) for name in near]))
        known = np.arange(len(counts)) >= others
        return Groups(np.asarray(counts, dtype=np.float64), np.concatenate(sums)), known

    def _scale(self, width: int) -> Scale:
        """How wide a group is follows from a sample of all rows; the fuller the bank the higher the price."""
        fill = len(self._before.patterns) / self._settings.max_patterns
        grain = self._settings.grain / max(1.0 - fill, 0.05)
        return Scale(self._sample.variance, price_of(self._before.learned + len(self._members), width, grain))

    # Who belongs to whom

    def _drafts(
        self, x: Float32, pieces: list[Ints], near: list[str], of: Ints, far: Mask
    ) -> tuple[list[_Draft], list[Stray]]:
        """The patterns that grow or begin, and what belongs to none."""
        first_stray, first_known = len(pieces), len(of) - len(near)
        drafts: list[_Draft] = []
        strays = [Stray(cell=self._cell(x, [row], x[row]), cycle=self._number) for row in np.flatnonzero(far).tolist()]
        for label in range(int(of.max()) + 1):
            places = np.flatnonzero(of == label).tolist()
            rows = [pieces[place][~far[pieces[place]]] for place in places if place < first_stray]
            rows = [some for some in rows if len(some)]
            old = [self._before.strays[at - first_stray] for at in places if first_stray <= at < first_known]
            names = [near[place - first_known] for place in places if place >= first_known]
            if not rows:  # nobody of this cycle, or all of them far
                strays += old
                drafts += [self._known(names, [])] if len(names) > 1 else []
                continue
            new = self._new_parts(x, rows)
            # An old stray beside a known pattern stays one: it was far from it when it came.
            strays += old if names else []
            new += [] if names else [_Part(stray.cell) for stray in old]
            drafts.append(self._known(names, new) if names else self._new(new))
        return drafts, strays

    def _new_parts(self, x: Float32, rows: list[Ints]) -> list[_Part]:
        together = unit_rows(np.concatenate([x[some] for some in rows]).sum(0, dtype=np.float64)[None])[0]
        return [_Part(self._cell(x, some.tolist(), together), some.tolist()) for some in rows]

    def _cell(self, x: Float32, rows: list[int], centre: Floats | Float32) -> Cell:
        cosines = np.einsum("nd,d->n", x[rows], centre.astype(np.float32)).tolist()
        members = [_rated(self._members[row], cosine) for row, cosine in zip(rows, cosines, strict=True)]
        return cell_of(x[rows].sum(0, dtype=np.float64).astype(np.float32), members)

    def _known(self, names: Sequence[str], new: list[_Part]) -> _Draft:
        """The largest of the patterns ``names``, with the others and what is new in it."""
        patterns = [self._before.patterns[name] for name in names]
        kept = max(patterns, key=lambda pattern: (pattern.count, -pattern.born_cycle))
        for pattern in patterns:
            if pattern is not kept:
                self._note("merged", pattern.id, kept.id, pattern.count)
        bodies = [self._before.body(pattern.id) for pattern in patterns]
        gone = sum(pattern.count for pattern in patterns) - kept.count
        half_life = self._settings.half_life
        return _Draft(
            name=kept.id,
            parts=[*(_Part(cell) for body in bodies for cell in body.cells), *new],
            verdicts=continued(joined(verdicts_of(pattern) for pattern in patterns), _verdicts(new)),
            born=kept.born_cycle,
            weight=sum(weight_at(pattern, self._number, half_life) for pattern in patterns) + _rows(new),
            tested=self._before.body(kept.id).tested + gone,
            lessons=best_lessons((one for pattern in patterns for one in pattern.lessons), self._settings.lessons),
            family=kept.family,
        )

    def _new(self, parts: list[_Part]) -> _Draft:
        count = sum(part.cell.count for part in parts)  # just looked at
        draft = _Draft(self._name(), parts, _verdicts(parts), self._number, float(count), tested=count)
        self._note("born", draft.name, "", draft.count)
        return draft

    # What becomes of them

    def _cut(self, draft: _Draft, scale: Scale) -> list[_Draft]:
        """It, or its parts where there is evidence that it is several; with no more cells than are kept."""
        if draft.count < GROWN * draft.tested or len(draft.parts) < 2:
            return [self._tidied(draft)]
        side = reduced(draft.groups(), 2)
        halves = [[part for part, at in zip(draft.parts, side, strict=True) if at == label] for label in (0, 1)]
        one, other = (groups_of([part.cell for part in half]) for half in halves)
        if evidence_of_two(one, other, scale) <= 0 or _cosine(one, other) > DUPLICATE:
            draft.tested = draft.count
            return [self._tidied(draft)]
        halves.sort(key=lambda half: -sum(part.cell.count for part in half))
        whole = draft.count
        kept = replace(draft, parts=halves[0], verdicts=_verdicts(halves[0]), tested=0)
        kept.weight = draft.weight * kept.count / whole
        weight = draft.weight - kept.weight
        born = _Draft(self._name(), halves[1], _verdicts(halves[1]), self._number, weight, 0, family=draft.family)
        self._note("split", born.name, draft.name, born.count)
        return [*self._cut(kept, scale), *self._cut(born, scale)]

    def _tidied(self, draft: _Draft) -> _Draft:
        if len(draft.parts) > self._settings.cells:
            of = reduced(draft.groups(), self._settings.cells)
            merged = [
                [part for part, at in zip(draft.parts, of, strict=True) if at == label] for label in range(of.max() + 1)
            ]
            draft.parts = [
                _Part(
                    as_one([part.cell for part in some]),
                    [row for part in some for row in part.rows],
                )
                for some in merged
            ]
        return draft

    def _closed(self, drafts: list[_Draft], strays: list[Stray]) -> tuple[Shelf, list[str], list[str]]:
        patterns, bodies = dict(self._before.patterns), dict(self._before.bodies)
        for name in [change.pattern for change in self._changes if change.change == "merged"]:
            patterns.pop(name)
            bodies.pop(name, None)
        under_work = self._without_duplicates({draft.name: draft for draft in drafts}, patterns, bodies)
        for draft in under_work.values():
            patterns[draft.name] = self._pattern(draft)
            bodies[draft.name] = Body(cells=tuple(part.cell for part in draft.parts), tested=draft.tested)
        forgotten = self._pruned(patterns, bodies)
        strays, lost = self._kept_strays(strays)
        ids = [""] * len(self._members)
        for draft in under_work.values():
            for row in (row for part in draft.parts for row in part.rows):
                ids[row] = draft.name if draft.name in patterns else ""
        after = Shelf(
            patterns=patterns,
            bodies=bodies,
            strays=tuple(strays),
            forgotten=self._before.forgotten + forgotten + lost,
            changes=(*self._before.changes, *self._changes)[-MOST_CHANGES:],
            cycle=self._number,
            half_life=self._settings.half_life,
            sample=self._sample,
            asked={name: known for name, known in self._before.asked.items() if name in patterns},
        )
        return after, ids, [name for name in under_work if name in patterns]

    def _without_duplicates(
        self, drafts: dict[str, _Draft], patterns: dict[str, Pattern], bodies: dict[str, Body]
    ) -> dict[str, _Draft]:
        """``drafts`` after those with nearly the centroid of another pattern have become one with it."""
        while (pair := self._duplicate(drafts, patterns)) is not None:
            mine, other = drafts.pop(pair[0]), drafts.pop(pair[1], None)
            if other is None:
                known = patterns[pair[1]]
                body = self._before.body(known.id)
                weight = weight_at(known, self._number, self._settings.half_life)
                parts = [_Part(cell) for cell in body.cells]
                verdicts = verdicts_of(known)
                other = _Draft(
                    known.id, parts, verdicts, known.born_cycle, weight, body.tested, known.lessons, known.family
                )
            kept, gone = sorted((mine, other), key=lambda draft: (-draft.count, draft.born))
            self._note("merged", gone.name, kept.name, gone.count)
            patterns.pop(gone.name, None)
            bodies.pop(gone.name, None)
            lessons = best_lessons((*kept.lessons, *gone.lessons), self._settings.lessons)
            kept = replace(
                kept,
                parts=[*kept.parts, *gone.parts],
                verdicts=joined([kept.verdicts, gone.verdicts]),
                weight=kept.weight + gone.weight,
                tested=kept.tested + gone.tested,
                lessons=lessons,
            )
            drafts[kept.name] = self._tidied(kept)
        return drafts

    def _duplicate(self, drafts: dict[str, _Draft], patterns: dict[str, Pattern]) -> tuple[str, str] | None:
        """A draft and another pattern with nearly the same centroid."""
        if not drafts:
            return None
        names = list(drafts)
        rows = unit_rows(np.stack([draft.groups().sums.sum(0, dtype=np.float64) for draft in drafts.values()]))
        among = np.einsum("id,jd->ij", rows, rows)
        np.fill_diagonal(among, -1.0)
        one, other = np.unravel_index(int(among.argmax()), among.shape)
        if among[one, other] > DUPLICATE:
            return names[one], names[other]
        if self._before.patterns:
            for name, line in zip(names, self._search(rows, BESIDE), strict=True):
                for found, cosine in line:
                    if cosine > DUPLICATE and found not in drafts and found in patterns:
                        return name, found
        return None

    def _pattern(self, draft: _Draft) -> Pattern:
        cells = [part.cell for part in draft.parts]
        return pattern_of(
            draft.name,
            cells,
            draft.verdicts,
            self._settings,
            self._number,
            born=draft.born,
            weight=draft.weight,
            lessons=draft.lessons,
            family=draft.family,
        )

    def _pruned(self, patterns: dict[str, Pattern], bodies: dict[str, Body]) -> int:
        """Drop what has hardly any weight, and the least where there are too many; how many trajectories that were."""
        half_life = self._settings.half_life
        weights = {name: weight_at(pattern, self._number, half_life) for name, pattern in patterns.items()}
        by_weight = sorted(weights, key=lambda name: weights[name])
        surplus = max(len(patterns) - self._settings.max_patterns, 0)
        gone = [
            name for place, name in enumerate(by_weight) if place < surplus or weights[name] < self._settings.min_weight
        ]
        forgotten = 0
        for name in gone:
            bodies.pop(name, None)
            count = patterns.pop(name).count
            self._note("pruned", name, "", count)
            forgotten += count
        return forgotten

    def _kept_strays(self, strays: list[Stray]) -> tuple[list[Stray], int]:
        """The newest, and how many trajectories the others were."""
        young = [stray for stray in strays if self._number - stray.cycle <= self._settings.half_life]
        kept = sorted(young, key=lambda stray: -stray.cycle)[:MOST_STRAYS]
        count = sum(stray.cell.count for stray in strays)
        return kept, count - sum(stray.cell.count for stray in kept)

    def _name(self) -> str:
        self._founded += 1
        return f"p{self._number}-{self._founded - 1}"

    def _note(self, change: Change, pattern: str, other: str, count: int) -> None:
        self._changes.append(
            PatternChange(cycle=self._number, change=change, pattern=pattern, other=other, count=count)
        )


def _verdicts(parts: Iterable[_Part]) -> dict[str, Verdict]:
    return joined(part.cell.verdicts for part in parts)


def best_lessons(lessons: Iterable[Lesson], most: int) -> tuple[Lesson, ...]:
    """The ``most`` of them that are worth most, each once."""
    unique = {lesson.id: lesson for lesson in lessons}
    return tuple(sorted(unique.values(), key=lambda one: (-one.worth, -one.helpful, one.born_cycle))[:most])


def _label_of_each(pieces: list[Ints], of: Ints) -> Ints:
    """(rows,) the group that each row came to."""
    label = np.empty(sum(len(rows) for rows in pieces), dtype=np.intp)
    for number, rows in enumerate(pieces):
        label[rows] = of[number]
    return label


def _rated(member: Member, cosine: float) -> Rated:
    return Rated(member.quality, member.routes, exemplar_of(member, cosine))


def exemplar_of(member: Member, cosine: float) -> Exemplar | None:
    """It as an exemplar, at this cosine to the centre of its like; None where it has no quality."""
    if member.quality is None:
        return None
    return Exemplar(
        trajectory_id=member.trajectory_id,
        quality=member.quality,
        similarity=min(max(cosine, -1.0), 1.0),
        prompt=member.prompt[:EXCERPT],
        response=member.response[:EXCERPT],
    )


def _rows(parts: Iterable[_Part]) -> int:
    return sum(len(part.rows) for part in parts)


def _cosine(one: Groups, other: Groups) -> float:
    a, b = (groups.sums.sum(0, dtype=np.float64) for groups in (one, other))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))
