"""What a way through a stream came to: an accuracy for each task after each segment, and the usual figures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.forgetting.world import BASE


@dataclass(frozen=True)
class AccuracyMatrix:
    """R of Lopez-Paz and Ranzato 2017 (arXiv:1706.08840, §2): what is right after each segment, in [0, 1]."""

    rows: tuple[Mapping[str, float], ...]
    """By task the share of questions answered right: before the stream, then after each segment."""
    segments: tuple[str, ...]
    """The task of each segment; the first is the base skills'. ``rows`` has one more."""
    judged: tuple[str, ...]
    """The tasks that count, in the order of their arrival."""

    def own(self, task: str) -> int:
        """The row after the task's own segment."""
        return self.segments.index(task) + 1

    @property
    def acc(self) -> float:
        """Mean accuracy at the end."""
        return fmean(self.rows[-1][task] for task in self.judged)

    @property
    def la(self) -> float:
        """Learning accuracy: the mean of each task's accuracy right after its own segment."""
        return fmean(self.rows[self.own(task)][task] for task in self.judged)

    @property
    def bwt(self) -> float:
        """Backward transfer: the mean, over all tasks but the last, of the end's accuracy minus the learning accuracy;
        below 0 it is forgetting. 0 for a single task.
        """
        return _mean([self.rows[-1][task] - self.rows[self.own(task)][task] for task in self.judged[:-1]])

    @property
    def fwt(self) -> float:
        """Forward transfer: the mean, over all tasks but the first, of the accuracy just before the task's own segment
        minus that before the stream. 0 for a single task.
        """
        return _mean([self.rows[self.own(task) - 1][task] - self.rows[0][task] for task in self.judged[1:]])

    @property
    def base_kept(self) -> float:
        """Accuracy on the base skills at the end, divided by that before the stream."""
        return self.rows[-1][BASE] / self.rows[0][BASE]

    def shares(self) -> list[list[float]]:
        """The rows after each segment as numbers: (segments, tasks in the order of their segments)."""
        return [[row[task] for task in self.segments] for row in self.rows[1:]]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
