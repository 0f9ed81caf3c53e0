"""What turns a text into the vector by which the bank finds it: word vectors, or the shipped model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.word_vectors import WordVectors
from sona.checks import Float32

VECTORS = "vectors.npz"
BATCH = 32

Embedding = Callable[[Sequence[str]], list[Float32 | None]]
"""A vector (width,) for each text; None where it has none."""


def embeddings(folders: Sequence[Path]) -> dict[str, Embedding]:
    """By name: those of the ``folders`` that hold word vectors, and the shipped model."""
    found: dict[str, Embedding] = {
        folder.resolve().name: _by_words(WordVectors(folder)) for folder in folders if (folder / VECTORS).is_file()
    }
    return {**found, "shipped": _shipped}


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
