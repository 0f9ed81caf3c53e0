"""What an engine counts, for whoever watches it."""

from __future__ import annotations

import msgspec

from sona.ports import StoreCounts


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.status` counts."""

    store: StoreCounts
    version: str
    patterns: int
    pending: int
    """Records that are not yet durable."""
    rejected: int
    """Records turned away since the start, because the queue was full."""
    conflicts: int
    """Records left out since the start, because their id is taken by other content."""
    degraded: str | None
    """Why the store can't be written to at the moment."""
    hook_errors: int
    """What went wrong behind open trajectories since the start, and was kept from the host."""


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.import_jsonl` did with the lines of a file."""

    new: int
    rated: int
    """Lines with a quality."""
    known: int
    """Lines whose id was in the store already."""
