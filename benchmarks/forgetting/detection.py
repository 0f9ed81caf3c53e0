"""How soon a learner notices that a task has begun, and how often it is wrong about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


@dataclass(frozen=True)
class Detection:
    """Alarms held against the hours in which tasks began."""

    delays: tuple[int, ...]
    """For each task that was noticed while it ran: hours from its first to the first alarm; 0 is at once."""
    missed: int
    """Tasks over before any alarm."""
    false_alarms: int
    """Alarms that were not the first of a task: before all tasks, or again within one."""
    hours: int
    """All that were listened to."""

    @classmethod
    def of(cls, alarms: Sequence[float], starts: Sequence[int]) -> Detection:
        """Hold ``alarms`` (for each hour how many) against ``starts``, the hours in which tasks began, in order.

        Several alarms in the hour that notices a task count as one.
        """
        delays, missed = [], 0
        heard = {hour for hour, count in enumerate(alarms) if count > 0}
        false = heard.copy()
        for start, end in pairwise([*starts, len(alarms)]):
            first = next((hour for hour in range(start, end) if hour in heard), None)
            if first is None:
                missed += 1
            else:
                delays.append(first - start)
                false.remove(first)
        return cls(tuple(delays), missed, len(false), len(alarms))

    @property
    def delay_hours(self) -> float | None:
        """Mean over the tasks that were noticed; None where none was."""
        return fmean(self.delays) if self.delays else None

    @property
    def false_alarms_per_100h(self) -> float:
        """Hours with a false alarm, for 100 hours."""
        return 100 * self.false_alarms / self.hours
