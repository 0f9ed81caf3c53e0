"""What happens in an engine, told as it happens: see :meth:`sona.Engine.events`.

Events carry ids and sources, and never texts: whoever may read them need not be allowed to read what was asked. Each is
a frozen record; ``match`` tells them apart, and as JSON they carry their name under ``type``.

>>> import msgspec
>>> told = msgspec.json.encode(TrajectoryRecorded(id="7", source="bot", outcome="completed", at_ns=1))
>>> told
b'{"type":"trajectory_recorded","at_ns":1,"id":"7","source":"bot","outcome":"completed"}'
>>> msgspec.json.decode(told, type=Event).source
'bot'
"""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

import msgspec

from sona.types import CycleStatus, Outcome, Record

DropReason = Literal["queue full", "disk", "closed", "late", "unrecordable", "conflict", "unknown id", "invalid"]


class _Happened(Record, kw_only=True):
    at_ns: int = msgspec.field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""


class TrajectoryRecorded(_Happened, kw_only=True, tag="trajectory_recorded"):
    """A trajectory was taken in. It is durable after the next flush."""

    id: str
    source: str
    outcome: Outcome


class FeedbackRecorded(_Happened, kw_only=True, tag="feedback_recorded"):
    """A quality was taken in; one for a trajectory that is still open, when that ends."""

    id: str
    trajectory_id: str
    quality: float
    giver: str


class RecordDropped(_Happened, kw_only=True, tag="record_dropped"):
    """A trajectory or a feedback is not, or not any more, on its way into the store."""

    kind: Literal["trajectory", "feedback"]
    id: str
    trajectory_id: str
    """Of a trajectory its own id, of a feedback that of what it rates."""
    reason: DropReason
    """``queue full``: records come faster than the disk takes them, and ``store.queue_bytes`` of them wait, or this one
    alone is larger. ``disk``: the queue is full because nothing can be stored just now, or there is no room for the
    journal; ``status().degraded`` and the log say why. ``closed``: the engine was closed, or this is a forked child.
    ``late``: the block ended after its trajectory had been recorded as abandoned; its answer is not stored.
    ``unrecordable``: what an open trajectory was given makes no record, or its feedback has none to rate; feedback
    that was held for one that was rejected has that one's reason. ``conflict``, ``unknown id``, ``invalid``: the store
    left it out, after it had been told as recorded."""


class CycleStarted(_Happened, kw_only=True, tag="cycle_started"):
    """The background loop began a cycle."""

    cycle: int


class CycleFinished(_Happened, kw_only=True, tag="cycle_finished"):
    """... and ended it."""

    cycle: int
    status: CycleStatus | Literal["failed"]
    """``failed``: it raised, or was stopped; nothing has changed."""
    reason: str
    """One line for a person."""
    version: str | None = None
    """The version that it published."""
    trouble: str | None = None
    """What went wrong after the cycle was committed, such as a published version that can't be served: then the one
    before it is in force again, and the cycle's trajectories stay taken. ``learn()`` raises it too."""


class VersionPublished(_Happened, kw_only=True, tag="version_published"):
    """A version was committed; :class:`Swapped` follows when it answers."""

    version: str
    parent: str
    cycle: int


class Swapped(_Happened, kw_only=True, tag="swapped"):
    """From now on this version answers."""

    version: str


class RolledBack(_Happened, kw_only=True, tag="rolled_back"):
    """A version was put in force by hand, after the :class:`Swapped` of it."""

    version: str
    before: str
    """The version that was in force."""


class RemotePublished(_Happened, kw_only=True, tag="remote_published"):
    """The server elsewhere answers with this version's adapters: it was asked, and said what it has to."""

    version: str
    names: dict[str, str]
    """What it calls each of them."""


class RemoteFailed(_Happened, kw_only=True, tag="remote_failed"):
    """... or does not; what was in force there stays so, as far as it is there."""

    version: str
    """The version that was to be in force there."""
    reason: str
    """One line for a person."""


class Missed(_Happened, kw_only=True, tag="missed"):
    """The subscriber was too slow: so many events were dropped here, the oldest ones."""

    count: int


Event: TypeAlias = (
    TrajectoryRecorded
    | FeedbackRecorded
    | RecordDropped
    | CycleStarted
    | CycleFinished
    | VersionPublished
    | Swapped
    | RolledBack
    | RemotePublished
    | RemoteFailed
    | Missed
)
