"""What a doctor finds in a store."""

from __future__ import annotations

from typing import Literal

from sona.types import Record

Severity = Literal["fatal", "damaged", "repairable", "note"]
"""``fatal``: the store can't be used, nor repaired. ``damaged``: something is lost, the rest can be kept.
``repairable``: nothing is lost. ``note``: nothing is wrong."""


class Finding(Record, kw_only=True):
    """One thing about a store."""

    severity: Severity
    where: str
    what: str
    repair: str = ""
    """What ``sona doctor --repair`` does about it; "" where it does nothing."""


class Diagnosis(Record, kw_only=True):
    """All that was found, and what was done."""

    path: str
    findings: tuple[Finding, ...]
    done: tuple[str, ...] = ()
    """What a repair did, before the findings, which are of afterwards."""

    @property
    def exit_code(self) -> int:
        """0: fine; 1: something is damaged or to be repaired; 2: it can't be used."""
        severities = {finding.severity for finding in self.findings}
        if "fatal" in severities:
            return 2
        return 1 if severities & {"damaged", "repairable"} else 0


_ROWS = {
    "trajectories": ("trajectory", "trajectories"),
    "feedback": ("feedback", "feedbacks"),
    "claims": ("claim", "claims"),
    "cycles": ("cycle", "cycles"),
    "versions": ("version", "versions"),
    "candidates": ("candidate", "candidates"),
}


def rows_of(table: str, count: int) -> str:
    """So many rows of a table, as one says it."""
    return so_many(count, *_ROWS.get(table, (f"row of {table}", f"rows of {table}")))


def so_many(count: int, one: str, many: str) -> str:
    """``1 row lies`` or ``2 rows lie``, of ``row lies`` and ``rows lie``."""
    return f"{count} {one if count == 1 else many}"
