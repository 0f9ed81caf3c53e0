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
        rewards = [float(step.reward) for step in record.steps if step.reward is not None]
        self.trajectories += 1
        self.steps += len(record.steps)
        self.rewards += len(rewards)
        self.reward_sum += sum(rewards)
        self.completed += record.outcome == "completed"
        self.failed += record.outcome == "failed"
        self.abandoned += record.outcome == "abandoned"

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
    """Replace the totals of one source, in the transaction under way."""
    values = astuple(totals)
    connection.execute(
        f"INSERT OR REPLACE INTO sources ({_COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, row_crc(*values)),
    )


def _totals(row: tuple[str | int | float, ...]) -> Totals:
    *values, crc = row
    check_crc(crc, *values, row=f"totals of source {row[0]!r}")
    return Totals(*values)  # type: ignore[arg-type]  # the table is STRICT
