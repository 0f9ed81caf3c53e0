"""Nearest centroids to a query: a FAISS index that is a cache of the patterns, built from them and never from a file.

Exact search up to :data:`EXACT` centroids. Beyond, each centroid also has a code of four bits for every two of its
numbers (product quantization: Jégou, Douze & Schmid 2011, doi:10.1109/TPAMI.2010.57; scanned in registers: André,
Kermarrec & Le Scouarnec 2015, doi:10.14778/2856318.2856324). All codes are scanned, and the best few hundred compared
exactly. Inverted lists and graphs look at a part of the centroids only, which finds the nearest where centroids lie in
clusters and misses most where they do not; docs/adr/0007 has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import faiss
import numpy as np

from sona.bank.vectors import Ints
from sona.checks import Float32
from sona.errors import DimensionMismatchError, InvalidInputError

EXACT = 10_000
"""Centroids. Exact search of them takes 0.15 to 0.2 ms, as long as coded search of 100,000."""
CANDIDATES = 128
"""Compared exactly for each query: of 100,000 directions drawn evenly, the hardest case, .98 of the five nearest."""
CANDIDATES_EACH = 24
"""... for each centroid that is asked for, where that is more: .99 of the ten nearest."""
TRAINED_ON = 8192
"""Rows for the codebook; FAISS takes no more than 4,096 of them."""
TRAINING_ROUNDS = 8
"""Of k-means for the codebook: as good as 25 in a third of the time."""
DEAD_SHARE = 0.2
"""Of the rows; with more of them gone all is built anew."""
GROWTH = 2.0
"""At so many times the rows that it was built from it is built anew, the codebook too."""

faiss.omp_set_num_threads(1)


class CentroidIndex:
    """Unit vectors under ids, and the search for those nearest to a query by cosine."""

    def __init__(self, ids: Sequence[str], centroids: Float32) -> None:
        """The ids, each once, and float32 (ids, width): unit rows, finite. One infinite row would rank first for every
        query, which is why only checked vectors get here.
        """
        _check_one_each(ids, centroids)
        self._build(list(ids), centroids)

    def _build(self, ids: list[str], centroids: Float32) -> None:
        faiss.omp_set_num_threads(1)
        self._ids: list[str | None] = [*ids]
        """By row of the FAISS indices; None is a tombstone."""
        self._row_of = {name: row for row, name in enumerate(ids)}
        self._built_from = len(ids)
        self._rows = faiss.IndexFlatIP(centroids.shape[1])
        self._codes: faiss.Index | None = _trained(centroids) if len(ids) > EXACT else None
        self._append(centroids)

    def _append(self, centroids: Float32) -> None:
        self._rows.add(np.ascontiguousarray(centroids))
        if self._codes is not None:
            self._codes.add(_even(centroids))

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def is_exact(self) -> bool:
        """Whether every centroid is compared with every query."""
        return self._codes is None

    def copy(self) -> CentroidIndex:
        """Another with the same content: no codebook is trained, so it takes as long as copying the memory."""
        twin = object.__new__(CentroidIndex)
        twin._ids, twin._row_of, twin._built_from = self._ids.copy(), self._row_of.copy(), self._built_from
        twin._rows = cast(faiss.IndexFlatIP, faiss.clone_index(self._rows))
        twin._codes = None if self._codes is None else faiss.clone_index(self._codes)
        return twin

    def put(self, ids: Sequence[str], centroids: Float32) -> None:
        """Add these, or move those that are known: each id once; float32 (ids, width), finite unit rows."""
        _check_one_each(ids, centroids)
        if centroids.shape[1] != self._rows.d:
            raise DimensionMismatchError(f"centroids of width {centroids.shape[1]}; this index's have {self._rows.d}")
        self._bury(ids)
        self._row_of.update(zip(ids, range(len(self._ids), len(self._ids) + len(ids)), strict=True))
        self._ids.extend(ids)
        self._append(centroids)
        self._tidy()

    def drop(self, ids: Iterable[str]) -> None:
        """Without these; an id that is not there is none less."""
        self._bury(ids)
        self._tidy()

    def _bury(self, ids: Iterable[str]) -> None:
        """Leave a tombstone where one was: taking rows out of a FAISS index moves all that follow."""
        for name in ids:
            if (row := self._row_of.pop(name, None)) is not None:
                self._ids[row] = None

    def _tidy(self) -> None:
        """Build anew from the living rows where tombstones are many, or the codebook is of other times. Without codes
        that is a copy of the rows; so it is done at every tombstone, and to get the first codebook.
        """
        dead = len(self._ids) - len(self)
        if self._codes is None:
            due = dead > 0 or len(self) > EXACT
        else:
            due = dead > DEAD_SHARE * len(self._ids) or len(self._ids) > GROWTH * self._built_from
        if due:
            rows = np.asarray([row for row, name in enumerate(self._ids) if name is not None], dtype=np.intp)
            self._build([name for name in self._ids if name is not None], self._vectors()[rows])

    def _vectors(self) -> Float32:
        """(rows, width) a view of what FAISS holds, good until the next row is added."""
        numbers = faiss.rev_swig_ptr(self._rows.get_xb(), self._rows.ntotal * self._rows.d)
        return np.asarray(numbers.reshape(self._rows.ntotal, self._rows.d))

    def search(self, queries: Float32, k: int) -> list[list[tuple[str, float]]]:
        """For each query the ids of the ``k`` nearest centroids with their cosine, nearest first.

        Args:
            queries: (n, width) float32, finite, unit rows.
            k: at most so many; fewer where there are fewer.
        """
        faiss.omp_set_num_threads(1)  # it holds for the calling thread alone
        k = min(k, len(self))
        if k < 1:
            return [[] for _ in queries]
        if self._codes is not None:
            return [self._by_code(query, k) for query in queries]
        similarity, rows = self._rows.search(queries, k)
        names = cast(list[str], self._ids)  # without codes there are no tombstones
        return [
            [(names[row], value) for row, value in zip(line, values, strict=True)]
            for line, values in zip(rows.tolist(), similarity.tolist(), strict=True)
        ]

    def _by_code(self, query: Float32, k: int) -> list[tuple[str, float]]:
        """The best by code compared exactly; more of them where tombstones leave too few."""
        wanted = max(CANDIDATES, CANDIDATES_EACH * k)
        while len(rows := self._scanned(query, min(wanted, len(self._ids)))) < k:
            wanted *= 4
        cosines = np.einsum("nd,d->n", self._vectors().take(rows, axis=0), query)
        best = np.argsort(-cosines, kind="stable")[:k]
        names = cast(list[str], self._ids)
        return [(names[row], value) for row, value in zip(rows[best].tolist(), cosines[best].tolist(), strict=True)]

    def _scanned(self, query: Float32, wanted: int) -> Ints:
        """The living rows among the ``wanted`` best by code."""
        assert self._codes is not None
        rows = self._codes.search(_even(query[None]), wanted)[1][0]
        rows = rows[rows >= 0]  # FAISS fills up with -1
        if len(self) == len(self._ids):
            return np.asarray(rows)
        return np.asarray([row for row in rows.tolist() if self._ids[row] is not None], dtype=np.intp)


def _check_one_each(ids: Sequence[str], centroids: Float32) -> None:
    different = len(set(ids))
    if len(ids) != len(centroids) or different < len(ids):
        raise InvalidInputError(
            f"index: {len(ids)} ids, {different} of them different, for {len(centroids)} centroids; give each an id"
        )


def _trained(centroids: Float32) -> faiss.IndexPQFastScan:
    """An empty index whose codebook suits ``centroids``."""
    rows = _even(centroids[:: max(len(centroids) // TRAINED_ON, 1)][:TRAINED_ON])
    codes = faiss.IndexPQFastScan(rows.shape[1], rows.shape[1] // 2, 4, faiss.METRIC_INNER_PRODUCT)
    codes.pq.cp.niter = TRAINING_ROUNDS
    codes.train(rows)
    return codes


def _even(rows: Float32) -> Float32:
    """``rows`` (n, width), contiguous, of an even width: with a column of zeros where it is odd."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, 1))) if rows.shape[1] % 2 else rows)
