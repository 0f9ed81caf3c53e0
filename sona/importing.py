"""Trajectories from a file into the store, at the store's pace."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sona.errors import ClosedError, StoreError
from sona.hooks.jsonl import Imported, read_jsonl
from sona.intake import Intake
from sona.parts import Parts


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Lines with a quality."""
    known: int
    """Lines whose id was in the store already."""


def import_file(parts: Parts, intake: Intake, path: Path, source: str | None) -> ImportCounts:
    """Store the lines of a file; see :meth:`sona.Engine.import_jsonl`. Durable when it returns.

    What is in the store already is sent again, which changes nothing.
    """
    new = rated = known = 0
    for row in read_jsonl(path, source):
        if row.trajectory.id in parts.store or parts.writer.knows(row.trajectory.id):
            known += 1
        else:
            new += 1
        rated += row.feedback is not None
        if intake.record(row.trajectory, row.feedback, wait_s=None, imported=True) == "rejected":
            raise _rejected(parts, row)
    parts.writer.flush()
    return ImportCounts(new=new, rated=rated, known=known)


def _rejected(parts: Parts, row: Imported) -> StoreError:
    if parts.closed:
        return ClosedError(f"line {row.line}: the engine was closed meanwhile; open it and import the file again")
    size = parts.store.config.queue_bytes
    return StoreError(f"line {row.line}: larger than the whole queue; make store.queue_bytes larger than {size}")
