"""The trajectories whose blocks have not ended yet: found by id, bounded in number, time and bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import suppress

from sona.config import RecordingConfig
from sona.held import is_held_here
from sona.hooks.trajectory import OpenTrajectory


class OpenTrajectories:
    """Oldest first. A trajectory stays in here until it is removed, which is after it was handed over: so feedback
    finds it here or on its way into the store. Times are monotonic; any thread may call.
    """

    def __init__(self, settings: RecordingConfig) -> None:
        self._settings = settings
        self._lock = threading.RLock()  # a signal handler may open one while its thread is in here
        self._since: OrderedDict[OpenTrajectory, float] = OrderedDict()
        self._by_id: dict[str, OpenTrajectory] = {}
        self._bytes = 0
        """What they hold. A call nested in another may be missed: it is counted anew before anything is done by it."""

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in the midst of a call here: it asks in a signal handler, or a finaliser."""
        return is_held_here(self._lock)

    def __len__(self) -> int:
        return len(self._since)

    def add(self, trajectory: OpenTrajectory) -> None:
        """Where two of one id are open, feedback is for the later one."""
        with self._lock:
            self._since[trajectory] = time.monotonic()
            self._bytes += trajectory.size
            self._by_id[trajectory.id] = trajectory

    def remove(self, trajectory: OpenTrajectory) -> None:
        """Nothing happens where it is not in here."""
        with self._lock:
            if self._since.pop(trajectory, None) is not None:
                self._bytes = self._bytes - trajectory.size if self._since else 0
            if self._by_id.get(trajectory.id) is trajectory:
                del self._by_id[trajectory.id]

    def get(self, trajectory_id: str) -> OpenTrajectory | None:
        """The open trajectory of this id."""
        return self._by_id.get(trajectory_id)

    def grow(self, trajectory: OpenTrajectory, by: int) -> bool:
        """It holds so many bytes more, or less where ``by`` is negative; whether all hold too much now."""
        with self._lock:
            trajectory.size += by
            if trajectory in self._since:
                self._bytes += by
        return self._bytes > self._settings.max_open_bytes

    def overdue(self) -> list[OpenTrajectory]:
        """Those that are open for too long, and the oldest of too many, or of those that hold too much."""
        settings = self._settings
        opened_before = time.monotonic() - settings.open_timeout_s
        with self._lock:
            oldest = self._oldest()
            since = None if oldest is None else self._since.get(oldest)
            late = since is not None and since <= opened_before
            if not late and len(self._since) <= settings.max_open and self._bytes <= settings.max_open_bytes:
                return []  # as nearly always: every block that begins asks
            found = []
            known = self.all()
            self._bytes = held = sum(trajectory.size for trajectory in known)
            for place, trajectory in enumerate(known):
                too_many = len(known) - place > settings.max_open or held > settings.max_open_bytes
                if not too_many and self._since.get(trajectory, opened_before) > opened_before:
                    break
                found.append(trajectory)
                held -= trajectory.size
            return found

    def _oldest(self) -> OpenTrajectory | None:
        try:
            return next(iter(self._since), None)
        except RuntimeError:  # changed in between, see all()
            return self._oldest()

    def all(self) -> list[OpenTrajectory]:
        """All of them, oldest first."""
        with self._lock:
            while True:
                # The lock keeps other threads out, but not a signal handler, nor a finaliser that the collector runs in
                # this one: where such a one ends a trajectory in the midst of this, it is done again.
                with suppress(RuntimeError):
                    return list(self._since)

    def forked(self) -> None:
        """In a forked child: forget them, they are the parent's."""
        self._lock = threading.RLock()
        for trajectory in self.all():
            trajectory.forked()
        self._since, self._by_id, self._bytes = OrderedDict(), {}, 0
