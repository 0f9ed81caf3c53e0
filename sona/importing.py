"""Trajectories from a file into the store, at the store's pace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from sona.errors import ClosedError, InvalidInputError, StoreError
from sona.hooks.jsonl import LINES_BEFORE, Imported, read_jsonl
from sona.intake import Intake
from sona.parts import Parts


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Lines with a quality."""
    known: int
    """Lines whose id was in the store already."""
    elsewhere: dict[str, int] = msgspec.field(default_factory=dict)
    """Of these the ones that are left out, as their id is there under another source: how many, by that source."""


def import_file(parts: Parts, intake: Intake, path: Path, source: str | None) -> ImportCounts:
    """Store the lines of a file; see :meth:`sona.Engine.import_jsonl`. Durable when it returns.

    What is in the store already is sent again, which changes nothing.
    """
    new = rated = known = 0
    elsewhere = Counter[str]()
    for row in read_jsonl(path, source):
        there = parts.store.source_of(row.trajectory.id)
        if there is not None or parts.writer.knows(row.trajectory.id):
            known += 1
        else:
            new += 1
        if there not in (None, row.trajectory.source):
            elsewhere[there] += 1
        rated += row.feedback is not None
        try:
            receipt = intake.record(row.trajectory, row.feedback, wait_s=None, imported=True)
        except InvalidInputError as error:  # what only this store and model know: widths, token ids
            raise type(error)(f"{path.name} line {row.line}: {error}; {LINES_BEFORE}") from None
        if receipt == "rejected":
            raise _rejected(parts, row)
    parts.writer.flush()
    return ImportCounts(new=new, rated=rated, known=known, elsewhere=dict(elsewhere))


def _rejected(parts: Parts, row: Imported) -> StoreError:
    if parts.closed:
        return ClosedError(f"line {row.line}: the engine was closed meanwhile; open it and import the file again")
    size = parts.store.config.queue_bytes
    return StoreError(f"line {row.line}: larger than the whole queue; make store.queue_bytes larger than {size}")
