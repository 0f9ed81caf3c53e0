"""Whether there is enough for a cycle, found out without the libraries that train."""

from __future__ import annotations

import time

from sona.config import Config, CycleConfig
from sona.ports import Collected, TrajectoryStore
from sona.types import CycleReport, Funnel

SEEN = "cycle/seen"  # under this name the store keeps the latest feedback that a cycle saw and left some rows of


def read_seen(store: TrajectoryStore) -> int:
    """The latest feedback that was seen by a cycle which left some rows for later."""
    return int(store.read_state(SEEN) or b"0")


def latest(taken: Collected) -> int:
    """The newest feedback among them, by its place in the order of arrival."""
    return max(row.feedback_seq or 0 for row in taken.rows)


def why_wait(taken: Collected, seen: int, settings: CycleConfig) -> str | None:
    """Why these make no cycle, for a person; None where they do."""
    if len(taken.rows) < settings.min_trajectories:
        number = f"{len(taken.rows)} new {'trajectory' if len(taken.rows) == 1 else 'trajectories'}"
        return f"{number} with a quality; {settings.min_trajectories} make a cycle"
    # A full load is not left for later even without evidence: it would stand in the way of what comes after it.
    if latest(taken) <= seen and len(taken.rows) < settings.max_trajectories:
        return "nothing has come since the last cycle left these for later"
    return None


def too_few(store: TrajectoryStore, config: Config) -> CycleReport | None:
    """The report of a cycle that waits for more; None where there may be enough. It reads no more than it takes to
    tell.
    """
    started_ns, settings = time.time_ns(), config.cycle
    if _enough_approved(store, config):
        return None
    taken = store.collect(settings.min_trajectories)
    if len(taken.rows) >= settings.min_trajectories:
        return None
    reason = why_wait(taken, 0, settings)
    assert reason is not None
    return skipped(store, taken, reason, started_ns)


def skipped(store: TrajectoryStore, taken: Collected, reason: str, started_ns: int) -> CycleReport:
    """The report of a cycle that claims nothing: the next one collects the same, and what came since."""
    funnel = Funnel(
        collected=len(taken.rows),
        trained=0,
        held_out=0,
        left_out={"left for the next cycle": len(taken.rows)} if taken.rows else {},
        waiting_for_feedback=taken.waiting_for_feedback,
    )
    return CycleReport(
        cycle=store.next_cycle(),
        status="skipped",
        reason=reason,
        funnel=funnel,
        parent=store.current().id,
        started_ns=started_ns,
        finished_ns=time.time_ns(),
    )


def _enough_approved(store: TrajectoryStore, config: Config) -> bool:
    """Whether what a person approved makes a cycle by itself."""
    least = config.candidates.min_approved
    return len(store.candidates.approved(least)) >= least


def not_yet(store: TrajectoryStore, config: Config) -> CycleReport | None:
    """As :func:`too_few`, and where all that there is was seen before."""
    started_ns, settings = time.time_ns(), config.cycle
    if _enough_approved(store, config):
        return None
    taken = store.collect(settings.max_trajectories)
    reason = why_wait(taken, read_seen(store), settings)
    return None if reason is None else skipped(store, taken, reason, started_ns)
