"""Real queries with their intents, as the bank sees them: through word vectors or the shipped model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bank.agreement import Labels
from benchmarks.dataset import DataNeed
from benchmarks.intent_stream import has_intents, read_rows_of_domains
from benchmarks.word_vectors import WordVectors
from sona.bank.vectors import unit_rows
from sona.checks import Float32

VECTORS = "vectors.npz"
BATCH = 32

Embedding = Callable[[Sequence[str]], list[Float32 | None]]


@dataclass(frozen=True)
class QueriesOrVectors(DataNeed):
    """Rows of queries, or the word vectors to embed them by."""

    def fits(self, folder: Path) -> bool:
        """Whether ``folder`` holds either."""
        return (folder / VECTORS).is_file() or super().fits(folder)


NEED = QueriesOrVectors("text, intent, and domain or group; or a vectors.npz", has_intents)


def embeddings(folders: Sequence[Path]) -> dict[str, Embedding]:
    """By name: those of the ``folders`` that hold word vectors, and the shipped model."""
    found: dict[str, Embedding] = {
        folder.resolve().name: _by_words(WordVectors(folder)) for folder in folders if (folder / VECTORS).is_file()
    }
    return {**found, "shipped": _shipped}


def read(folder: Path, embed: Embedding, limit: int | None) -> tuple[Float32, Labels]:
    """Unit rows (queries, width) around their mean, as the bank has them, and each query's intent by number.

    ``limit``: no more queries, evenly from all.
    """
    queries = [query for rows in read_rows_of_domains(folder).values() for query, _ in rows]
    if limit is not None:
        queries = queries[:: max(1, len(queries) // limit)]
    found = [
        (row, q.intent) for row, q in zip(embed([q.text for q in queries]), queries, strict=True) if row is not None
    ]
    rows = np.stack([row for row, _ in found])
    return unit_rows(rows - rows.mean(0)), np.unique([intent for _, intent in found], return_inverse=True)[1]


def _by_words(vectors: WordVectors) -> Embedding:
    return lambda texts: [vectors.embed(text) for text in texts]


def _shipped(texts: Sequence[str]) -> list[Float32 | None]:
    from sona.config import ServeConfig
    from sona.serving.local import LocalModel
    from sona.types import Message

    model = LocalModel("tiny", ServeConfig(device="cpu"))
    prompts = [model.encode_prompt([Message(role="user", content=text)]) for text in texts]
    parts = [model.embed(prompts[place : place + BATCH]) for place in range(0, len(prompts), BATCH)]
    return [*np.concatenate(parts)]
