"""Real queries with their intents and domains, as the bank sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.bank.agreement import Labels
from benchmarks.bank.embedding import Embedding
from benchmarks.intent_stream import read_rows_of_domains
from sona.bank.vectors import unit_rows
from sona.checks import Float32


@dataclass(frozen=True, eq=False)
class Queries:
    """Those that have an embedding."""

    embeddings: Float32
    """(n, width)"""
    intents: Labels
    """(n,) by number."""
    domains: Labels
    """(n,) by number."""

    @property
    def rows(self) -> Float32:
        """Unit rows (n, width) around their mean, as the bank has them."""
        return unit_rows(self.embeddings - self.embeddings.mean(0))


@cache
def read(folder: Path, embed: Embedding, limit: int | None) -> Queries:
    """The queries of ``folder``; no more than about ``limit``, evenly from all. Read and embedded once a process."""
    queries = [query for rows in read_rows_of_domains(folder).values() for query, _ in rows]
    if limit is not None:
        queries = queries[:: max(1, len(queries) // limit)]
    embedded = zip(embed([query.text for query in queries]), queries, strict=True)
    found = [(row, query) for row, query in embedded if row is not None]
    return Queries(
        np.stack([row for row, _ in found]),
        np.unique([query.intent for _, query in found], return_inverse=True)[1],
        np.unique([query.domain for _, query in found], return_inverse=True)[1],
    )
