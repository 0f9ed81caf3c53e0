"""What the suite did, and what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields


@dataclass
class Counts:
    """Sound while the last three are 0."""

    kills: int = 0
    """Processes ended by SIGKILL at work."""
    faults: int = 0
    """Power cuts, refused or failed operations of the disk, damaged files, steps of the clock."""
    acknowledged: int = 0
    """Records and cycles that somebody was told were recorded, stored or committed."""
    lost: int = 0
    """Of these: not there afterwards."""
    trained_twice: int = 0
    """Trajectories that two cycles took as new, or that a cycle trained on without its claim."""
    undetected: int = 0
    """Wrong data that passed as right, and errors that are none of the store's own."""
    notes: list[str] = field(default_factory=list)
    """What exactly went wrong."""

    def lose(self, what: str) -> None:
        self.lost += 1
        self.notes.append(f"lost: {what}")

    def train_twice(self, what: str) -> None:
        self.trained_twice += 1
        self.notes.append(f"trained twice: {what}")

    def miss(self, what: str) -> None:
        self.undetected += 1
        self.notes.append(f"undetected: {what}")

    def add(self, other: Counts) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def sound(self) -> bool:
        return not (self.lost or self.trained_twice or self.undetected)

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({one.name: getattr(self, one.name) for one in fields(self) if one.name != "notes"})
