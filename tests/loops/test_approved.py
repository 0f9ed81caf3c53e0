"""Approved answers in a batch, in a lesson and before the gate."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.config import GateConfig, TrainConfig
from sona.learn.dataset import Example
from sona.loops.approved import settled_by
from sona.loops.gate import Evidence, decide
from sona.loops.mixture import Mixture, Past
from sona.loops.roster import FEW, LATER
from sona.loops.screen import Ready
from sona.loops.sorting import BASE
from sona.ports import Stored
from sona.types import Trajectory

SETTINGS = TrainConfig(batch_size=16, passes=4, max_steps=1000, min_steps=1)


def examples(*firsts: int) -> list[Example]:
    return [Example(np.asarray([first], np.int32), np.asarray([9], np.int32)) for first in firsts]


def mixture(new: int, approved: int, moved: int = 0, share: float = 0.25) -> Mixture:
    rng = np.random.default_rng(0)
    past = Past([], None, None, None, SETTINGS, rng, examples(*range(2000, 2000 + moved)))  # type: ignore[arg-type]
    own = examples(*range(1000, 1000 + approved))
    return Mixture(examples(*range(new)), past, [], SETTINGS, rng, None, own, share)


def kinds(batch: list[Example]) -> Counter[str]:
    return Counter("new" if one.prompt[0] < 1000 else "approved" if one.prompt[0] < 2000 else "moved" for one in batch)


def test_they_have_a_share_of_their_own() -> None:
    assert kinds(mixture(50, 10).draw(0)) == {"new": 12, "approved": 4}
    assert kinds(mixture(50, 10, moved=5).draw(0)) == {"new": 4, "approved": 4, "moved": 8}


def test_alone_they_have_all_but_replay() -> None:
    assert kinds(mixture(0, 10).draw(0)) == {"approved": 16}
    assert kinds(mixture(0, 10, moved=5).draw(0)) == {"approved": 8, "moved": 8}


def test_without_them_a_batch_is_as_it_was() -> None:
    assert kinds(mixture(50, 0).draw(0)) == {"new": 16}


@given(new=st.integers(0, 60), approved=st.integers(0, 60), share=st.floats(0.01, 0.9))
def test_each_is_seen_about_as_often_as_the_passes_say(new: int, approved: int, share: float) -> None:
    if not new + approved:
        return
    one = mixture(new, approved, share=share)
    seen = Counter(int(each.prompt[0]) for step in range(one.steps) for each in one.draw(step))
    assert min(seen[place] for place in (*range(new), *range(1000, 1000 + approved))) >= SETTINGS.passes - 1


def evidence(approved: list[float], *, alone: bool, gain: float = 0.1) -> Evidence:
    nothing = np.empty(0)
    new = nothing if alone else np.full(20, gain)
    return Evidence(new, nothing, nothing, (), 0.0, np.ones(4), np.zeros(4), np.asarray(approved), alone)


@pytest.mark.parametrize(
    ("approved", "alone", "gain", "passed"),
    [
        ([0.2] * 10, True, 0.0, True),
        ([0.0] * 10, True, 0.0, False),
        ([0.5] + [-0.1] * 9, True, 0.0, False),
        ([0.2] * 10, False, 0.1, True),
        ([0.2] * 10, False, -0.1, False),
        ([-0.2] * 10, False, 0.1, False),
    ],
)
def test_the_gate_wants_a_gain_of_both(approved: list[float], alone: bool, gain: float, passed: bool) -> None:
    decision = decide(evidence(approved, alone=alone, gain=gain), GateConfig(), 0)
    assert decision.passed is passed
    assert ("gain" in [check.name for check in decision.checks]) is not alone


def test_what_becomes_of_each_is_told() -> None:
    made = Stored(seq=0, trajectory=Trajectory(prompt_ids=[1], response_ids=[2]), quality=1.0)
    ids = np.asarray([1], np.int32)
    ready = [
        Ready(Stored(seq=-seq, trajectory=made.trajectory, quality=1.0), ids, ids, ids, True) for seq in range(1, 6)
    ]
    owners = {-1: "s1", -2: "s2", -3: LATER, -4: FEW, -5: BASE}
    done = settled_by(ready, owners, ["s2"], admitted=True, learned=True, why="")
    assert {one.seq: one.state for one in done} == {1: "trained", 2: "rejected", 5: "new"}
    refused = settled_by(ready, owners, ["s2"], admitted=False, learned=True, why="base skills 0.1")
    assert {one.seq: one.state for one in refused} == {1: "approved", 2: "rejected", 5: "new"}
    assert "base skills 0.1" in refused[0].note
