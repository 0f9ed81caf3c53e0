"""What a repair sets aside: rows as lines of JSON, folders of versions as they are."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from sona.storage.catalogue import Row, Table
from sona.storage.layout import QUARANTINE


class Quarantine:
    """The file ``quarantine/rows-<number>.jsonl`` in a store's folder: one row a line, with why it was set aside, blobs
    as ``{"base64": ...}``. There is no file where there is no row.
    """

    def __init__(self, store: Path, number: int) -> None:
        """``number`` is that of the repair; what a repair of this number wrote before it was cut short is replaced."""
        self.path = store / QUARANTINE / f"rows-{number}.jsonl"
        self.counts = Counter[str]()
        """By table, how many rows are in it."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.counts:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def add(self, table: Table, row: Row, why: str) -> None:
        """Keep a row."""
        values = {name: _plain(value) for name, value in row.items()}
        line = json.dumps({"table": table.name, "why": why, "row": values}, ensure_ascii=True)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            file.write(line + "\n")
        self.counts[table.name] += 1


def _plain(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
