"""What a repair sets aside though it is whole: trajectories that a cycle has taken, while the claim that says so is
lost. They can't be kept as left out: what was left out is learned once it is rated anew.
"""

from __future__ import annotations

from typing import cast

import apsw

from sona.storage.catalogue import HEAD, Row, Table
from sona.storage.recount import EVERYTHING, claims_are_short, passed_by

WHY = "what says whether they were learned is lost, and nothing must be learned twice"

_TABLES = """
CREATE TABLE trajectories (seq INTEGER PRIMARY KEY);
CREATE TABLE feedback (seq INTEGER PRIMARY KEY, trajectory INTEGER);
CREATE TABLE claims (seq INTEGER PRIMARY KEY, cycle INTEGER, role TEXT, feedback INTEGER);
CREATE TABLE cycles (cycle INTEGER PRIMARY KEY, train INTEGER, held_out INTEGER);
"""
_COLUMNS = {
    "trajectories": ("seq",),
    "feedback": ("seq", "trajectory"),
    "claims": ("seq", "cycle", "role", "feedback"),
    "cycles": ("cycle", "train", "held_out"),
}
# As mending does: what is left goes by what is left.
_NO_TRAJECTORY = "DELETE FROM feedback WHERE trajectory NOT IN (SELECT seq FROM trajectories)"
_NO_FEEDBACK = """
SELECT count(*) FROM claims
WHERE seq IN (SELECT seq FROM trajectories) AND seq NOT IN (SELECT trajectory FROM feedback)
"""


class LostClaims:
    """Counts them from the rows that are still whole, given in any order, some perhaps more than once. They are kept in
    a temporary file meanwhile, as there may be many.
    """

    def __init__(self) -> None:
        self._connection = apsw.Connection("")  # SQLite removes it
        self._connection.execute(_TABLES)
        self._connection.execute("BEGIN")
        self._watermark: int | None = None

    def note(self, table: Table, row: Row) -> None:
        """Take in a whole row of any table."""
        if table is HEAD and self._watermark is None:
            self._watermark = cast(int, row["watermark"])
        if (names := _COLUMNS.get(table.name)) is not None:
            marks = ", ".join("?" * len(names))
            values = tuple(row[name] for name in names)
            self._connection.execute(f"INSERT OR IGNORE INTO {table.name} VALUES ({marks})", values)

    def count(self) -> int:
        """How many trajectories a repair would set aside; nothing can be noted any more."""
        watermark = self._watermark
        if watermark is None:
            watermark = EVERYTHING if claims_are_short(self._connection) else 0
        self._connection.execute(_NO_TRAJECTORY)
        count = int(self._connection.execute(_NO_FEEDBACK).get) + len(passed_by(self._connection, watermark))
        self._connection.close()
        return count
