"""The way into an open engine: every trajectory and feedback of a host passes here, and is told and counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import anyio
import msgspec

from sona import forked
from sona.config import RecordingConfig
from sona.errors import ClosedError, ConflictError, InvalidInputError, StoreError, UnknownIdError
from sona.event_loop import EventLoop
from sona.events import DropReason, FeedbackRecorded, RecordDropped, TrajectoryRecorded
from sona.held import is_held_here
from sona.hooks.trajectory import OpenTrajectory, to_bear
from sona.open_trajectories import OpenTrajectories
from sona.parts import Parts
from sona.record_size import size_of
from sona.types import Feedback, Trajectory

log = logging.getLogger("sona.intake")

Receipt = Literal["recorded", "rejected", "held"]
"""What became of a record. ``held``: a feedback that waits in memory for the end of its trajectory's block, and is
recorded with it."""
Mishap = Literal["rejected", "abandoned", "late", "hook_errors"]

CLOSED = "the engine is closed; open it again to record"
LONGEST_PAUSE_S = 0.05
TRIES_ALONE = 3
"""What an empty queue turns away so often is larger than the queue."""


class Intake:
    """Takes records while the engine is open, and looks after the trajectories that are not at their end yet.

    Safe to call from any thread, on any event loop or none: nothing here belongs to one.
    """

    def __init__(self, parts: Parts, settings: RecordingConfig) -> None:
        self._parts, self._fast, self._events = parts, parts.fast, parts.events
        self._settings = settings
        self._largest = parts.store.config.queue_bytes
        """What a record may take: a larger one never finds room."""
        self.open = OpenTrajectories(settings)
        self._lock = threading.RLock()
        self._mishaps: Counter[Mishap] = Counter()
        self._told_of: set[DropReason] = set()
        parts.writer.on_left_out = self._left_out
        parts.writer.on_tick = self.sweep
        forked.watch(self)

    def count(self, mishap: Mishap) -> bool:
        """One more; whether it is the first."""
        with self._lock:
            self._mishaps[mishap] += 1
            return self._mishaps[mishap] == 1

    def counted(self, mishap: Mishap) -> int:
        """How many there were since the engine was opened."""
        return self._mishaps[mishap]

    def check_outside(self, what: str, *, also: bool = False) -> None:
        """StoreError where a signal handler asks for ``what`` while its thread is in the midst of a call that holds a
        lock: another thread that it then waits for would wait for that lock.
        """
        self._parts.writer.check_outside(what)
        places = (self.open, self._parts.writer, self._events)
        held = is_held_here(self._lock) or any(place.is_inside for place in places)
        if also or held or any(trajectory.is_inside for trajectory in self.open.all()):
            raise StoreError(
                f"{what}: called by a signal handler in the midst of another call; let that end: raise SystemExit in "
                "the handler, and do it behind that"
            )

    # ---------------------------------------------------------------------------------------------- whole records

    def record(
        self,
        trajectory: Trajectory,
        feedback: Feedback | None = None,
        wait_s: float | None = 0.0,
        imported: bool = False,
    ) -> Receipt:
        """See :meth:`sona.Engine.record`; ``feedback`` is its quality. What is imported is no news to fast weights."""
        # In a straight line, because hosts count the microseconds: each call more costs a tenth of one.
        if not self._fast.record(trajectory, feedback, not imported) and (
            wait_s == 0.0
            or not self._put_patiently(partial(self._fast.record, trajectory, feedback, not imported), wait_s)
        ):
            return self._reject(
                trajectory, quiet=imported
            )  # an import that is refused ends with an error that says why
        if self._events.mailboxes:
            told = TrajectoryRecorded(id=trajectory.id, source=trajectory.source, outcome=trajectory.outcome)
            self._events.tell(told)
            if feedback is not None:
                self._tell_rated(feedback)
        return "recorded"

    def feedback(self, feedback: Feedback, wait_s: float | None = 0.0) -> Receipt:
        """See :meth:`sona.Engine.feedback`."""
        name = feedback.trajectory_id
        if (handle := self.open.get(name)) is not None and (receipt := self._hold(handle, feedback)) is not None:
            return receipt
        # In this order: what the writer does not know any more is in the store already.
        if not self._parts.writer.knows(name) and name not in self._parts.store:
            raise UnknownIdError(f"trajectory {name!r} is not in this store; feedback needs the id of a recorded one")
        return self._rate(feedback, wait_s)

    def _hold(self, handle: OpenTrajectory, feedback: Feedback) -> Receipt | None:
        """None where ``handle`` has ended."""
        size = size_of(feedback)
        if handle.is_open and handle.size + size > self._largest:
            return self._reject(feedback)  # it would be at the end, when nobody asks any more
        if not handle.hold(feedback):
            return None
        self.grown(handle, size)
        return "held"

    def _rate(self, feedback: Feedback, wait_s: float | None = 0.0) -> Receipt:
        put = self._fast.feedback
        if not put(feedback) and (wait_s == 0.0 or not self._put_patiently(partial(put, feedback), wait_s)):
            return self._reject(feedback)
        if self._events.mailboxes:
            self._tell_rated(feedback)
        return "recorded"

    def _tell_rated(self, feedback: Feedback) -> None:
        self._events.tell(
            FeedbackRecorded(
                id=feedback.id,
                trajectory_id=feedback.trajectory_id,
                quality=feedback.quality,
                giver=feedback.giver,
            )
        )

    def _put_patiently(self, put: Callable[[], bool], wait_s: float | None) -> bool:
        """Try again whenever there is room, for ``wait_s`` seconds; None: until the store can't be written to, which is
        raised then.
        """
        deadline = None if wait_s is None else time.monotonic() + wait_s
        alone = 0
        while not self._parts.closed and alone < TRIES_ALONE:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0.0:
                return False
            try:
                self._parts.writer.flush(left)
            except StoreError:
                if left is None:
                    raise
                time.sleep(min(left, LONGEST_PAUSE_S))  # a disk that is full now may have room before the wait is over
            alone += self._parts.writer.pending == 0
            if put():
                return True
        return False

    def _reject(self, record: Trajectory | Feedback, *, quiet: bool = False) -> Receipt:
        self.count("rejected")
        trouble = self._parts.writer.trouble
        reason = self._reason()
        if not quiet and reason not in self._told_of:
            self._told_of.add(reason)
            log.warning("records are rejected: %s (told once, counted always)", self._why_rejected(trouble))
        self._tell_dropped(record, reason)
        return "rejected"

    def _reason(self) -> DropReason:
        """Why records are rejected now."""
        if self._parts.closed:
            return "closed"
        return "queue full" if self._parts.writer.trouble is None else "disk"

    def _why_rejected(self, trouble: str | None) -> str:
        """And what to do about it."""
        if self._parts.closed:
            return CLOSED
        bound = self._parts.store.config.queue_bytes
        if trouble is not None:
            return f"the disk does not take them ({trouble})"
        return (
            "they come faster than the disk takes them, or one is larger than all that may wait, store.queue_bytes "
            f"({bound}); make it larger, or record with wait_s="
        )

    # ------------------------------------------------------------------------------------------ open trajectories

    def opened(self, trajectory: OpenTrajectory) -> None:
        """Its block begins: feedback for it is held until it ends."""
        self.open.add(trajectory)
        self.sweep()

    def grown(self, trajectory: OpenTrajectory, by: int) -> None:
        """It holds so many bytes more."""
        if self.open.grow(trajectory, by):
            self.sweep()

    def step_fits(self, trajectory: OpenTrajectory, size: int) -> bool:
        """Whether it is open for a step of so many bytes, which are counted; where no record can be so large it is
        abandoned, so that what came before is kept.
        """
        if trajectory.size + size > self._largest:
            self._abandon(trajectory)
        self.grown(trajectory, size)
        return trajectory.is_open

    def closed(self, trajectory: OpenTrajectory, record: Trajectory | None, *, bear: bool) -> bool:
        """It ended: hand over what it made of itself, then the feedback that was held for it. See
        :meth:`sona.hooks.trajectory.Host.closed`. What was handed over just as it was cut short is told, not
        stored, once more.
        """
        borne = not trajectory.is_settled and self._settle(trajectory, record, bear)
        while trajectory.unrated and not trajectory.is_refused:
            try:
                if self._rate(trajectory.unrated[0]) == "rejected":
                    self.count("hook_errors")
            except Exception as error:  # the host was told that it is held, and is not here any more
                borne |= to_bear(error, bear)
                self.count("hook_errors")
                log.exception("feedback for trajectory %s could not be recorded", trajectory.id)
            trajectory.unrated.popleft()  # behind it: twice is once
        self.open.remove(trajectory)
        return borne

    def _settle(self, trajectory: OpenTrajectory, record: Trajectory | None, bear: bool) -> bool:
        refusal: Exception | None = None
        borne = False
        try:
            refusal = self._hand_over(trajectory, record)
        except Exception as error:  # the host's answer is out already
            refusal, borne = error, to_bear(error, bear)
            log.exception("trajectory %s could not be recorded", trajectory.id)
        held = trajectory.settle(refusal)
        if refusal is not None:
            self.count("hook_errors")
            reason: DropReason = "unrecordable" if isinstance(refusal, InvalidInputError) else self._reason()
            for feedback in held:
                self._tell_dropped(feedback, reason)
        return borne

    def _hand_over(self, trajectory: OpenTrajectory, record: Trajectory | None) -> Exception | None:
        """Why it could not be recorded; None where it was."""
        if record is None:
            self._tell(
                RecordDropped(kind="trajectory", id=trajectory.id, trajectory_id=trajectory.id, reason="unrecordable")
            )
            return InvalidInputError(f"trajectory {trajectory.id!r}: no record could be made of it; the log says why")
        try:
            receipt = self.record(record)
        except InvalidInputError:
            self._tell_dropped(record, "unrecordable")
            raise
        if receipt == "recorded":
            return None
        if self._parts.closed:
            log.error("trajectory %s ended after the engine was closed, and is not recorded", trajectory.id)
            return ClosedError(f"trajectory {trajectory.id!r} is not recorded: {CLOSED}")
        why = self._why_rejected(self._parts.writer.trouble)
        return StoreError(f"trajectory {trajectory.id!r} was rejected, as others are: {why}")

    def ended_late(self, trajectory: OpenTrajectory) -> None:
        """Its block ended after it had been recorded as abandoned: its answer can't be stored under the same id."""
        if self.count("late"):
            log.warning(
                "trajectory %s ended after it had been recorded as abandoned; what came later is not stored (told "
                "once, counted always)",
                trajectory.id,
            )
        self._tell(RecordDropped(kind="trajectory", id=trajectory.id, trajectory_id=trajectory.id, reason="late"))

    def sweep(self) -> None:
        """Record as abandoned what is open for too long, or is too much. The writer's thread does it every second."""
        for trajectory in self.open.overdue():
            self._abandon(trajectory)

    def _abandon(self, trajectory: OpenTrajectory) -> None:
        if trajectory.abandon() and self.count("abandoned"):
            log.warning(
                "trajectory %s is abandoned, and recorded as far as it came, if there is room: open for over %g s, or "
                "one of over %d that are open, or of those that hold over %d bytes, or larger than a record may be, %d "
                "bytes (told once, counted always)",
                trajectory.id,
                self._settings.open_timeout_s,
                self._settings.max_open,
                self._settings.max_open_bytes,
                self._largest,
            )

    async def flush(self, timeout_s: float | None = None) -> None:
        """See :meth:`sona.Engine.flush`. Takes no thread, however many wait."""
        self.sweep()
        writer = self._parts.writer
        until = writer.asked(timeout_s)
        while not writer.is_stored(until):
            told = anyio.Event()
            with writer.waiting(partial(EventLoop().soon, told.set)):
                if not writer.is_stored(until):
                    with anyio.move_on_after(until.pause_s):
                        await told.wait()

    async def wait_durable(self, trajectory: OpenTrajectory) -> None:
        """See :meth:`OpenTrajectory.durable`."""
        record, given = trajectory.settled()
        if self._parts.closed:
            raise ClosedError(f"trajectory {record.id!r}: the engine was closed meanwhile; what it had taken is stored")
        await self.flush()
        await anyio.to_thread.run_sync(self._check_stored, record, given)

    def _check_stored(self, record: Trajectory, given: Sequence[Feedback]) -> None:
        try:
            stored = self._parts.store.get(record.id).trajectory
        except UnknownIdError:
            why = self._parts.writer.counts().last_error
            raise StoreError(f"trajectory {record.id!r} was left out of the store; the last error was: {why}") from None
        if not _same(stored, record):
            raise ConflictError(f"trajectory {record.id!r}: the id is taken by other content; give each its own id")
        there = {feedback.id for feedback in self._parts.store.feedback_of(record.id)} if given else set()
        if missing := [feedback.id for feedback in given if feedback.id not in there]:
            raise StoreError(
                f"trajectory {record.id!r} is stored, but feedback {missing[0]!r} was rejected or left out; send it "
                "again"
            )

    def close(self) -> None:
        """Record as abandoned what is open, store what waits, let go of the files, and end the events.

        Raises:
            StoreError: something could not be stored in time; it says how much, and why.
        """
        with ExitStack() as last:
            last.callback(self._events.close)
            last.callback(self._parts.close)
            for trajectory in self.open.all():
                trajectory.abandon()

    # ------------------------------------------------------------------------------------------------ events

    def _left_out(self, record: Trajectory | Feedback, error: Exception) -> None:
        """The writer's word, in its thread."""
        reasons: dict[type[Exception], DropReason] = {ConflictError: "conflict", UnknownIdError: "unknown id"}
        self._tell_dropped(record, reasons.get(type(error), "invalid"))

    def _tell_dropped(self, record: Trajectory | Feedback, reason: DropReason) -> None:
        if isinstance(record, Trajectory):
            self._tell(RecordDropped(kind="trajectory", id=record.id, trajectory_id=record.id, reason=reason))
        else:
            self._tell(RecordDropped(kind="feedback", id=record.id, trajectory_id=record.trajectory_id, reason=reason))

    def _tell(self, dropped: RecordDropped) -> None:
        if self._events.mailboxes:
            self._events.tell(dropped)

    def forked(self) -> None:
        """In a forked child nothing is taken any more."""
        self._lock = threading.RLock()
        self._parts.closed = True
        self.open.forked()


def _same(stored: Trajectory, record: Trajectory) -> bool:
    """Whether ``stored`` is ``record``, to which a cycle may have added token ids."""
    ids = {"prompt_ids": record.prompt_ids, "response_ids": record.response_ids}
    return msgspec.structs.replace(stored, **ids).is_again(record)
