"""Approved answers get into the weights: once, by the gate, and without approval nothing does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace

import sona
from sona.candidate import MemoryWeight
from sona.config import CandidatesConfig, Config, SkillsConfig
from sona.errors import ConfigError, InTrainingError
from sona.loops.approved import moved_before
from sona.loops.cycle import NOT_APPROVED
from sona.types import CycleReport, Progress
from tests.engine.small import SMALL, open_small, record_task
from tests.reviews import ModelScorer, candidate, turn

COUNT = 24
ALONE = replace(
    SMALL,
    skills=SkillsConfig(mode="shared"),
    candidates=CandidatesConfig(min_approved=8),
    train=replace(SMALL.train, max_steps=60),
)


def score_turns(engine: sona.SyncEngine, count: int = COUNT, first: int = 0) -> list[int]:
    """Record turns, have them scored, and return the numbers of the candidates to review."""
    engine.candidates.watch(ModelScorer(engine._engine.model))
    for place in range(first, first + count):
        engine.record(turn(place))
    engine.flush()
    assert engine.candidates.wait_scored(60)
    return [one.id for one in engine.candidates.page().candidates]


def divergence(engine: sona.SyncEngine, count: int = COUNT) -> tuple[float, float]:
    """Mean nats by which the memories make the answers likelier, and mean nats of the answers without memories."""
    scorer = ModelScorer(engine._engine.model)
    found = [scorer.score_turn(turn(place))[0] for place in range(count)]
    bare = [scorer.log_prob(one.bare_ids, one.continuation_ids) for one in found]
    return float(np.mean([one.divergence for one in found])), float(np.mean(bare))


@dataclass(frozen=True)
class Moved:
    """A cycle of approved answers alone."""

    report: CycleReport
    before: tuple[float, float]
    after: tuple[float, float]
    approved: int


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moved") / "store"


@pytest.fixture(scope="module")
def moved(store: Path) -> Moved:
    with open_small(store, config=replace(ALONE, review="required")) as engine:
        found = score_turns(engine)
        before = divergence(engine)
        engine.candidates.approve(*found)
        report = engine.learn()
        return Moved(report, before, divergence(engine), len(found))


def test_the_answers_no_longer_depend_on_the_memories(moved: Moved) -> None:
    assert moved.approved >= 16, "else the memories were worth nothing from the start"
    assert moved.report.status == "published", moved.report.reason
    assert moved.before[0] > 3.0
    assert moved.after[0] < 0.5 * moved.before[0]
    assert moved.after[1] > moved.before[1] + 2.0, "the answers alone have got likelier, with no memory in sight"


def test_the_gate_judges_them_without_their_memories(moved: Moved) -> None:
    assert moved.report.gate is not None
    checks = {check.name: check for check in moved.report.gate.checks}
    assert checks["approved answers"].value > 0
    assert "base skills" in checks
    assert "gain" not in checks, "nothing was held out that could gain"
    assert moved.report.funnel.trained == 0
    assert moved.report.metrics["approved_trained"] == moved.approved
    assert moved.report.metrics["approved_nats_after"] < moved.report.metrics["approved_nats_before"]


def test_they_are_trained_on_once(moved: Moved, store: Path) -> None:
    with open_small(store, config=ALONE) as engine:
        counts = engine.candidates.page().counts
        assert (counts["trained"], counts["approved"]) == (moved.approved, 0)
        assert engine.learn().status == "skipped"
        one = engine.candidates.get(1)
        assert [change.state for change in one.changes] == ["new", "approved", "trained"]
        assert one.changes[-1].by == "cycle 1"


def test_a_known_answer_is_no_candidate_again(moved: Moved, store: Path) -> None:
    with open_small(store, config=ALONE) as engine:
        assert not score_turns(engine, 4)
        page = engine.candidates.page()
        assert page.seen.responses == 4
        assert page.counts["trained"] == moved.approved


def test_what_was_moved_is_replayed_as_long_as_its_version_is_in_force(moved: Moved, store: Path) -> None:
    """After the tests above, on the same store."""
    with open_small(store, config=replace(ALONE, review="required")) as engine:
        engine.candidates.approve(*score_turns(engine, 8, first=COUNT))
        report = engine.learn()
        assert report.status == "published", report.reason
        assert report.metrics["replayed"] > 0
        assert divergence(engine)[0] < 0.5 * moved.before[0], "what the first cycle moved is still there"
        engine.roll_back("v0")
        assert moved_before(engine._engine._started().store, CandidatesConfig(), np.random.default_rng(0)) == []
        assert engine.candidates.page().counts["trained"] == moved.approved + 8, "taken once, like claims"


def test_an_erasure_names_the_version_that_learned_a_candidate(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=ALONE) as engine:
        engine.candidates.approve(*score_turns(engine, 8))
        version = engine.learn().version
        erased = engine.erase("agent")
        assert erased.learned == (version,)
        assert engine.candidates.page().counts["trained"] == 0


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_an_approval_that_a_cycle_learns_from_stands_until_it_has_ended(
    tmp_path: Path, mode: Literal["thread", "process"]
) -> None:
    config = replace(ALONE, learner=replace(SMALL.learner, mode=mode))
    with open_small(tmp_path / "store", config=config) as engine:
        found = score_turns(engine, 10)
        taken, late, new = found[:8], found[8], found[9]
        engine.candidates.approve(*taken)
        refused: list[str] = []

        def change(progress: Progress) -> None:
            if progress.stage != "train" or refused:  # by then it has said what it has
                return
            for state in ("new", "rejected"):
                with pytest.raises(InTrainingError, match="cycle 1, which is under way") as caught:
                    engine.candidates.change(found[:1], state)
                refused.append(str(caught.value))
            assert engine.candidates.approve(taken[0])[0].state == "approved", "it is so already"
            engine.candidates.approve(late)
            assert engine.candidates.change([late], "new")[0].state == "new", "which came too late for this cycle"
            engine.candidates.reject(new)

        report = engine.learn(change)
        assert len(refused) == 2
        assert "try again once that has ended" in refused[0]
        assert report.status == "published", report.reason
        assert [engine.candidates.get(id).state for id in taken] == ["trained"] * 8, "no work was thrown away"
        assert engine.candidates.get(late).state == "new"


def test_while_a_cycle_may_still_take_an_approval_it_is_not_taken_back(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        store, held = engine._engine._started().store, engine._engine._cycles.in_training
        store.candidates.add([candidate(0), candidate(1)])
        engine.candidates.approve(1)
        with held.cycle(7):
            with pytest.raises(InTrainingError, match="candidate 1: cycle 7"):
                engine.candidates.reject(2, 1)
            assert engine.candidates.get(2).state == "new", "all or none"
            engine.candidates.reject(2)
            held.take([])
            engine.candidates.reject(1)
        engine.candidates.approve(1)
        engine.candidates.reject(1)


def test_memories_have_weights_of_their_own(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        engine.memories.put([MemoryWeight(key="k", weight=0.0, last_scored_ns=1, times=3)])
        assert [one.key for one in engine.memories.prune_candidates(0.01)] == ["k"]


def test_without_approval_nothing_is_trained_where_review_is_required(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=replace(ALONE, review="required")) as engine:
        score_turns(engine, 8)
        record_task(engine, 60, seed=5)
        report = engine.learn()
        assert report.funnel.trained == report.funnel.held_out == 0
        assert report.funnel.left_out == {NOT_APPROVED: 60}
        assert report.gate is None
        assert not engine._engine.model._versions.current.adapters, "the base alone answers"
        assert sum(pattern.count for pattern in engine.bank.patterns) + engine.bank.strays > 0, "the bank learns"
        engine.candidates.approve(*[one.id for one in engine.candidates.page().candidates])
        again = engine.learn()
        assert again.funnel.trained == 0
        assert again.metrics["approved_trained"] == 8


def test_what_nobody_approved_is_not_replayed_either_where_review_is_required(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=ALONE) as engine:
        record_task(engine, 60, seed=5)
        assert engine.learn().funnel.trained > 0
    with open_small(tmp_path / "store", config=replace(ALONE, review="required")) as engine:
        engine.candidates.approve(*score_turns(engine, 8))
        report = engine.learn()
        assert report.metrics["approved_nats_after"] < report.metrics["approved_nats_before"]
        assert report.metrics["replayed"] == 0
        assert report.gate is not None
        assert "earlier skills" in [check.name for check in report.gate.checks], "which must be kept all the same"


def test_they_share_a_batch_with_what_feedback_says(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=ALONE) as engine:
        engine.candidates.approve(*score_turns(engine, 4))
        record_task(engine, 60, seed=5)
        report = engine.learn()
        assert report.status == "published", report.reason
        assert report.funnel.trained > 0
        assert report.metrics["approved_trained"] == 4
        assert report.gate is not None
        assert {"gain", "approved answers"} <= {check.name for check in report.gate.checks}


def test_where_the_gate_says_no_they_stay_approved_and_after_three_go_back(tmp_path: Path) -> None:
    strict = replace(ALONE, gate=replace(SMALL.gate, min_gain=1.0))
    with open_small(tmp_path / "store", config=strict) as engine:
        found = score_turns(engine, 8)
        engine.candidates.approve(*found)
        states = []
        for _ in range(3):
            assert engine.learn().status == "rejected"
            states.append(engine.candidates.get(found[0]).state)
        assert states == ["approved", "approved", "new"]
        assert "the gate turned the version down" in engine.candidates.get(found[0]).changes[-1].note
        assert engine.learn().status == "skipped"


def test_it_learns_the_same_in_a_process_of_its_own(tmp_path: Path) -> None:
    apart = replace(ALONE, learner=replace(SMALL.learner, mode="process"))
    with open_small(tmp_path / "store", config=apart) as engine:
        engine.candidates.approve(*score_turns(engine, 8))
        report = engine.learn()
        assert report.status == "published", report.reason
        assert engine.candidates.page().counts["trained"] == 8


def test_few_approved_answers_wait_for_more(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=ALONE) as engine:
        engine.candidates.approve(*score_turns(engine, 3))
        assert engine.learn().status == "skipped"
        assert engine.candidates.page().counts["approved"] == 3


def test_what_is_too_long_is_turned_down_with_a_reason(tmp_path: Path) -> None:
    short = replace(ALONE, train=replace(ALONE.train, max_tokens=8))
    with open_small(tmp_path / "store", config=short) as engine:
        found = score_turns(engine, 8)
        engine.candidates.approve(*found)
        report = engine.learn()
        assert (report.status, report.reason) == ("rejected", "nothing that is approved can be trained on")
        assert engine.candidates.get(found[0]).changes[-1].note == "longer than 8 tokens"


def test_review_and_fast_weights_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="nobody has approved"):
        Config(review="required", micro=replace(Config().micro, enabled=True))
