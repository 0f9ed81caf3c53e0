"""Make the golden file of the journal in force: ``python -m tests.storage.golden.journal``.

One of a form that was released is never made anew: its bytes are the promise that later versions of sona read them.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from sona.storage.mapped import SMALLEST_SEGMENT, MappedJournal
from sona.types import Feedback, Trajectory
from tests.storage.records import trajectory

GOLDEN = Path(__file__).parent / "journals"


def waiting() -> list[Trajectory | Feedback]:
    """What waits in each of them."""
    rated = Feedback(id="f", trajectory_id="a", quality=0.25, giver="judge", at_ns=9, comment="río")
    return [trajectory("a", width=None), rated, trajectory("b", width=None)]


def golden() -> list[Path]:
    """The file of each form."""
    return sorted(GOLDEN.glob("*.seg.gz"))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        journal = MappedJournal(Path(scratch) / "journal", SMALLEST_SEGMENT)
        for record in waiting():
            if not journal.append(journal.prepare(record)):
                raise SystemExit("it has no room for them")
        (file,) = (path for path in (Path(scratch) / "journal").glob("*.seg") if "río".encode() in path.read_bytes())
        data = file.read_bytes()  # as a killed process leaves it
        journal.close()
    packed = GOLDEN / f"{data[:8].decode()}.seg.gz"
    if packed.exists():
        raise SystemExit(f"{packed} is there, and is never made anew")
    GOLDEN.mkdir(exist_ok=True)
    packed.write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
