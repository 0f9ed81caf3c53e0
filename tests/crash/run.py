"""What a scenario is given."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.counts import Counts
from tests.crash.nursery import Nursery


@dataclass
class Run:
    """One scenario's."""

    rounds: int
    scratch: Path
    """A folder of its own."""
    nursery: Nursery
    rng: random.Random
    counts: Counts = field(default_factory=Counts)
    skipped: str | None = None
    """Why it could not be done here."""
    _folders: int = 0

    def new_folder(self) -> Path:
        """An empty one."""
        self._folders += 1
        folder = self.scratch / str(self._folders)
        folder.mkdir()
        return folder
