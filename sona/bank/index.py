"""Nearest centroids to a query: a FAISS index that is a cache, rebuilt from the patterns whenever they change."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from sona.bank.clustering import unit_rows
from sona.checks import Float32
from sona.types import Pattern


class CentroidIndex:
    """Exact inner-product search over the centroids of ``patterns``."""

    def __init__(self, patterns: Sequence[Pattern], width: int) -> None:
        self._patterns = tuple(patterns)
        self._index = faiss.IndexFlatIP(width)
        if self._patterns:
            self._index.add(np.stack([pattern.vector() for pattern in self._patterns]))

    def __len__(self) -> int:
        return len(self._patterns)

    def search(self, queries: Float32, k: int) -> list[list[tuple[Pattern, float]]]:
        """For each query the ``k`` nearest patterns with their cosine, nearest first.

        Args:
            queries: (n, width) float32, finite, in the bank's centred space. One infinite row would rank first for
                every query if it were added, which is why only checked vectors get here.
            k: at most so many; fewer where there are fewer patterns.
        """
        k = min(k, len(self._patterns))
        if k < 1:
            return [[] for _ in queries]
        similarity, places = self._index.search(unit_rows(queries), k)
        return [
            [(self._patterns[place], float(value)) for place, value in zip(row, values, strict=True)]
            for row, values in zip(places, similarity, strict=True)
        ]
