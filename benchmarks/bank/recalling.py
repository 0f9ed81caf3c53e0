"""How long the bank takes to recall, and how much of what is nearest it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass

import faiss
import numpy as np

from sona.bank.bank import Bank
from sona.bank.vectors import unit_rows
from sona.checks import Float32
from sona.patterns import Pattern

QUERIES = 300
EACH = 100
"""Patterns around one centre, where they lie in clusters."""


@dataclass(frozen=True)
class Recalled:
    """Of one bank."""

    median_us: float
    """Of ``Bank.recall(query, 5)``."""
    p99_us: float
    at10: float
    """Share of the ten nearest by exact search that ``Bank.recall(query, 10)`` gives."""
    exact_us: float
    """Median of exact search (FAISS, IndexFlatIP) for five, without a bank around it."""
    build_s: float
    """From patterns to the first answer."""


def measure(patterns: int, width: int, clustered: bool, seed: int = 0) -> Recalled:
    """A bank of so many patterns, asked one query after the other."""
    rows, queries = _directions(patterns, width, clustered, np.random.default_rng(seed))
    bank = Bank([_pattern(str(place), row) for place, row in enumerate(rows)], np.zeros(width, dtype=np.float32))
    began = time.perf_counter()
    bank.recall(queries[0])
    built = time.perf_counter()
    flat = faiss.IndexFlatIP(width)
    flat.add(rows)
    nearest = flat.search(queries, min(10, patterns))[1]
    bank_s, flat_s, hits = [], [], 0
    for place, query in enumerate(queries):
        start = time.perf_counter()
        bank.recall(query, 5)
        bank_s.append(time.perf_counter() - start)
        if place < QUERIES // 10:
            start = time.perf_counter()
            flat.search(query[None], 5)
            flat_s.append(time.perf_counter() - start)
        hits += len({int(one.pattern.id) for one in bank.recall(query, 10)} & set(nearest[place].tolist()))
    median, p99 = (1e6 * float(np.quantile(bank_s, share)) for share in (0.5, 0.99))
    return Recalled(median, p99, hits / nearest.size, 1e6 * float(np.median(flat_s)), built - began)


def _directions(count: int, width: int, clustered: bool, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """Centroids and queries, drawn alike: in any direction, or around centres as far as these are from the origin."""
    centres = unit_rows(rng.standard_normal((max(count // EACH, 5), width)).astype(np.float32))

    def draw(n: int) -> Float32:
        rows = rng.standard_normal((n, width), dtype=np.float32)
        if clustered:
            rows = rows / np.float32(width**0.5) + centres[rng.integers(len(centres), size=n)]
        return unit_rows(rows)

    return draw(count), draw(QUERIES)


def _pattern(name: str, row: Float32) -> Pattern:
    return Pattern(id=name, centroid=row.tobytes(), count=1, spread=1.0)
