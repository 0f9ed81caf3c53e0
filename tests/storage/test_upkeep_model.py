"""Any sequence of adding, rating, learning, pruning and erasing leaves what a plain model in Python says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from sona.config import StoreConfig
from sona.ports import Claim, Role
from sona.storage.claims import DRAWN, ROLES
from sona.storage.retention import NS_A_DAY, Limits
from sona.storage.store import Store
from sona.types import Feedback, Outcome, Step, Trajectory, Version
from tests.storage.records import add, ask, report

IN_BLOBS = StoreConfig(blob_batch_bytes=0, blob_file_bytes=4096)
NOW = 1_800_000_000 * 10**9
SOURCES = ("a", "b", "c")
OUTCOMES: tuple[Outcome, ...] = ("completed", "failed", "abandoned")
SENT = st.tuples(
    st.sampled_from(SOURCES),
    st.integers(0, 9),  # days ago
    st.lists(st.sampled_from([None, 0.25, -1.0]), max_size=2),
    st.sampled_from(OUTCOMES),
    st.sampled_from([None, 0.0, 0.3, 0.3, 1.0]),
)


@dataclass
class Known:
    """A trajectory, as the model has it."""

    record: Trajectory
    feedback: list[tuple[int, float]] = field(default_factory=list)
    """Each with its place in the order of arrival."""
    claim: Claim | None = None
    cycle: int = 0

    @property
    def new_by(self) -> int | None:
        """The feedback that makes it new to a cycle."""
        if self.claim is None:
            return self.feedback[0][0] if self.feedback else None
        if self.claim.role != "left_out":
            return None
        return next((seq for seq, _ in self.feedback if seq > (self.claim.feedback_seq or 0)), None)


class Upkeep(RuleBasedStateMachine):
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, Known] = {}
        self.parents: dict[str, str | None] = {"v0": None}
        self.learned: dict[str, set[int]] = {source: set() for source in SOURCES}
        self.feedbacks = self.added = self.cycles = 0

    @initialize()
    def open(self) -> None:
        Upkeep.number += 1
        self.store = Store.open(self.folder / str(Upkeep.number), config=IN_BLOBS)
        self.add([(SOURCES[number % 3], number, [0.25], "completed", 0.3) for number in range(9)])

    number = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.check()
            self.store.close()

    # What is done

    @rule(sent=st.lists(SENT, min_size=1, max_size=6))
    def add(self, sent: list[tuple[str, int, list[float | None], Outcome, float | None]]) -> None:
        for source, days, rewards, outcome, quality in sent:
            self.added += 1
            record = Trajectory(
                id=f"t{self.added}",
                source=source,
                created_ns=NOW - days * NS_A_DAY,
                messages=ask("question"),
                response="answer",
                steps=[Step(name="tool", reward=reward, at_ns=1) for reward in rewards],
                outcome=outcome,
            )
            add(self.store, [record])
            self.known[self.added] = Known(record)
            if quality is not None:
                self.rate(self.added, quality)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), quality=st.sampled_from([0.1, 0.5, 0.9]))
    def rate_again(self, data: st.DataObject, quality: float) -> None:
        self.rate(data.draw(st.sampled_from(sorted(self.known))), quality)

    def rate(self, seq: int, quality: float) -> None:
        self.feedbacks += 1
        one = self.known[seq]
        add(self.store, [Feedback(trajectory_id=one.record.id, quality=quality, id=f"f{self.feedbacks}", at_ns=1)])
        one.feedback.append((self.feedbacks, quality))

    @rule(data=st.data(), limit=st.integers(4, 30), publish=st.booleans())
    def learn(self, data: st.DataObject, limit: int, publish: bool) -> None:
        self.cycles += 1
        claims = []
        for row in self.store.collect(limit).rows:
            role = data.draw(st.sampled_from((*ROLES, "train")))
            skill, pattern = data.draw(st.sampled_from(["", "s1", "s2"])), data.draw(st.sampled_from(["", "p1", "p2"]))
            claims.append(
                Claim(seq=row.seq, role=role, feedback_seq=row.feedback_seq, skill=skill, pattern=pattern),
            )
            one = self.known[row.seq]
            one.claim, one.cycle = claims[-1], self.cycles
            if role == "train":
                self.learned[one.record.source].add(self.cycles)
        parent, name = self.store.current().id, f"v{self.cycles}"
        version = Version(id=name, parent=parent, cycle=self.cycles, created_ns=1, digest="00")
        if publish:
            self.parents[name] = parent
            self.store.commit_cycle(
                report(self.cycles, status="published", parent=parent, version=name), claims, version
            )
        else:
            self.store.commit_cycle(report(self.cycles, parent=parent), claims, None)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        self.store.set_current(data.draw(st.sampled_from(sorted(self.parents))))

    @rule(days=st.integers(0, 8), newest=st.integers(0, 12), per_source=st.integers(0, 6), unlearned=st.booleans())
    def prune(self, days: int, newest: int, per_source: int, unlearned: bool) -> None:
        beyond = self.beyond(days, newest, per_source)
        gone = [seq for seq in beyond if not unlearned or self.is_taken(seq)]
        done = self.store.prune(Limits(days, newest, per_source, unlearned), NOW)
        assert (done.trajectories, done.unlearned) == (len(gone), len(beyond) - len(gone))
        self.forget(gone)

    @rule(source=st.sampled_from(SOURCES))
    def erase(self, source: str) -> None:
        erasure = self.store.erasure(source)
        erasure.begin()
        erasure.delete_rows()
        assert set(erasure.forget()) == self.versions_of(source)
        erasure.end()
        self.learned[source] = set()
        self.forget([seq for seq, one in self.known.items() if one.record.source == source])

    def forget(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            del self.known[seq]

    @rule()
    def look(self) -> None:
        self.check()

    # What the model says

    def beyond(self, days: int, newest: int, per_source: int) -> list[int]:
        seqs = sorted(self.known)
        kept = set(seqs[-newest:]) if newest else set(seqs)
        if per_source:
            own = [[seq for seq in seqs if self.known[seq].record.source == source] for source in SOURCES]
            kept &= {seq for one in own for seq in one[-per_source:]}
        if days:
            kept &= {seq for seq in seqs if self.known[seq].record.created_ns >= NOW - days * NS_A_DAY}
        return [seq for seq in seqs if seq not in kept]

    def is_taken(self, seq: int) -> bool:
        return self.known[seq].claim is not None and self.known[seq].new_by is None

    def versions_of(self, source: str) -> set[str]:
        cycles = self.learned[source]
        rejected = [cycle for cycle in cycles if f"v{cycle}" not in self.parents]
        found: set[str] = set()
        for name, parent in self.parents.items():
            number = int(name[1:])
            if number in cycles or parent in found or any(number > cycle for cycle in rejected):
                found.add(name)
        return found

    def stands(self, cycle: int) -> bool:
        at: str | None = self.store.current().id
        lineage = set()
        while at is not None:
            lineage.add(at)
            at = self.parents[at]
        return f"v{cycle}" not in self.parents or f"v{cycle}" in lineage

    # Whether it is so

    def check(self) -> None:
        rows = list(self.store.iterate())
        assert [row.seq for row in rows] == sorted(self.known)
        assert [row.trajectory for row in rows] == [self.known[row.seq].record for row in rows]
        new = sorted((one.new_by, seq) for seq, one in self.known.items() if one.new_by is not None)
        assert [row.seq for row in self.store.collect(1000).rows] == [seq for _, seq in new]
        self.check_counts()
        self.check_sources()
        for role in DRAWN:
            self.check_replay(role)

    def check_counts(self) -> None:
        counts, all_ = self.store.counts(), self.known.values()
        roles = Counter(one.claim.role for one in all_ if one.claim is not None and one.new_by is None)
        assert (counts.trained, counts.held_out, counts.left_out) == tuple(roles[role] for role in ROLES)
        assert counts.trajectories == len(all_)
        assert counts.feedback == sum(len(one.feedback) for one in all_)
        assert counts.uncollected == sum(one.new_by is not None for one in all_)
        assert counts.waiting_for_feedback == sum(not one.feedback for one in all_)

    def check_sources(self) -> None:
        found = {row.source: row for row in self.store.sources()}
        assert set(found) == {one.record.source for one in self.known.values()}
        for source, row in found.items():
            own = [one for one in self.known.values() if one.record.source == source]
            rewards = [step.reward for one in own for step in one.record.steps if step.reward is not None]
            qualities = [one.feedback[-1][1] for one in own if one.feedback]
            assert (row.trajectories, row.rewards, row.rated) == (len(own), len(rewards), len(qualities))
            assert row.steps == sum(len(one.record.steps) for one in own)
            assert row.mean_reward == (pytest.approx(np.mean(rewards)) if rewards else None)
            assert row.mean_quality == (pytest.approx(np.mean(qualities)) if qualities else None)
            assert row.outcomes == dict(Counter(one.record.outcome for one in own))

    def check_replay(self, role: Role) -> None:
        taken = {
            seq: one.claim
            for seq, one in self.known.items()
            if one.claim is not None and one.claim.role == role and self.stands(one.cycle)
        }
        for skills in (None, ["s1"], ["", "s2"]):
            wanted = {seq for seq, claim in taken.items() if skills is None or claim.skill in skills}
            assert self.store.replayable(role, skills=skills) == len(wanted)
            for balanced in (False, True):
                rng = np.random.default_rng(0)
                rows = self.store.sample(role, 12 * len(wanted), rng, skills=skills, balanced=balanced)
                drawn = {row.seq for row in rows}
                assert drawn <= wanted
                assert bool(drawn) == bool(wanted)
        for cycle in range(1, self.cycles + 1):
            claims = [one.claim for one in self.known.values() if one.cycle == cycle and one.claim is not None]
            found = self.store.claims(cycle)
            assert sorted(claims, key=lambda claim: claim.seq) == sorted(found, key=lambda claim: claim.seq)


def test_it_agrees_with_the_model(tmp_path: Path) -> None:
    Upkeep.folder = tmp_path
    run_state_machine_as_test(Upkeep, settings=settings(max_examples=60, stateful_step_count=25))
