"""What an engine counts, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from sona.intake import Intake
from sona.loops.background import LearnerStatus
from sona.loops.micro import MicroCounts
from sona.parts import Parts
from sona.ports import StoreCounts
from sona.reviewed import Unconfirmed, read_unconfirmed
from sona.serving.remote.state import RemoteStatus


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`sona.Engine.status` counts."""

    store: StoreCounts
    version: str
    patterns: int
    pending: int
    """Records that are not yet durable."""
    open: int
    """Trajectories whose blocks have not ended."""
    degraded: str | None
    """Why the store can't be written to at the moment, or what is recorded would not outlive a kill."""

    # Since the engine was opened:

    rejected: int
    """Records turned away, because the queue was full; each was told so, or is in ``hook_errors`` too."""
    conflicts: int
    """Records left out, because their id is taken by other content."""
    unknown: int
    """Feedback left out, because what it rates is not in the store: it was left out itself."""
    invalid: int
    """Records left out for another reason of their own, such as an embedding of another width than the store's."""
    failed_attempts: int
    """Commits that failed; what they held was kept, and tried again."""
    abandoned: int
    """Trajectories recorded as abandoned because they were open for over ``recording.open_timeout_s``, or were one of
    over ``recording.max_open``, or held too much (``recording.max_open_bytes``)."""
    late: int
    """... whose block ended after all: its answer came too late to be stored."""
    missed_events: int
    """Events that subscribers were too slow for, all of them together."""
    hook_errors: int
    """What went wrong behind open trajectories, and was kept from the host."""
    recovered: int
    """Records that an earlier process had taken and could not store; they were found in the journal."""
    micro: MicroCounts | None
    """What feedbacks did to the fast weights; None where ``micro.enabled`` is off."""
    learner: LearnerStatus
    """Whether a cycle runs, where, and what went wrong with the last one that failed."""
    remote: RemoteStatus | None
    """How publishing to a model server elsewhere goes; None where ``remote.kind`` is off."""
    unconfirmed: int | None
    """Answers that were sent to a training service, of which nobody knows whether it took them; None where that
    can't be read."""
    set_aside: int | None
    """Of these the ones that sending does not ask for again, as the service refused them each time, others of their
    request were confirmed by hand, their texts are gone, or they went to another service: a person has to say what came
    of them (``sona candidates confirm``)."""
    review_trouble: str | None
    """Why ``unconfirmed`` and ``set_aside`` are not known: what the store has of them is damaged."""


def read_status(
    parts: Parts, intake: Intake, learner: LearnerStatus, unconfirmed: Callable[[], Sequence[Unconfirmed]]
) -> EngineStatus:
    """Counted now."""
    writer = parts.writer.counts()
    requests, trouble = read_unconfirmed(unconfirmed)
    return EngineStatus(
        store=parts.store.counts(),
        version=parts.store.current().id,
        patterns=len(parts.bank.patterns),
        pending=writer.pending,
        open=len(intake.open),
        degraded=parts.writer.degraded,
        rejected=intake.counted("rejected"),
        conflicts=writer.conflicts,
        unknown=writer.unknown,
        invalid=writer.invalid,
        failed_attempts=writer.failed_attempts,
        abandoned=intake.counted("abandoned"),
        late=intake.counted("late"),
        missed_events=parts.events.missed,
        hook_errors=intake.counted("hook_errors"),
        recovered=writer.recovered,
        micro=None if parts.micro is None else parts.micro.counts(),
        learner=learner,
        remote=None if parts.remote is None else parts.remote.status,
        unconfirmed=None if requests is None else sum(len(one.ids) for one in requests),
        set_aside=None if requests is None else sum(len(one.ids) for one in requests if one.is_aside),
        review_trouble=trouble,
    )
