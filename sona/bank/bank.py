"""The reasoning bank: an immutable set of patterns; learning a cycle's trajectories gives the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.clustering import unit_rows
from sona.bank.groups import Group, Neighbours, groups_of
from sona.bank.index import CentroidIndex
from sona.bank.pattern import Member, found, join
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError, StoreCorruptError
from sona.types import Exemplar, Pattern, Recall, Record

AT_THE_MEAN = 1e-3
"""An embedding no farther from the mean than this share of its length is the mean itself, but for rounding."""


class Placement(NamedTuple):
    """What the bank made of one cycle."""

    bank: Bank
    """The next bank."""
    pattern_ids: list[str]
    """For each member that was given, its pattern's id."""


class BankState(Record, kw_only=True):
    """The bank as it is stored in a version."""

    width: int
    mean: bytes
    """float32 (width,): subtracted from every embedding; empty before the first cycle."""
    patterns: tuple[Pattern, ...]


class Bank:
    """Patterns and the space they live in.

    Hidden states of a language model share a large common component (Ethayarajh 2019, arXiv:1909.00512), which makes
    all cosines alike. So the mean embedding of the first cycle is subtracted from everything, for good: ids keep their
    meaning only while the space stays the same.
    """

    def __init__(self, patterns: Sequence[Pattern] = (), mean: Float32 | None = None) -> None:
        self.patterns = tuple(patterns)
        self._mean = mean

    @property
    def width(self) -> int | None:
        """Width of its embeddings; None before the first cycle."""
        return None if self._mean is None else len(self._mean)

    @cached_property
    def _by_id(self) -> dict[str, Pattern]:
        return {pattern.id: pattern for pattern in self.patterns}

    @cached_property
    def _index(self) -> CentroidIndex:
        centroids = np.frombuffer(b"".join(pattern.centroid for pattern in self.patterns), dtype="<f4")
        return CentroidIndex([pattern.id for pattern in self.patterns], centroids.reshape(-1, self.width or 1))

    def _with_index_of(self, before: Bank, changed: Collection[str] = ()) -> Bank:
        """Itself, with the index of the bank before if that has one: what is ``changed`` or new is put into a copy."""
        if "_index" in before.__dict__:
            index = before._index
            if changed:
                index = index.copy()
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
        """The bank with ``members`` in it, and the pattern that each went to.

        The members are clustered among themselves, so a cycle costs what is new. A cluster joins the known pattern
        that is nearest to it if no gap lies between the two, by the rule that clusters are told apart with: see
        :mod:`sona.bank.groups`. Otherwise it founds a pattern, whose id is never used again for anything else.

        Raises:
            DimensionMismatchError: an embedding has another width than the bank's.
        """
        if not members:
            return Placement(self, [])
        rows = np.stack([member.embedding for member in members]).astype(np.float32)
        bank = self if self._mean is not None else Bank((), rows.mean(0))
        x = bank._centred(rows)
        k = int(np.clip(round(len(members) / settings.cluster_size), 1, settings.max_new_clusters))
        return bank._take(x, Neighbours(groups_of(x, k, seed)), members, settings, cycle)

    def _take(
        self, x: Float32, groups: Neighbours, members: Sequence[Member], settings: BankConfig, cycle: int
    ) -> Placement:
        patterns = {pattern.id: pattern for pattern in self.patterns}
        pattern_ids = [""] * len(members)
        for number, group in enumerate(groups):
            known = self._match(group, groups)
            name = known or f"p{cycle}-{number}"
            grown = found(name, x[group.places], [members[place] for place in group.places], settings.exemplars, cycle)
            patterns[name] = grown if known is None else join(patterns[name], grown, settings.exemplars)
            for place in group.places:
                pattern_ids[place] = name
        grown_bank = Bank(tuple(patterns.values()), self._mean)._with_index_of(self, dict.fromkeys(pattern_ids))
        return Placement(grown_bank, pattern_ids)

    def _match(self, group: Group, groups: Neighbours) -> str | None:
        if not self.patterns:
            return None
        pattern = self._by_id[self._index.search(group.centroid[None], 1)[0][0][0]]
        return pattern.id if groups.is_one_with(group, pattern.vector(), pattern.spread) else None

    def _centred(self, embeddings: Float32) -> Float32:
        assert self._mean is not None
        if embeddings.shape[1] != len(self._mean):
            raise DimensionMismatchError(
                f"embedding of width {embeddings.shape[1]}; this store's have {len(self._mean)}: use the same embedder"
            )
        centred = embeddings - self._mean
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        # What is at the mean has no direction from there, or that of a rounding error; it keeps its own. A first cycle
        # of one repeated query is all there.
        at_mean = np.linalg.norm(centred, axis=1, keepdims=True) <= AT_THE_MEAN * lengths
        return unit_rows(np.where(at_mean, embeddings, centred))

    def without(self, gone: Callable[[Exemplar], bool]) -> Bank:
        """Without the exemplars of which ``gone`` is true; itself where there is none."""
        kept = [tuple(one for one in pattern.exemplars if not gone(one)) for pattern in self.patterns]
        if all(len(few) == len(pattern.exemplars) for few, pattern in zip(kept, self.patterns, strict=True)):
            return self
        patterns = [
            msgspec.structs.replace(pattern, exemplars=few) for pattern, few in zip(self.patterns, kept, strict=True)
        ]
        return Bank(patterns, self._mean)._with_index_of(self)

    def to_bytes(self) -> bytes:
        """Its stored form."""
        mean = b"" if self._mean is None else self._mean.astype("<f4").tobytes()
        return msgspec.msgpack.encode(BankState(width=self.width or 0, mean=mean, patterns=self.patterns))

    @classmethod
    def from_bytes(cls, data: bytes) -> Bank:
        """The bank that :meth:`to_bytes` wrote; StoreCorruptError for anything else."""
        try:
            state = msgspec.msgpack.decode(data, type=BankState)
        except msgspec.DecodeError as error:
            raise StoreCorruptError(
                f"the reasoning bank can't be read ({error}); roll back to an earlier version"
            ) from None
        mean = np.frombuffer(state.mean, dtype="<f4") if state.mean else None
        return cls(state.patterns, mean)
