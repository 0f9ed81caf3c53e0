"""Trajectories that are rated anew, from cycle to cycle: the bank in force counts each once, by its latest quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.checks import Float32
from sona.config import Config, CycleConfig
from sona.loops.cycle import CycleContext, run_cycle
from sona.loops.version_files import read_bank
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Feedback, Step, Trajectory

WIDTH = 8
CENTRES = np.random.default_rng(0).normal(size=(3, WIDTH))
CONFIG = Config(cycle=CycleConfig(min_trajectories=1))


def embedding(place: int) -> Float32:
    noise = np.random.default_rng(place).normal(size=WIDTH)
    return np.asarray(CENTRES[place % 3] + 0.1 * noise, np.float32)


def route(place: int) -> str:
    return f"tool:{place % 4}"


def trajectory(place: int) -> Trajectory:
    return Trajectory(
        id=str(place),
        messages=f"question {place}",
        response=f"answer {place}",
        embedding=embedding(place),
        steps=[Step(name=route(place))],
    )


class Hour(NamedTuple):
    """What comes before one cycle."""

    new: Sequence[float]
    """Qualities of new trajectories."""
    corrections: Sequence[tuple[int, float]]
    """Which of the earlier ones, and their quality from now on."""
    force: int
    """Which of the versions that there are is put in force before it, counted from the newest."""


class Known(NamedTuple):
    """What a version should have learned."""

    quality: dict[int, float]
    """By trajectory, as it was rated last before the latest of the version's cycles that took it."""
    cycles: tuple[tuple[int, tuple[int, ...]], ...]
    """Each of its cycles with what was new in it."""


class Host:
    """Rates, learns and rolls back, and keeps account of what each version should know."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folders = Store.open(folder), Versions(folder)
        self.count, self.latest = 0, dict[int, float]()
        self.heard = set[int]()
        """Trajectories with no feedback since a cycle took them."""
        self.known = {"v0": Known({}, ())}

    def hour(self, hour: Hour) -> None:
        versions = self.store.versions()
        self.store.set_current(versions[-1 - hour.force % len(versions)].id)
        new = [(self.count + place, quality) for place, quality in enumerate(hour.new)]
        self.count += len(new)
        corrections = [(place % self.count, quality) for place, quality in hour.corrections if self.count]
        feedback = [Feedback(trajectory_id=str(place), quality=quality) for place, quality in (*new, *corrections)]
        records: list[Trajectory | Feedback] = [*(trajectory(place) for place, _ in new), *feedback]
        assert self.store.append(records) == [None] * len(records)
        self.latest.update([*new, *corrections])
        self.heard -= {place for place, _ in corrections}
        before, cycle = self.store.current().id, self.store.next_cycle()
        report = run_cycle(CycleContext(self.store, self.folders, None, CONFIG))
        if report.version is None:
            return
        rated = [row for row in self.latest if row not in self.heard]
        assert report.funnel.collected == len(rated)
        self.heard |= set(rated)
        quality, cycles = self.known[before]
        first = tuple(row for row in self._in_order(cycle) if row not in quality)
        self.known[report.version] = Known(
            {**quality, **{row: self.latest[row] for row in rated}}, (*cycles, (cycle, first))
        )

    def _in_order(self, cycle: int) -> list[int]:
        return [claim.seq - 1 for claim in self.store.claims(cycle)]

    def check(self) -> None:
        """Every version's bank is that of its lineage's trajectories with the last quality of each."""
        for version in self.store.versions()[1:]:
            known, bank = self.known[version.id], read_bank(self.folders, version)
            same(bank, expected(known))
            for pattern in bank.patterns:
                for one in (*pattern.exemplars, *pattern.failures):
                    assert one.quality == known.quality[int(one.trajectory_id)]


def expected(known: Known) -> Bank:
    bank = Bank()
    for cycle, new in known.cycles:
        members = [Member(str(place), embedding(place), known.quality[place], "", "", (route(place),)) for place in new]
        bank = bank.learn(members, CONFIG.bank, cycle=cycle, seed=CONFIG.seed * 1_000_003 + cycle).bank
    return bank


def same(bank: Bank, other: Bank) -> None:
    assert (bank.learned, bank.strays) == (other.learned, other.strays)
    assert [(one.id, one.count) for one in bank.patterns] == [(one.id, one.count) for one in other.patterns]
    for mine, theirs in zip(bank.patterns, other.patterns, strict=True):
        assert mine.verdict.count == theirs.verdict.count
        assert mine.verdict.mean == pytest.approx(theirs.verdict.mean, abs=1e-6)
        assert mine.verdict.m2 == pytest.approx(theirs.verdict.m2, abs=1e-6)
        assert mine.routes.keys() == theirs.routes.keys()
        for name, verdict in mine.routes.items():
            assert verdict.count == theirs.routes[name].count
            assert verdict.mean == pytest.approx(theirs.routes[name].mean, abs=1e-6)


qualities = st.sampled_from([0.0, 0.25, 0.5, 1.0])
hours = st.builds(
    Hour,
    st.lists(qualities, max_size=12),
    st.lists(st.tuples(st.integers(0, 60), qualities), max_size=8),
    st.sampled_from([0, 0, 0, 1, 1, 2, 3]),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(hours, min_size=1, max_size=6))
def test_the_bank_is_as_if_each_had_had_its_last_quality_at_once(
    tmp_path_factory: pytest.TempPathFactory, all_hours: list[Hour]
) -> None:
    host = Host(tmp_path_factory.mktemp("store"))
    with host.store:
        for hour in all_hours:
            host.hour(hour)
        host.check()
