"""The store with its writer and journal against a model in plain Python, step by step as hypothesis chooses.

A kill is a copy of the folder as it lies there at that moment, while the old host is still at work; the next one opens
the copy.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from sona.ports import Role
from sona.storage.layout import BLOBS
from sona.storage.mapped import open_journal
from sona.storage.store import DATABASE, Store
from sona.storage.writer import Writer
from sona.types import BASE_VERSION, Feedback, Trajectory
from tests.crash.counts import Counts
from tests.crash.host import SMALL
from tests.crash.run import Run
from tests.storage.records import feedback, run_cycle, trajectory

NAMES = [f"t{number}" for number in range(12)]
STRANGER = "stranger"
"""No trajectory has this id, ever."""
QUALITIES = (0.25, 0.5, 1.0)
GIVEN = [f"f{number}" for number in range(16)]


def written(name: str, variant: int) -> Trajectory:
    """Two variants differ in content, under one id."""
    return replace(trajectory(name), response=f"answer {variant} " * (1 if name < NAMES[6] else 2_000))


@dataclass
class Model:
    """What the store must hold once all that was put is stored."""

    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    """In the order of arrival."""
    feedback: dict[str, Feedback] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    """The role of each trajectory's claim."""
    taken_by: dict[str, str] = field(default_factory=dict)
    """The feedback that it was claimed by."""
    versions: list[str] = field(default_factory=lambda: [BASE_VERSION])
    current: str = BASE_VERSION
    cycles: int = 0

    def put(self, record: Trajectory | Feedback) -> None:
        """The first of an id stays; feedback needs its trajectory."""
        if isinstance(record, Trajectory):
            self.trajectories.setdefault(record.id, record)
        elif record.trajectory_id in self.trajectories:
            self.feedback.setdefault(record.id, record)

    def given(self, name: str) -> list[Feedback]:
        return [one for one in self.feedback.values() if one.trajectory_id == name]

    def new(self) -> set[str]:
        """What a cycle would collect."""
        return {name for name in self.trajectories if self._is_new(name)}

    def _is_new(self, name: str) -> bool:
        given = self.given(name)
        if not given:
            return False
        role = self.taken.get(name)
        return role is None or (role == "left_out" and given[-1].id != self.taken_by[name])


