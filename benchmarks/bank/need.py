"""What ``bench_bank`` can be given with ``--data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.bank import attempts
from benchmarks.bank.embedding import VECTORS
from benchmarks.dataset import DataNeed
from benchmarks.intent_stream import has_intents


@dataclass(frozen=True)
class RowsOrVectors(DataNeed):
    """Rows to learn from, or the word vectors to embed them by."""

    def fits(self, folder: Path) -> bool:
        """Whether ``folder`` holds either."""
        return (folder / VECTORS).is_file() or super().fits(folder)


NEED = RowsOrVectors(
    f"text, intent, and domain or group; or {attempts.NEED.fields}; or a vectors.npz",
    lambda row: has_intents(row) or attempts.NEED.has_fields(row),
)
