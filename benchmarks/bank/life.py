"""A bank that learns cycle after cycle: what each costs, and what has become of its patterns in the end."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.bank.agreement import Labels
from benchmarks.bank.mixture import WIDTH
from benchmarks.fast_loop.peer import FOLDER
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.vectors import unit_rows
from sona.checks import Float32
from sona.config import BankConfig

SCRIPT = Path(__file__).with_name("peer_life.mjs")
CYCLES = 100
EACH = 100
"""Trajectories of a cycle."""
GROUPS = 20
NEW_EVERY = 10
"""Cycles from one new group to the next, where there are any."""
NOISE = 1.0
FRESH = 2000
SAME = 0.98
"""Two centroids of a larger cosine stand for the same."""


@dataclass(frozen=True, eq=False)
class Traffic:
    """What arrives, and what is asked in the end. Rows have norm 1."""

    cycles: tuple[Float32, ...]
    """(EACH, WIDTH) each."""
    fresh: Float32
    """(FRESH, WIDTH) of all groups that there are in the end, none of them learnt from."""
    truth: Labels
    """(FRESH,) the group of each."""
    groups: int
    """In the end."""


@dataclass(frozen=True, eq=False)
class Lived:
    """After the last cycle."""

    seconds: tuple[float, ...]
    """CPU time of each cycle."""
    centroids: Float32
    """(patterns, WIDTH) of norm 1."""
    labels: Labels
    """(FRESH,) for each fresh row its nearest pattern, by number."""

    @property
    def second_s(self) -> float:
        """Median of the second to fourth cycle: one alone is noise, and the first has nothing to match with."""
        return statistics.median(self.seconds[1:4])

    @property
    def tenth_s(self) -> float:
        """Median of the tenth to twentieth: what only the first cycles do, such as grouping a sample, is done."""
        return statistics.median(self.seconds[9:20])

    @property
    def last_s(self) -> float:
        """Median of the last five."""
        return statistics.median(self.seconds[-5:])

    @property
    def duplicates(self) -> int:
        """Pairs of patterns whose centroids' cosine is above :data:`SAME`."""
        return int((self.centroids @ self.centroids.T > SAME)[np.triu_indices(len(self.centroids), 1)].sum())


def traffic(cycles: int, grows: bool, seed: int) -> Traffic:
    """So many cycles of :data:`GROUPS` groups, drawn evenly; one that ``grows`` gets another group each
    :data:`NEW_EVERY` cycles.
    """
    rng = np.random.default_rng(seed)
    groups = [GROUPS + (cycle // NEW_EVERY if grows else 0) for cycle in range(cycles)]
    centres = unit_rows(rng.standard_normal((groups[-1], WIDTH)).astype(np.float32))

    def draw(rows: int, among: int) -> tuple[Float32, Labels]:
        truth = rng.integers(among, size=rows)
        noise = NOISE / WIDTH**0.5 * rng.standard_normal((rows, WIDTH), dtype=np.float32)
        return unit_rows(centres[truth] + noise), truth.astype(np.intp)

    return Traffic(tuple(draw(EACH, among)[0] for among in groups), *draw(FRESH, groups[-1]), groups[-1])


def by_bank(given: Traffic, seed: int) -> Lived:
    """Ours, as it is by default."""
    bank, seconds = Bank(), []
    for cycle, rows in enumerate(given.cycles, start=1):
        members = [_member(f"t{cycle}-{place}", row) for place, row in enumerate(rows)]
        began = time.process_time()
        bank = bank.learn(members, BankConfig(), cycle=cycle, seed=seed).bank
        seconds.append(time.process_time() - began)
    ids = ["" if pattern is None else pattern.id for pattern in bank.nearest(given.fresh)]
    centroids = np.stack([pattern.vector() for pattern in bank.patterns])
    return Lived(tuple(seconds), centroids, np.unique(ids, return_inverse=True)[1])


def by_peer(given: Traffic) -> Lived:
    """@ruvector/sona in a process of its own, told how many groups there are in the end; it knows no seed."""
    with TemporaryDirectory() as folder:
        rows, found = Path(folder) / "rows.bin", Path(folder) / "centroids.bin"
        np.stack(given.cycles).astype("<f4").tofile(rows)
        command = ["node", str(SCRIPT), str(FOLDER), str(rows), str(found)]
        command += [str(size) for size in (len(given.cycles), EACH, WIDTH, given.groups)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        centroids = unit_rows(np.fromfile(found, dtype="<f4").reshape(-1, WIDTH))
    return Lived(tuple(told["seconds"]), centroids, nearest(centroids, given.fresh))


def nearest(centroids: Float32, rows: Float32) -> Labels:
    """For each of ``rows`` (n, width) the place of the centroid (m, width) of the largest cosine; all have norm 1."""
    return np.asarray((rows @ centroids.T).argmax(1))


def _member(name: str, row: Float32) -> Member:
    return Member(trajectory_id=name, embedding=row, quality=0.9, prompt=name, response="")
