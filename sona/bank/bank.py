"""The reasoning bank: an immutable set of patterns; learning a cycle's trajectories gives the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from sona.bank.erasing import Named, without
from sona.bank.families import families_of, has_stale_names
from sona.bank.first_form import read_first_form
from sona.bank.forecast import NEAREST, forecast, usual
from sona.bank.index import CentroidIndex
from sona.bank.lessons import asked_after_merges
from sona.bank.pattern import Member, weight_at
from sona.bank.placing import Cycle
from sona.bank.revising import Revision, heirs, revised
from sona.bank.routes import candidates, drawn, estimates, everywhere
from sona.bank.sample import Sample
from sona.bank.shelf import Asked, Body, Shelf, Stray
from sona.bank.vectors import unit_rows
from sona.bank.verdicts import ALL
from sona.checks import Float32, check_id, shown, tuple_of
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError, StoreCorruptError
from sona.patterns import UNKNOWN, BestRoute, Lesson, Pattern, PatternChange, Recall, RouteEstimate, Verdict
from sona.types import Record

AT_THE_MEAN = 1e-3
"""An embedding no farther from the mean than this share of its length is the mean itself, but for rounding."""


class Placement(NamedTuple):
    """What the bank made of one cycle."""

    bank: Bank
    """The next bank."""
    pattern_ids: list[str]
    """For each member that was given, its pattern's id; "" where it lies far from every pattern."""


HALF_LIFE = BankConfig().half_life  # msgspec leaves a default out by identity: one that was read is made this one


class BankState(Record, kw_only=True):
    """The bank as it is stored in a version."""

    width: int
    mean: bytes
    """float32 (width,): subtracted from every embedding; empty before the first cycle."""
    patterns: tuple[Pattern, ...]
    bodies: tuple[Body, ...] = ()
    """Of the patterns, in their order."""
    strays: tuple[Stray, ...] = ()
    forgotten: int = 0
    changes: tuple[PatternChange, ...] = ()
    cycle: int = 0
    half_life: float = HALF_LIFE
    sample: Sample = Sample()
    asked: dict[str, Asked] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = {pattern.id for pattern in self.patterns}
        widths = {len(pattern.centroid) for pattern in self.patterns} | {len(self.mean)}
        if len(ids) != len(self.patterns) or len(self.bodies) not in (0, len(self.patterns)):
            raise InvalidInputError("bank: patterns with the same id, or without their cells")
        widths |= {len(body.cells[0].total) for body in self.bodies} | {len(one.cell.total) for one in self.strays}
        if len(widths) != 1 or len(self.mean) != 4 * self.width:
            raise InvalidInputError("bank: patterns of different widths")
        for pattern, body in zip(self.patterns, self.bodies, strict=False):
            if pattern.count != sum(cell.count for cell in body.cells):
                raise InvalidInputError(f"bank: pattern {pattern.id} has not as many trajectories as its cells")


