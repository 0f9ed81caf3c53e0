"""Trajectories from a file into the store, at the store's pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sona.errors import ClosedError, InvalidInputError, StoreError
from sona.hooks.jsonl import LINES_BEFORE, Imported, read_jsonl
from sona.intake import Intake
from sona.parts import Parts
from sona.storage.store import Store

MOST_SENDERS = 32
"""Each is one more id to look for, of each line: 32 take as long as the line does."""


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Lines with a quality."""
    known: int
    """Lines that were in the store already, by their id or where they have none by what they say."""
    elsewhere: dict[str, int] = msgspec.field(default_factory=dict)
    """Of these the ones that are left out, as their id is there under another source: how many, by that source."""


def import_file(parts: Parts, intake: Intake, path: Path, source: str | None) -> ImportCounts:
    """Store the lines of a file; see :meth:`sona.Engine.import_jsonl`. Durable when it returns.

    What is in the store already is sent again, which changes nothing. A line without an id is in it whoever it was
    said to be of then: a log that is renamed or rotated brings nothing twice.
    """
    new = rated = known = 0
    elsewhere = Counter[str]()
    senders = _senders(parts.store)
    for line in read_jsonl(path, source):
        row, there = _as_known(parts.store, line, senders)
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


def _senders(store: Store) -> list[str]:
    """Of whom lines may be there under an id of the former kind: the :data:`MOST_SENDERS` that sent most."""
    rows = sorted(store.sources(), key=lambda one: -one.trajectories)
    return [row.source for row in rows[:MOST_SENDERS]]


def _as_known(store: Store, row: Imported, senders: Sequence[str]) -> tuple[Imported, str | None]:
    """The row, as it is in the store where it has no id of its own, and of whom it is there: None where it is not."""
    if row.made_up is None:
        return row, store.source_of(row.trajectory.id)
    own = row.trajectory.source
    former = {row.made_up.former(sender): sender for sender in dict.fromkeys((own, *senders))}
    found = store.sources_of([row.trajectory.id, *former])
    if not found:
        return row, None
    # Its own sender's first: what came twice by the former ids stays as it is under each.
    name, source = min(found.items(), key=lambda item: item[1] != own)
    return row.known_as(name, source), source


def _rejected(parts: Parts, row: Imported) -> StoreError:
    if parts.closed:
        return ClosedError(f"line {row.line}: the engine was closed meanwhile; open it and import the file again")
    size = parts.store.config.queue_bytes
    return StoreError(f"line {row.line}: larger than the whole queue; make store.queue_bytes larger than {size}")
