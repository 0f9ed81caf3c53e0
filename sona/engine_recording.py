"""How an engine records: trajectories, feedback, files; and what is stored of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sona.checks import TokensLike, check_id, check_number, file_of
from sona.engine_open import Conversation, OpenEngine
from sona.event_stream import BUFFER, EventStream
from sona.hooks.trajectory import OpenTrajectory
from sona.importing import ImportCounts, import_file
from sona.intake import Receipt
from sona.ports import Stored
from sona.types import Feedback, Trajectory, new_id, no_trajectory


class Recording(OpenEngine):
    """The part of :class:`sona.Engine` that records."""

    def trajectory(
        self,
        messages: Conversation,
        *,
        prompt_ids: TokensLike | None = None,
        source: str = "default",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        recalled: Sequence[str] = (),
    ) -> OpenTrajectory:
        """A block in which one query is handled, recorded when it ends: see :class:`OpenTrajectory`. What was recalled
        for it before, by :meth:`recall`, may be named by its ``ids`` in ``recalled``.

        Where the model is asked by token ids, no messages are needed; such a query gets its embedding in the cycle.

        Raises:
            InvalidInputError: an argument that can't be recorded.
        """
        self._started()
        return OpenTrajectory(
            self._host,
            messages,
            prompt_ids=prompt_ids,
            source=source,
            id=id,
            metadata=metadata,
            recalled=recalled,
        )

    def record(
        self,
        trajectory: Trajectory,
        quality: float | None = None,  # by place or by name: where names alone are allowed, each call looks them up
        giver: str = "host",
        wait_s: float | None = 0.0,
    ) -> Receipt:
        """Hand over a whole trajectory, in microseconds, with a quality if there is one already.

        Args:
            trajectory: what to record.
            quality: from 0 (useless) to 1 (right).
            giver: who gave that.
            wait_s: where the queue is full, block this thread until there is room, so many seconds at most; None: for
                as long as it takes. In a coroutine ``await engine.flush()`` and record again: that lets others run.

        Returns:
            ``recorded``; or ``rejected`` where more waits for the disk than ``store.queue_bytes``: the same call again
            then does no harm. Durable after :meth:`flush`.

        Raises:
            DimensionMismatchError, UnknownTokenError: it does not fit this store or model.
            InvalidInputError: ``trajectory`` is none, ``quality`` is outside [0, 1], or ``wait_s`` is negative.
            StoreError: with ``wait_s=None``, why nothing can be stored.
        """
        if type(trajectory) is not Trajectory:
            raise no_trajectory(trajectory)
        feedback = None if quality is None else Feedback(trajectory_id=trajectory.id, quality=quality, giver=giver)
        if wait_s:
            check_number(wait_s, "wait_s", 0.0)
        if self._parts is None or self._parts.closed:  # as _open_intake(), which costs a microsecond or two (ADR 6)
            self._started()
        return self._intake.record(trajectory, feedback, wait_s)

    def feedback(
        self,
        trajectory_id: str,
        quality: float,
        *,
        id: str | None = None,
        giver: str = "host",
        comment: str = "",
        wait_s: float | None = 0.0,
    ) -> Receipt:
        """A quality for a trajectory, now or days later. The latest one counts; the same ``id`` twice counts once.

        Waits as :meth:`record`.

        Returns:
            ``recorded`` or ``rejected``, as :meth:`record`; or ``held`` while the trajectory's block is open: it waits
            in memory and is recorded right after its trajectory, when the block ends. Until then :meth:`flush` does not
            store it; ``await t.durable()`` returns when both are stored. Where the trajectory can't be recorded, it is
            not either; :meth:`events` tell so.

        Raises:
            UnknownIdError: no such trajectory.
            InvalidInputError: ``quality`` is outside [0, 1], an id is none, or ``wait_s`` is negative.
            StoreError: the store could not be read to see whether it has the trajectory; with ``wait_s=None`` also why
                nothing can be stored.
            ClosedError: the engine is closed.
        """
        if wait_s:
            check_number(wait_s, "wait_s", 0.0)
        given = Feedback(
            trajectory_id=trajectory_id,
            quality=quality,
            id=new_id() if id is None else id,
            giver=giver,
            comment=comment,
        )
        return self._open_intake().feedback(given, wait_s)

    def events(self, *, buffer: int = BUFFER) -> EventStream:
        """What happens from now on, as it happens: ``async for event in engine.events()``; see :mod:`sona.events`.

        Any number of tasks may listen, each on a stream of its own. Who lags behind by more than ``buffer`` events
        misses the oldest, and is told how many (:class:`sona.events.Missed`). It ends when the engine is closed.

        Raises:
            InvalidInputError: ``buffer`` is no number from 1 to 1,000,000.
        """
        return EventStream(self._started().events, buffer)

    def get(self, trajectory_id: str) -> Stored:
        """A trajectory as it lies in the store, with its effective quality; what was just recorded needs a flush first.

        Raises:
            UnknownIdError: no such trajectory.
        """
        check_id(trajectory_id, "trajectory id")
        return self._started().store.get(trajectory_id)

    def feedback_of(self, trajectory_id: str) -> list[Feedback]:
        """All feedback for a trajectory as it lies in the store, in the order of arrival; what was just given needs a
        flush first.

        Raises:
            UnknownIdError: no such trajectory.
        """
        check_id(trajectory_id, "trajectory id")
        return self._started().store.feedback_of(trajectory_id)

    async def import_jsonl(self, path: str | os.PathLike[str], *, source: str | None = None) -> ImportCounts:
        """Store the trajectories of a file of JSON lines: see :mod:`sona.hooks.jsonl` for the form. Durable when it
        returns.

        The same lines can be imported again, under another file's name too: what is there already stays as it is. A
        line whose id is taken by other content is left out, counted in ``status().conflicts`` and logged.

        Raises:
            InvalidInputError: ``path`` is none, or a line can't be a trajectory, or not one of this store: its number;
                the lines before it are stored.
        """
        file = file_of(path, "path")
        return await self._in_thread(import_file, self._started(), self._open_intake(), file, source)
