"""``kill -9`` of a whole host at any moment, while it records and while a cycle runs."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sona.errors import SonaError
from sona.storage.store import DATABASE, Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION
from tests.crash.counts import Counts
from tests.crash.ledger import Ledger
from tests.crash.nursery import Nursery
from tests.crash.run import Run


class _Pace(NamedTuple):
    """How long a life takes on this machine, beside whatever else it has to do."""

    opening_s: float
    """Until its first batch is durable."""
    cycle_s: float
    """From then on until its first cycle has ended."""

    def moments(self) -> tuple[tuple[str | None, float], ...]:
        """After which word of a life it is killed, and within how many seconds: as it opens, learns, commits, and goes
        on.
        """
        return (None, 1.5 * self.opening_s), ("durable", self.cycle_s), ("begins", 0.02), ("committed", self.cycle_s)


def kill_engine(run: Run) -> None:
    folder, ledger = run.new_folder(), EngineLedger()
    died_in: Counter[str] = Counter()
    with Nursery("tests.crash.engine_lives") as nursery:
        moments = _take_pace(run, nursery, folder, ledger).moments()
        for number in range(1, run.rounds + 1):
            ledger.doing = "opening"
            life = nursery.bear("host", str(folder), number, tell=ledger.says)
            once, within_s = moments[number % len(moments)]
            run.counts.kills += life.kill(run.rng.uniform(0.0, within_s), once=once)
            died_in[ledger.doing] += 1
            ledger.look(folder, run.counts)
        nursery.bear("finish", str(folder), tell=ledger.says).end()
    ledger.look(folder, run.counts)
    run.counts.acknowledged += ledger.acknowledged
    if run.rounds >= 20:  # where it isn't by chance that none fell where it matters
        assert ledger.published > 1, "no life that was killed by chance was long enough to publish"
        assert died_in["stage"] + died_in["begins"] >= 3, f"too few kills fell into a cycle: {died_in}"
        _check_retaken(folder)


def _take_pace(run: Run, nursery: Nursery, folder: Path, ledger: EngineLedger) -> _Pace:
    """Of a life that is killed once it has ended a cycle."""
    born = time.monotonic()
    life = nursery.bear("host", str(folder), 0, tell=ledger.says)
    life.wait_for("durable")
    durable = time.monotonic()
    life.wait_for("cycle")
    ended = time.monotonic()
    run.counts.kills += life.kill(0.0)
    assert ledger.published, "a life that nobody killed has not published"
    ledger.look(folder, run.counts)
    return _Pace(durable - born, ended - durable)


class EngineLedger(Ledger):
    """Of a store whose records follow from more than their ids."""

    doing = ""
    published = 0

    def says(self, word: str) -> None:
        self.doing = word.split(maxsplit=1)[0]
        self.published += word == "cycle published"
        super().says(word)

    def look(self, folder: Path, counts: Counts, *, read_only: bool = False) -> None:
        """Everything acknowledged is there, what the current version says of itself is true, and so are the claims."""
        if not (folder / DATABASE).exists():
            assert not self.acknowledged
            return
        with Store.open(folder, read_only=read_only) as store:
            rated = {row.trajectory.id for row in store.iterate() if row.quality is not None}
            self.check_promises(rated, counts)
            self.check_cycles(store, counts)
            self.check_totals(store, counts)
            _check_versions(store, counts)


def _check_versions(store: Store, counts: Counts) -> None:
    """The files of the one in force are whole, and each was trained on what its cycle claimed."""
    current = store.current()
    if current.id != BASE_VERSION:
        try:
            Versions(store.path).verify(current)
        except SonaError as error:
            counts.lose(f"the files of version {current.id}: {error}")
    trained = Counter({version.cycle: version.trajectories for version in store.versions()})
    for report in store.reports(10_000):
        roles = Counter(claim.role for claim in store.claims(report.cycle))
        said = (report.funnel.trained, report.funnel.held_out)
        if said != (roles["train"], roles["held_out"]) or trained.get(report.cycle, roles["train"]) != roles["train"]:
            counts.miss(f"cycle {report.cycle} says that it took {said}, claimed are {dict(roles)}")


def _check_retaken(folder: Path) -> None:
    """What was left out and corrected since was taken by a later cycle, at least once in so many rounds."""
    with Store.open(folder, read_only=True) as store:
        then = sum(sum(report.funnel.left_out.values()) for report in store.reports(10_000))
        now = sum(claim.role == "left_out" for cycle in range(1, store.next_cycle()) for claim in store.claims(cycle))
    assert now < then, "no cycle took a corrected trajectory again"
