"""What a repair sets aside: rows as lines of JSON, folders of versions as they are."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from sona.storage.blob_files import Content
from sona.storage.catalogue import Row, Table
from sona.storage.layout import BLOBS, QUARANTINE
from sona.storage.rows import Value


class Quarantine:
    """The file ``quarantine/rows-<number>.jsonl`` in a store's folder: one row a line, with why it was set aside, bytes
    as ``{"base64": ...}``, also those of blob files where they can be read. There is no file where there is no row.
    """

    def __init__(self, store: Path, number: int) -> None:
        """``number`` is that of the repair; what a repair of this number wrote before it was cut short is replaced."""
        self.path = store / QUARANTINE / f"rows-{number}.jsonl"
        self.counts = Counter[str]()
        """By table, how many rows are in it."""
        self.path.unlink(missing_ok=True)
        self._content = Content(store / BLOBS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._content.close()
        if self.counts:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def add(self, table: Table, row: Row, why: str) -> None:
        """Keep a row."""
        values = {name: _plain(self._read(value)) for name, value in row.items()}
        line = json.dumps({"table": table.name, "why": why, "row": values}, ensure_ascii=True)
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(self.path, "a", encoding="ascii", opener=_private) as file:
            file.write(line + "\n")
        self.counts[table.name] += 1

    def _read(self, value: Value) -> Value:
        content = self._content(value)
        return value if content is None else content


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _plain(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
