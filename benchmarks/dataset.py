"""Folders of data: ``DIR/dev/*.jsonl``, a JSON object a line; the folder's name names the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class DataNeed:
    """What a benchmark's ``--data`` must hold."""

    fields: str
    """The fields of a row, in words: ends the sentence "it needs rows with ..."."""
    has_fields: Callable[[Row], bool]

    def fits(self, folder: Path) -> bool:
        """Whether the first row of ``folder`` is of use."""
        first = next(read_rows(folder), None)
        return first is not None and self.has_fields(first)


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of all files, file by file in the order of their names; nothing where there are none."""
    for file in sorted(folder.glob("dev/*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    yield row if isinstance(row, dict) else {"value": row}