class _Gate:
    """The store as a writer sees it; while it is shut nothing is stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = threading.Lock()

    def append(self, records: Sequence[Trajectory | Feedback]) -> Sequence[Exception | None]:
        with self.open:
            return self._store.append(records)


class Machine(RuleBasedStateMachine):
    """Steps, and what holds after each."""

    counts = Counts()

    @initialize()
    def begin(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="sona-model-"))
        self._lives = 0
        self._folder = self._scratch / "0"
        self._folder.mkdir()
        self.model = Model()
        self._waits = False  # whether anything was put since the last flush
        self._doubtful = set[str]()  # trajectories of which other content waits
        self._open()

    def _open(self) -> None:
        self.store = Store.open(self._folder, config=SMALL)
        self._gate = _Gate(self.store)
        self.writer = Writer(self._gate, SMALL, open_journal(self._folder, SMALL))

    def _put(self, record: Trajectory | Feedback) -> None:
        assert self.writer.put(record)
        self.model.put(record)
        self._waits = True
        type(self).counts.acknowledged += 1

    def _all_is_stored(self) -> None:
        self._waits = False
        self._doubtful.clear()

    @rule(name=st.sampled_from(NAMES), variant=st.sampled_from([0, 0, 0, 1]))
    def put_trajectory(self, name: str, variant: int) -> None:
        record = written(name, variant)
        if self.model.trajectories.get(name, record) != record:
            self._doubtful.add(name)
        self._put(record)

    @rule(id=st.sampled_from(GIVEN), quality=st.sampled_from(QUALITIES), data=st.data())
    def put_feedback(self, id: str, quality: float, data: st.DataObject) -> None:
        """For a trajectory that came before, and of which no other content waits: whether the feedback is of that one
        depends on whether both are in one batch, which nobody knows.
        """
        names = [name for name in self.model.trajectories if name not in self._doubtful]
        name = data.draw(st.sampled_from([*names, STRANGER]))
        self._put(feedback(name, quality, id=id))

    @precondition(lambda self: self._waits)
    @rule()
    def flush(self) -> None:
        self.writer.flush(30.0)
        self._all_is_stored()

    @rule(
        role=st.sampled_from(["train", "held_out", "left_out"]), publish=st.booleans(), limit=st.sampled_from([2, 100])
    )
    def cycle(self, role: Role, publish: bool, limit: int) -> None:
        self.writer.flush(30.0)
        self._all_is_stored()
        rows = self.store.collect(limit).rows
        assert {row.trajectory.id for row in rows} <= self.model.new()
        assert len(rows) == min(limit, len(self.model.new()))
        publish = publish and f"v{self.store.next_cycle()}" not in self.model.versions
        run_cycle(self.store, publish=publish, role=role, limit=limit)
        self.model.cycles += 1
        type(self).counts.acknowledged += 1
        for row in rows:
            self.model.taken[row.trajectory.id] = role
            self.model.taken_by[row.trajectory.id] = self.model.given(row.trajectory.id)[-1].id
        if publish:
            self.model.current = f"v{self.model.cycles}"
            self.model.versions.append(self.model.current)

    @precondition(lambda self: len(self.model.versions) > 1)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.model.versions))
        assert self.store.set_current(version).id == version
        self.model.current = version

    @rule()
    def close(self) -> None:
        self.writer.close()
        self.store.close()
        self._all_is_stored()
        self._open()

    @rule()
    def kill(self) -> None:
        self._lives += 1
        after = self._scratch / str(self._lives)
        with self._gate.open:  # no commit is half done: the files can't be copied all at once
            _copy(self._folder, after)
        self._end()
        self._folder = after
        type(self).counts.faults += 1
        self._open()
        self._waits = True

    @invariant()
    def nothing_is_wrong_and_nothing_twice(self) -> None:
        for row in self.store.iterate():
            assert row.trajectory == self.model.trajectories[row.trajectory.id]
        claims = [claim for cycle in range(1, self.store.next_cycle()) for claim in self.store.claims(cycle)]
        assert len({claim.seq for claim in claims}) == len(claims)
        assert self.store.current().id == self.model.current
        assert [one.id for one in self.store.versions()] == self.model.versions

    @invariant()
    def all_is_there_once_it_was_flushed(self) -> None:
        if self._waits:
            return
        rows = list(self.store.iterate())
        assert [row.trajectory for row in rows] == list(self.model.trajectories.values())
        for row in rows:
            given = self.model.given(row.trajectory.id)
            assert self.store.feedback_of(row.trajectory.id) == given
            assert row.quality == (given[-1].quality if given else None)
        assert {row.trajectory.id for row in self.store.collect(1000).rows} == self.model.new()
        counts = self.store.counts()
        roles = list(self.model.taken.values())
        assert (counts.trained, counts.held_out) == (roles.count("train"), roles.count("held_out"))
        assert counts.cycles == self.model.cycles
        assert counts.uncollected == len(self.model.new())

    def teardown(self) -> None:
        if hasattr(self, "_scratch"):
            self._end()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _end(self) -> None:
        self.writer.close()
        self.store.close()


def _copy(folder: Path, after: Path) -> None:
    """As a kill leaves it; the journal first, since what is in it may be in the store as well."""
    (after / "journal").mkdir(parents=True)
    for path in (folder / "journal").glob("*.seg"):
        try:
            shutil.copy(path, after / "journal" / path.name)
        except FileNotFoundError:  # the writer has just let go of it: what it held is in the store
            continue
    if (folder / BLOBS).exists():
        shutil.copytree(folder / BLOBS, after / BLOBS)
    for name in (DATABASE, f"{DATABASE}-wal"):
        if (folder / name).exists():
            shutil.copy(folder / name, after / name)


def follow_the_model(run: Run) -> None:
    """So many runs of 30 steps; the first step that is not as in the model counts, in its shortest form."""
    Machine.counts = run.counts
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=run.rounds, stateful_step_count=30, deadline=None, derandomize=True, database=None
            ),
        )
    except AssertionError as error:
        run.counts.miss(f"the store is not as the model says: {error}"[:2000])
