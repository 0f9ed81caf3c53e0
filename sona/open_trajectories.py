"""The trajectories whose blocks have not ended yet: found by id, bounded in number and in time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from itertools import islice

from sona.config import RecordingConfig
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

    def __len__(self) -> int:
        return len(self._since)

    def add(self, trajectory: OpenTrajectory) -> None:
        """Where two of one id are open, feedback is for the later one."""
        with self._lock:
            self._since[trajectory] = time.monotonic()
            self._by_id[trajectory.id] = trajectory

    def remove(self, trajectory: OpenTrajectory) -> None:
        """Nothing happens where it is not in here."""
        with self._lock:
            self._since.pop(trajectory, None)
            if self._by_id.get(trajectory.id) is trajectory:
                del self._by_id[trajectory.id]

    def get(self, trajectory_id: str) -> OpenTrajectory | None:
        """The open trajectory of this id."""
        return self._by_id.get(trajectory_id)

    def overdue(self) -> list[OpenTrajectory]:
        """Those that are open for too long, and the oldest of too many."""
        with self._lock:
            too_many = max(len(self._since) - self._settings.max_open, 0)
            found = list(islice(self._since, too_many))
            opened_before = time.monotonic() - self._settings.open_timeout_s
            for trajectory, since in islice(self._since.items(), too_many, None):
                if since > opened_before:
                    break
                found.append(trajectory)
            return found

    def all(self) -> list[OpenTrajectory]:
        """All of them."""
        with self._lock:
            return list(self._since)

    def forked(self) -> None:
        """In a forked child: forget them, they are the parent's."""
        self._lock = threading.RLock()
        for trajectory in list(self._since):
            trajectory.forked()
        self._since, self._by_id = OrderedDict(), {}
