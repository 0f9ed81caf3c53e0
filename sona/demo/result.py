"""What a run of the demo found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sona.demo.evaluation import Answers
from sona.patterns import Pattern
from sona.types import CycleReport, Version


@dataclass(frozen=True, slots=True)
class Traffic:
    """One cycle's queries, counted."""

    task: str
    """The task that was new."""
    queries: int
    right: int
    """Answered rightly by the model."""
    asked_person: int


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the accuracy matrix: the exam after so many cycles."""

    cycle: int
    """0 for the untouched base model."""
    answers: Answers

    @property
    def name(self) -> str:
        """For a person, such as ``cycle 2 (v1)``."""
        return f"cycle {self.cycle} ({self.answers.version})" if self.cycle else f"base ({self.answers.version})"


@dataclass(frozen=True, slots=True)
class Return:
    """A version put in force again, and whether its answers were those that it gave before."""

    version: str
    identical: bool
    """All token ids of the whole exam."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One held-out query under the base model and under what was learned."""

    task: str
    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that the demo tells, shows and writes."""

    rows: tuple[Row, ...]
    """The accuracy matrix: the base model, then each cycle."""
    traffic: tuple[Traffic, ...]
    """Of each cycle."""
    cycles: tuple[CycleReport, ...]
    """Of each cycle; empty with the learning switched off."""
    returns: tuple[Return, ...]
    """What was rolled back to, in order; empty where no version was published."""
    comparisons: tuple[Comparison, ...]
    versions: tuple[Version, ...]
    patterns: tuple[Pattern, ...]
    """In the bank of the last version."""
    trajectories: int
    """In the store at the end."""
    seed: int
    seconds: float
    store: Path
    report: Path
    picture: Path | None
    """None where matplotlib is not installed."""

    @property
    def before(self) -> float:
        """Mean accuracy of the three tasks under the base model."""
        return self.rows[0].answers.tasks

    @property
    def after(self) -> float:
        """Mean accuracy of the three tasks after the last cycle."""
        return self.rows[-1].answers.tasks

    @property
    def kept(self) -> float:
        """Accuracy of the old skills after the last cycle, as a share of the base model's: above 1 where it rose, and 1
        where there was nothing to keep.
        """
        base = self.rows[0].answers.skills
        return self.rows[-1].answers.skills / base if base else 1.0

    @property
    def rollback_identical(self) -> bool | None:
        """Each version that was put back answered as it had before, token for token; None where there was none."""
        return all(back.identical for back in self.returns) if self.returns else None

    def figures(self) -> Mapping[str, float | bool | None]:
        """What ``--json`` writes."""
        return {
            "before": self.before,
            "after": self.after,
            "kept": self.kept,
            "rollback_identical": self.rollback_identical,
            "seconds": round(self.seconds, 2),
        }
