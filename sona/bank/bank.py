"""The reasoning bank: an immutable set of patterns; learning a cycle's trajectories gives the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.erasing import Named, without
from sona.bank.index import CentroidIndex
from sona.bank.pattern import Member
from sona.bank.placing import Cycle
from sona.bank.shelf import Asked, Body, Shelf, Stray
from sona.bank.vectors import unit_rows
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError, StoreCorruptError
from sona.patterns import Lesson, Pattern, PatternChange, Recall
from sona.types import Record

AT_THE_MEAN = 1e-3
"""An embedding no farther from the mean than this share of its length is the mean itself, but for rounding."""


class Placement(NamedTuple):
    """What the bank made of one cycle."""

    bank: Bank
    """The next bank."""
    pattern_ids: list[str]
    """For each member that was given, its pattern's id; "" where it lies far from every pattern."""


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
    asked: dict[str, Asked] = msgspec.field(default_factory=dict)


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
            InvalidInputError: ``query`` is not of one dimension, holds NaN or infinities, or is all zero.
        """
        if self._mean is None or not self.patterns:
            return []
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused
            square = np.einsum("d,d->", query, query) if query.ndim == 1 else 0.0
        if not 0.0 < square < np.inf:
            raise InvalidInputError(
                f"query: shape {query.shape}; one vector of finite numbers, not all zero, within float32 is allowed"
            )
        centred = self._centred(query[None])
        patterns = self._by_id
        return [Recall(pattern=patterns[name], similarity=value) for name, value in self._index.search(centred, k)[0]]

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
            InvalidInputError: an embedding holds NaN or infinities, or is all zero.
        """
        if not members:
            return Placement(self, [])
        rows = np.stack([member.embedding for member in members]).astype(np.float32)
        mean = rows.mean(0) if self._mean is None else self._mean
        bank = self if self._mean is not None else Bank((), mean)
        x = bank._centred(rows)
        after, pattern_ids, changed = Cycle(bank._shelf, bank._nearest_to, members, settings, cycle, seed).run(x)
        return Placement(Bank._of(after, mean)._with_index_of(bank, changed), pattern_ids)

    def _nearest_to(self, x: Float32, k: int) -> list[list[tuple[str, float]]]:
        """Of each of ``x``, unit rows in the centred space (n, width), the ids of the ``k`` nearest patterns."""
        return self._index.search(np.ascontiguousarray(x, dtype=np.float32), k)

    def _centred(self, embeddings: Float32) -> Float32:
        assert self._mean is not None
        if embeddings.shape[1] != len(self._mean):
            raise DimensionMismatchError(
                f"embedding of width {embeddings.shape[1]}; this store's have {len(self._mean)}: use the same embedder"
            )
        if not np.isfinite(embeddings).all() or not embeddings.any(axis=1).all():
            raise InvalidInputError(
                "embeddings: NaN, infinities or a row of zeros; finite numbers, not all zero, are allowed"
            )
        centred = embeddings - self._mean
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
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
        of them, and without verdicts on routes of which ``route_gone`` is true; itself where there is none.
        """
        shelf = without(self._shelf, gone, route_gone)
        return self if shelf is self._shelf else Bank._of(shelf, self._mean)._with_index_of(self)

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
            asked=dict(shelf.asked),
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def from_bytes(cls, data: bytes) -> Bank:
        """The bank that :meth:`to_bytes` wrote; StoreCorruptError for anything else."""
        try:
            state = msgspec.msgpack.decode(data, type=BankState)
        except (msgspec.DecodeError, InvalidInputError) as error:
            raise StoreCorruptError(
                f"the reasoning bank can't be read ({error}); roll back to an earlier version"
            ) from None
        mean = np.frombuffer(state.mean, dtype="<f4") if state.mean else None
        patterns = {pattern.id: pattern for pattern in state.patterns}
        bodies = dict(zip(patterns, state.bodies, strict=False))
        shelf = Shelf(patterns, bodies, state.strays, state.forgotten, state.changes, state.asked)
        return cls._of(shelf, mean)
