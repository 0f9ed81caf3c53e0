"""Trajectories from a file into the store, at the store's pace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sona.hooks.jsonl import read_jsonl
from sona.parts import Parts
from sona.status import ImportCounts


def import_file(parts: Parts, path: Path, source: str | None) -> ImportCounts:
    """Store the lines of a file; see :meth:`sona.Engine.import_jsonl`. Durable when it returns.

    What is in the store already is sent again, which changes nothing.
    """
    new = rated = known = 0
    for row in read_jsonl(path, source):
        trajectory, feedback = row.trajectory, row.feedback
        if trajectory.id in parts.store or parts.writer.knows(trajectory.id):
            known += 1
        else:
            new += 1
        _patiently(parts, partial(parts.fast.record, trajectory))
        if feedback is not None:
            rated += 1
            _patiently(parts, partial(parts.fast.feedback, feedback))
    parts.writer.flush()
    return ImportCounts(new=new, rated=rated, known=known)


def _patiently(parts: Parts, put: Callable[[], bool]) -> None:
    """An import can wait for the disk."""
    while not put():
        parts.writer.flush()
