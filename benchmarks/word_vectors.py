"""Query embeddings from word vectors, for a bank that does not see through the served model's eyes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sona.checks import Float32

WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


class WordVectors:
    """``vectors.npz`` of a folder such as glove_twitter_25d: ``words`` (n,) and ``vectors`` (n, width)."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "vectors.npz", allow_pickle=False) as held:
            self._vectors = held["vectors"].astype(np.float32)
            self._places = {str(word): place for place, word in enumerate(held["words"])}

    def embed(self, text: str) -> Float32 | None:
        """Mean of the known words' vectors, float32 (width,); None where none is known."""
        places = [self._places[word] for word in WORD.findall(text.lower()) if word in self._places]
        mean = self._vectors[places].mean(0) if places else None
        return mean if mean is not None and mean.any() else None