class Bank:
    """Patterns and the space they live in.

    Hidden states of a language model share a large common component (Ethayarajh 2019, arXiv:1909.00512), which makes
    all cosines alike. So the mean embedding of the first cycle is subtracted from everything, for good: ids keep their
    meaning only while the space stays the same.
    """

    def __init__(self, patterns: Sequence[Pattern] = (), mean: Float32 | None = None) -> None:
        self._shelf = Shelf({pattern.id: pattern for pattern in patterns})
        self._mean = mean

    @classmethod
    def _of(cls, shelf: Shelf, mean: Float32 | None) -> Bank:
        bank = cls((), mean)
        bank._shelf = shelf
        return bank

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """All of them, in the order of their birth."""
        return tuple(self._shelf.patterns.values())

    @property
    def width(self) -> int | None:
        """Width of its embeddings; None before the first cycle."""
        return None if self._mean is None else len(self._mean)

    @property
    def changes(self) -> tuple[PatternChange, ...]:
        """What happened to patterns, oldest first; the newest 2,000 lines."""
        return self._shelf.changes

    @property
    def strays(self) -> int:
        """Trajectories that lie far from every pattern, and wait for more of their kind."""
        return sum(stray.cell.count for stray in self._shelf.strays)

    @property
    def learned(self) -> int:
        """Trajectories that it has seen: in patterns, strays, and in patterns that were pruned."""
        return self._shelf.learned

    @property
    def cycle(self) -> int:
        """The last cycle that it learned from; 0 before the first."""
        return self._shelf.cycle

    def weight(self, pattern: Pattern) -> float:
        """How many trajectories a pattern has, where one of ``bank.half_life`` cycles ago counts half."""
        return weight_at(pattern, self._shelf.cycle, self._shelf.half_life)

    @property
    def _by_id(self) -> Mapping[str, Pattern]:
        return self._shelf.patterns

    @cached_property
    def _index(self) -> CentroidIndex:
        centroids = np.frombuffer(b"".join(pattern.centroid for pattern in self.patterns), dtype="<f4")
        return CentroidIndex([pattern.id for pattern in self.patterns], centroids.reshape(-1, self.width or 1))

    def _with_index_of(self, before: Bank, changed: Collection[str] = ()) -> Bank:
        """Itself, with the index of the bank before if that has one: what is ``changed`` or new is put into a copy, and
        what is gone is dropped from it.
        """
        if "_index" in before.__dict__:
            index = before._index
            gone = [name for name in before._by_id if name not in self._by_id]
            if changed or gone:
                index = index.copy()
                index.drop(gone)
                if changed:
                    index.put([*changed], np.stack([self._by_id[name].vector() for name in changed]))
            self.__dict__["_index"] = index
        return self

    def recall(self, query: Float32, k: int = 5) -> list[Recall]:
        """The ``k`` patterns nearest to ``query``, a float32 embedding (width,); [] before the first cycle.

        Exact up to :data:`sona.bank.index.EXACT` patterns; beyond, about .98 of the nearest are found.

        Raises:
            DimensionMismatchError: ``query`` has another width than the bank's embeddings.
            InvalidInputError: ``query`` is not of one dimension, holds NaN or infinities, or is all zero; or ``k``
                is no whole number from 1.
        """
        patterns = self._by_id
        return [Recall(pattern=patterns[name], similarity=value) for name, value in self._nearest_of(query, k)]

    def _nearest_of(self, query: Float32, k: int) -> list[tuple[str, float]]:
        if type(k) is not int or k < 1:
            raise InvalidInputError(f"k: {shown(k)}; a whole number from 1 is allowed")
        if self._mean is None or not self._by_id:
            return []
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused
            square = np.einsum("d,d->", query, query) if query.ndim == 1 else 0.0
        if not 0.0 < square < np.inf:
            raise InvalidInputError(
                f"query: shape {query.shape}; one vector of finite numbers, not all zero, within float32 is allowed"
            )
        return self._index.search(self._centred(query[None]), k)[0]

    def best_route(
        self,
        query: Float32,
        kind: str | None = None,
        *,
        among: Sequence[str] | None = None,
        explore: np.random.Generator | None = None,
    ) -> BestRoute | None:
        """Which route to take for ``query``, a float32 embedding (width,), by how the routes went for queries like it.

        Args:
            query: as :meth:`recall`.
            kind: ``tool`` compares ``tool:search`` with ``tool:lookup`` and the like; None compares routes of all
                kinds, which makes sense only where all are of one.
            among: compare these in place of those that were taken for such queries: also what was only taken for
                others, or never.
            explore: draw a route, each as often as it may be the best (Thompson sampling), in place of the one of the
                highest expected quality: whoever always takes that one never learns what another is worth.

        Returns:
            The route with its expected quality, its interval and the evidence behind it, and the others. Where no route
            of the kind was taken for such queries, those are compared that were taken for any: ``chosen.count`` is 0
            then. None where there is none at all, or before the first cycle.

        Raises:
            InvalidInputError: ``kind`` is no text or has a colon in it, ``among`` is empty or holds no names, or
                ``explore`` is no random generator; and as :meth:`recall`.
        """
        _check_route_question(kind, among, explore)
        found = self._nearest_of(query, 1)
        if not found:
            return None
        name, similarity = found[0]
        pattern = self._shelf.patterns[name]
        routes = candidates(pattern, self._everywhere, kind) if among is None else tuple(dict.fromkeys(among))
        if not routes:
            return None
        ranked = self._estimates(pattern, routes) if among is None else estimates(pattern, self._everywhere, routes)
        chosen = ranked[0].route if explore is None else drawn(pattern, self._everywhere, routes, explore)
        return BestRoute(
            chosen=next(one for one in ranked if one.route == chosen),
            others=tuple(one for one in ranked if one.route != chosen),
            pattern=name,
            similarity=similarity,
        )

    def _estimates(self, pattern: Pattern, routes: tuple[str, ...]) -> list[RouteEstimate]:
        """Of its routes; worked out once, as the bank never changes."""
        if (found := self._estimated.get((pattern.id, routes))) is None:
            found = self._estimated[pattern.id, routes] = estimates(pattern, self._everywhere, routes)
        return found

    @cached_property
    def _estimated(self) -> dict[tuple[str, tuple[str, ...]], list[RouteEstimate]]:
        return {}

    @cached_property
    def _everywhere(self) -> dict[str, Verdict]:
        return everywhere(self.patterns)

    def predict(self, embeddings: Float32) -> npt.NDArray[np.float64]:
        """(n,) the expected quality of an answer to each of the queries ``embeddings`` (n, width), by how answers to
        queries like it went: see :mod:`sona.bank.forecast`. 0.5 before the first cycle.

        Raises:
            DimensionMismatchError, InvalidInputError: of ``embeddings``, as :meth:`recall`.
        """
        if self._mean is None or not self._by_id or not len(embeddings):
            return np.full(len(embeddings), UNKNOWN)
        x, shelf = self._centred(embeddings), self._shelf
        strays = [stray.cell for stray in shelf.strays]
        found = []
        for row, line in zip(x, self._index.search(x, NEAREST), strict=True):
            near = [self._by_id[name] for name, _ in line]
            bodies = {pattern.id: shelf.body(pattern.id) for pattern in near}
            found.append(forecast(row, near, bodies, strays, self._everywhere[ALL]))
        return np.asarray(found)

    def usual_quality(self, pattern_id: str) -> float:
        """What is usual for a pattern's trajectories, or with "" for all: the mean quality, drawn towards that of all
        where few are rated.
        """
        everything = self._everywhere.get(ALL, Verdict())
        pattern = self._by_id.get(pattern_id)
        return everything.mean if pattern is None else usual(pattern, everything)

    def with_families(self) -> Bank:
        """With each pattern in a family of similar ones (:mod:`sona.bank.families`), by a thousand pieces at most."""
        names = families_of(self.patterns)
        patterns = {name: msgspec.structs.replace(pattern, family=names[name]) for name, pattern in self._by_id.items()}
        return Bank._of(replace(self._shelf, patterns=patterns), self._mean)._with_index_of(self)

    def nearest(self, embeddings: Float32) -> list[Pattern | None]:
        """The nearest pattern of each embedding (n, width); None before the first cycle."""
        if self._mean is None or not self.patterns or not len(embeddings):
            return [None] * len(embeddings)
        return [self._by_id[row[0][0]] for row in self._index.search(self._centred(embeddings), 1)]

    def learn(self, members: Sequence[Member], settings: BankConfig, *, cycle: int, seed: int) -> Placement:
        """The bank with ``members`` in it, and the pattern that each went to: see :mod:`sona.bank.placing`.

        A pattern's id is never used again for anything else. It costs what is new: the members, and the patterns that
        are near to them.

        Raises:
            DimensionMismatchError: an embedding has another width than the bank's.
            InvalidInputError: an embedding holds NaN or infinities, or is all zero; or ``cycle`` is no later than the
                last.
        """
        if not members:
            return Placement(self, [])
        if cycle <= self._shelf.cycle and self._shelf.cycle:
            raise InvalidInputError(
                f"cycle: {cycle}; the bank has learned from cycle {self._shelf.cycle}, and patterns are named for "
                "cycles: a later number is allowed"
            )
        if len(widths := {len(member.embedding) for member in members}) > 1:
            raise DimensionMismatchError(f"embeddings of widths {sorted(widths)}; one bank holds those of one embedder")
        rows = np.stack([member.embedding for member in members]).astype(np.float32)
        mean = _mean_of(rows) if self._mean is None else self._mean
        bank = self if self._mean is not None else Bank((), mean)
        x = bank._centred(rows)
        after, pattern_ids, changed = Cycle(bank._shelf, bank._nearest_to, members, settings, cycle, seed).run(x)
        asked = asked_after_merges(self.asked, (one for one in after.changes if one.cycle == cycle))
        after = replace(after, asked={name: known for name, known in asked.items() if name in after.patterns})
        return Placement(Bank._of(after, mean)._with_index_of(bank, changed), pattern_ids)

    def revise(self, revisions: Sequence[Revision], settings: BankConfig) -> tuple[Bank, list[str | None]]:
        """The bank with other qualities of trajectories that it has learned, each counted as often as before: see
        :mod:`sona.bank.revising`; and for each of them the pattern that it lies in, "" where it lies far from every
        pattern, None where it is not known any more, so that :meth:`learn` may take it as new.

        Raises:
            DimensionMismatchError, InvalidInputError: of an embedding, as :meth:`learn`.
        """
        if self._mean is None or not revisions:
            return self, [None] * len(revisions)
        x = self._centred(np.stack([one.member.embedding for one in revisions]).astype(np.float32))
        shelf, pattern_ids = revised(self._shelf, x, revisions, self._nearest_to, settings.exemplars)
        return Bank._of(shelf, self._mean)._with_index_of(self), pattern_ids

    def heir(self, pattern_id: str, embedding: Float32, after_cycle: int) -> str:
        """What the pattern has become since ``after_cycle`` for ``embedding`` (width,): itself, what it was joined
        with, or the nearest of its parts; "" where it was pruned, or is "".
        """
        names = [name for name in heirs({pattern_id} - {""}, self.changes, after_cycle) if name in self._by_id]
        if len(names) < 2:
            return names[0] if names else ""
        row = self._centred(embedding[None])[0]
        return max(sorted(names), key=lambda name: float(np.einsum("d,d->", self._by_id[name].vector(), row)))

    def _nearest_to(self, x: Float32, k: int) -> list[list[tuple[str, float]]]:
        """Of each of ``x``, unit rows in the centred space (n, width), the ids of the ``k`` nearest patterns."""
        return self._index.search(np.ascontiguousarray(x, dtype=np.float32), k)

    def _centred(self, embeddings: Float32) -> Float32:
        assert self._mean is not None
        if embeddings.ndim != 2:
            raise InvalidInputError(f"embeddings: shape {embeddings.shape}; rows (n, width) are allowed")
        if embeddings.shape[1] != len(self._mean):
            raise DimensionMismatchError(
                f"embedding of width {embeddings.shape[1]}; this store's have {len(self._mean)}: use the same embedder"
            )
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused
            lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise InvalidInputError(
                "embeddings: NaN, infinities, a row of zeros or numbers beyond float32's range; finite numbers, not "
                "all zero, are allowed"
            )
        centred = embeddings - self._mean
        # What is at the mean has no direction from there, or that of a rounding error; it keeps its own. A first cycle
        # of one repeated query is all there.
        at_mean = np.linalg.norm(centred, axis=1, keepdims=True) <= AT_THE_MEAN * lengths
        return unit_rows(np.where(at_mean, embeddings, centred))

    @property
    def asked(self) -> Mapping[str, Asked]:
        """By pattern id, what is remembered of its lessons beside those that it has."""
        return self._shelf.asked

    def with_lessons(self, lessons: Mapping[str, tuple[Lesson, ...]], asked: Mapping[str, Asked]) -> Bank:
        """With these ``lessons`` in the patterns of these ids, in place of theirs; ``asked``: as in :attr:`asked`."""
        changed = {name: msgspec.structs.replace(self._by_id[name], lessons=new) for name, new in lessons.items()}
        shelf = replace(self._shelf, patterns={**self._by_id, **changed}, asked=dict(asked))
        return Bank._of(shelf, self._mean)._with_index_of(self)

    def without(self, gone: Named, route_gone: Named = lambda route: False) -> Bank:
        """Without the exemplars of trajectories of whose ids ``gone`` is true, without lessons whose distiller saw any
        of them, and without verdicts on routes of which ``route_gone`` is true; itself where there is none. Families
        are made anew where one has a name that no pattern shows any more.
        """
        shelf = without(self._shelf, gone, route_gone)
        bank = self if shelf is self._shelf else Bank._of(shelf, self._mean)._with_index_of(self)
        return bank.with_families() if has_stale_names(bank.patterns) else bank

    @property
    def lessons(self) -> int:
        """How many it holds."""
        return sum(len(pattern.lessons) for pattern in self.patterns)

    def exemplars(self) -> int:
        """How many it keeps, those that are not shown of a pattern included."""
        return self._shelf.exemplars()

    def to_bytes(self) -> bytes:
        """Its stored form."""
        mean = b"" if self._mean is None else self._mean.astype("<f4").tobytes()
        shelf = self._shelf
        state = BankState(
            width=self.width or 0,
            mean=mean,
            patterns=self.patterns,
            bodies=tuple(shelf.body(name) for name in shelf.patterns),
            strays=shelf.strays,
            forgotten=shelf.forgotten,
            changes=shelf.changes,
            cycle=shelf.cycle,
            half_life=HALF_LIFE if shelf.half_life == HALF_LIFE else shelf.half_life,
            sample=shelf.sample,
            asked=dict(shelf.asked),
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def from_bytes(cls, data: bytes) -> Bank:
        """The bank that :meth:`to_bytes` wrote; StoreCorruptError for anything else."""
        state = _read(data)
        mean = np.frombuffer(state.mean, dtype="<f4") if state.mean else None
        patterns = {pattern.id: pattern for pattern in state.patterns}
        bodies = dict(zip(patterns, state.bodies, strict=False))
        shelf = Shelf(
            patterns=patterns,
            bodies=bodies,
            strays=state.strays,
            forgotten=state.forgotten,
            changes=state.changes,
            cycle=state.cycle,
            half_life=state.half_life,
            sample=state.sample,
            asked=state.asked,
        )
        return cls._of(shelf, mean)


def _mean_of(rows: Float32) -> Float32:
    """(width,) zeros where it can't be taken: such rows are refused after that."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.mean(0)
    return mean if np.isfinite(mean).all() else np.zeros_like(mean)


def _check_route_question(kind: object, among: object, explore: object) -> None:
    if kind is not None and (not isinstance(kind, str) or ":" in kind):
        raise InvalidInputError(f"kind: {shown(kind)}; the part of a route before its colon is allowed, such as 'tool'")
    if among is not None:
        names = tuple_of(among, str, "among")
        if not names:
            raise InvalidInputError("among: no routes; name some, such as 'tool:search', or leave it out")
        for name in names:
            check_id(name, "among")
    if explore is not None and not isinstance(explore, np.random.Generator):
        raise InvalidInputError(f"explore: {shown(explore)}; a numpy.random.Generator is allowed, or None")


def _read(data: bytes) -> BankState:
    """What a version's file holds, in today's form."""
    try:
        return msgspec.msgpack.decode(data, type=BankState)
    except (msgspec.DecodeError, InvalidInputError) as error:
        try:
            if (first := read_first_form(data)) is not None:
                patterns = tuple(pattern.today() for pattern in first.patterns)
                cycle = max((pattern.touched_cycle for pattern in patterns), default=0)
                return BankState(width=first.width, mean=first.mean, patterns=patterns, cycle=cycle)
        except InvalidInputError:
            pass  # what is wrong with it in today's form says more
        raise StoreCorruptError(
            f"the reasoning bank can't be read ({error}); roll back to an earlier version"
        ) from None
