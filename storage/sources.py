"""Totals for each source, moved along with the records so that no status query reads them all."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import apsw

from sona.ports import SourceCounts
from sona.storage.rows import check_crc, row_crc
from sona.types import Trajectory

_COLUMNS = """
    source, trajectories, feedback, steps, rewards, reward_sum, rated, quality_sum, completed, failed, abandoned
"""


@dataclass(slots=True)
class Totals:
    """One row of the table, in its order of columns."""

    source: str
    trajectories: int = 0
    feedback: int = 0
    steps: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    """Finite: a reward is at most :data:`sona.checks.MAX_NUMBER`."""
    rated: int = 0
    quality_sum: float = 0.0
    """Of the effective qualities: a later feedback takes the place of the one before."""
    completed: int = 0
    failed: int = 0
    abandoned: int = 0

    def add_trajectory(self, record: Trajectory) -> None:
        """Count a new trajectory."""
        self._count(record, 1)

    def remove_trajectory(self, record: Trajectory, feedback: int, quality: float | None) -> None:
        """No longer count a trajectory, its ``feedback`` many feedbacks, and its effective quality."""
        self._count(record, -1)
        self.feedback -= feedback
        self.rated -= quality is not None
        # Of nothing the sum is exactly 0, whatever rounding has left.
        self.reward_sum = self.reward_sum if self.rewards else 0.0
        self.quality_sum = self.quality_sum - (quality or 0.0) if self.rated else 0.0

    def _count(self, record: Trajectory, by: int) -> None:
        self.trajectories += by
        self.steps += by * len(record.steps)
        for step in record.steps:
            if step.reward is not None:
                self.rewards += by
                self.reward_sum += by * step.reward
        if record.outcome == "completed":
            self.completed += by
        elif record.outcome == "failed":
            self.failed += by
        else:
            self.abandoned += by

    def add_feedback(self, quality: float, before: float | None) -> None:
        """Count a feedback for a trajectory whose effective quality was ``before``."""
        self.feedback += 1
        self.rated += before is None
        self.quality_sum += quality - (before or 0.0)

    def counts(self) -> SourceCounts:
        """As people ask for them."""
        outcomes = {"completed": self.completed, "failed": self.failed, "abandoned": self.abandoned}
        return SourceCounts(
            source=self.source,
            trajectories=self.trajectories,
            steps=self.steps,
            rewards=self.rewards,
            mean_reward=self.reward_sum / self.rewards if self.rewards else None,
            rated=self.rated,
            mean_quality=min(max(self.quality_sum / self.rated, 0.0), 1.0) if self.rated else None,  # rounding
            outcomes={name: count for name, count in outcomes.items() if count},
        )


def read_totals(connection: apsw.Connection, source: str) -> Totals:
    """The totals of one source; zeros where it is new."""
    row = connection.execute(f"SELECT {_COLUMNS}, crc FROM sources WHERE source = ?", (source,)).get
    return Totals(source) if row is None else _totals(row)


def read_all_totals(connection: apsw.Connection) -> list[Totals]:
    """Those of all sources, by name."""
    return [_totals(row) for row in connection.execute(f"SELECT {_COLUMNS}, crc FROM sources ORDER BY source")]


def write_totals(connection: apsw.Connection, totals: Totals) -> None:
    """Replace the totals of one source, in the transaction under way; of a source that has nothing no row is kept."""
    if not totals.trajectories:
        connection.execute("DELETE FROM sources WHERE source = ?", (totals.source,))
        return
    values = astuple(totals)
    connection.execute(
        f"INSERT OR REPLACE INTO sources ({_COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, row_crc(*values)),
    )


def _totals(row: tuple[str | int | float, ...]) -> Totals:
    *values, crc = row
    check_crc(crc, *values, row=f"totals of source {row[0]!r}")
    return Totals(*values)  # type: ignore[arg-type]  # the table is STRICT
