"""Trajectories from a file into the store, at the store's pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sona.errors import ClosedError, InvalidInputError, StoreCorruptError, StoreError, UnknownIdError
from sona.hooks.jsonl import LINES_BEFORE, Imported, read_jsonl
from sona.intake import Intake
from sona.parts import Parts
from sona.storage.store import Store
from sona.types import Trajectory

MOST_SENDERS = 32
"""Each is one more id to look for, of each line: 32 take as long as the line does."""


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Of these, and of those that were known, the ones with a quality."""
    known: int
    """Lines that were in the store already, by their id or where they have none by what they say."""
    left_out: int = 0
    """Lines whose id is there with other content, or in a damaged row."""
    elsewhere: dict[str, int] = msgspec.field(default_factory=dict)
    """Of these the ones whose id is there under another source: how many, by that source."""


def import_file(parts: Parts, intake: Intake, path: Path, source: str | None) -> ImportCounts:
    """Store the lines of a file; see :meth:`sona.Engine.import_jsonl`. Durable when it returns.

    What is in the store already is sent again, which changes nothing. A line without an id is in it whoever it was
    said to be of then: a log that is renamed or rotated brings nothing twice.
    """
    new = rated = known = left_out = 0
    elsewhere = Counter[str]()
    senders = _senders(parts.store)
    for line in read_jsonl(path, source):
        row, there = _as_known(parts.store, line, senders)
        if there is None and not parts.writer.knows(row.trajectory.id):
            new += 1
        elif _is_there(parts, row.trajectory):
            known += 1
        else:
            left_out += 1  # and given to the writer all the same, which counts and logs it
            if there not in (None, row.trajectory.source):
                elsewhere[there] += 1
            row = row._replace(feedback=None)
        rated += row.feedback is not None
        try:
            receipt = intake.record(row.trajectory, row.feedback, wait_s=None, imported=True)
        except InvalidInputError as error:  # what only this store and model know: widths, token ids
            raise type(error)(f"{path.name} line {row.line}: {error}; {LINES_BEFORE}") from None
        if receipt == "rejected":
            raise _rejected(parts, row)
    parts.writer.flush()
    return ImportCounts(new=new, rated=rated, known=known, left_out=left_out, elsewhere=dict(elsewhere))


def _is_there(parts: Parts, trajectory: Trajectory) -> bool:
    """Whether what has its id says the same."""
    if parts.writer.knows(trajectory.id):  # twice in the file
        parts.writer.flush()
    try:
        return parts.store.get(trajectory.id).trajectory.is_again(trajectory)
    except (UnknownIdError, StoreCorruptError):
        return False


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
