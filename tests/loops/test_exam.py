"""What a candidate is asked, and what its answers prove."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed

from sona.bank.router import SkillRouter
from sona.bank.skills import SHARED, Skill, SkillSet
from sona.checks import Float32
from sona.learn.dataset import Example
from sona.learn.likelihood import Scores, empty_scores
from sona.loops.exam import USUAL, Exam, Marks, evidence_of, marks_of, serve_as_well, with_usual
from sona.loops.examination import Questions, System, between, nats
from sona.loops.screen import Ready
from sona.ports import Stored
from sona.types import Message, Trajectory


def known(*names: str, **adapters: str) -> SkillSet:
    skills = SkillSet()
    for name in names:
        skill = Skill(id=name, adapter=adapters.get(name, name), born_cycle=1, touched_cycle=1)
        skills = skills.put(skill)
    return skills


def routed(skills: SkillSet, *adapters: str) -> SkillSet:
    """With a router that sends the k-th unit vector to the k-th adapter, and what is zero to the base."""
    count = len(adapters)
    weights = np.hstack([np.zeros((count, 1)), 2 * np.eye(count)]).astype(np.float32)
    one = np.ones(count, np.float32)
    router = SkillRouter(adapters, 0 * one, one, weights, np.asarray([0, *(-1 * one)], np.float32), 0.0)
    return SkillSet(skills.skills, skills.rows, router)


def features(*places: int, width: int = 2) -> Float32:
    """A unit vector for each place from 1, zeros for 0."""
    return np.vstack([np.zeros(width), np.eye(width)])[list(places)].astype(np.float32)


def questions(rows: Float32 | None, count: int | None = None) -> Questions:
    size = len(rows) if rows is not None else count or 0
    return Questions([Example(np.asarray([1]), np.asarray([2, 3])) for _ in range(size)], rows)


def asked(*texts: str) -> list[Ready]:
    return [
        Ready(
            Stored(
                seq=place + 1,
                trajectory=Trajectory(messages=[Message(role="user", content=text)], response="r"),
                quality=1.0,
            ),
            np.asarray([1], np.int32),
            np.asarray([2, 3], np.int32),
            np.asarray([1], np.int32),
        )
        for place, text in enumerate(texts)
    ]


def exam(new: Sequence[str] = (), owners: Sequence[str] = (), earlier: Sequence[int] = (), probes: int = 0) -> Exam:
    return Exam(
        asked=asked(*new),
        owners=owners or ["s1"] * len(new),
        new=questions(None, len(new)),
        earlier=questions(features(*earlier)),
        earlier_keys=[f"e{place}".encode() for place in range(len(earlier))],
        earlier_skills=[f"s{place}" if place else "" for place in earlier],
        probes=questions(features(*[0] * probes)),
    )


def scores(*probabilities: float, right: float = 1.0) -> Scores:
    """Answers of two tokens, each of this probability."""
    found = empty_scores(len(probabilities))
    found.tokens[:] = 2
    found.log_prob[:] = 2 * np.log(probabilities)
    found.share_right[:] = right
    found.exact[:] = np.asarray(probabilities) > 0.5
    for place, value in enumerate(probabilities):
        found.token_log_prob[place] = np.log(np.full(2, value, np.float32))
        found.token_right[place] = np.asarray([True, value > 0.5])
    return found


NONE = scores()


def test_answers_go_to_whom_the_router_picks() -> None:
    skills = routed(known("s1", "s2"), "s1", "s2")
    assert questions(features(0, 1, 2, 1)).answered_by(skills) == [None, "s1", "s2", "s1"]
    assert questions(None, 2).answered_by(known(SHARED)) == [SHARED, SHARED]
    assert questions(None, 2).answered_by(SkillSet()) == [None, None]
    assert questions(features()).answered_by(skills) == []
    assert questions(features(0, 1, 2)).at([2, 0]).answered_by(skills) == ["s2", None]


def test_only_what_may_have_changed_is_asked_again() -> None:
    """Adapter s1 learned, s2 did not; where nothing was routed to s2 before, its queries change hands."""
    before, after = routed(known("s1"), "s1", "s1"), routed(known("s1", "s2"), "s1", "s2")
    given = exam(earlier=[0, 1, 2, 2], probes=3)
    found = given.where_it_matters(System(after, {}), System(after, {}), {"s1"})
    assert (len(found.earlier.examples), found.earlier_skills, found.earlier_keys) == (1, ["s1"], [b"e1"])
    assert (found.spared_earlier, found.spared_probes, len(found.probes.examples)) == (3, 3, 0)
    moved = given.where_it_matters(System(before, {}), System(after, {}), {"s9"})
    assert moved.earlier_skills == ["s2", "s2"]
    alike = given.where_it_matters(System(SkillSet(), {}), System(known(SHARED), {}), {SHARED})
    assert (alike.spared_earlier, len(alike.probes.examples)) == (0, 3), "a shared adapter answers everything"


def test_what_was_spared_counts_as_kept() -> None:
    given = exam(["a"], earlier=[0, 1, 2, 2], probes=3)
    system = System(routed(known("s1", "s2"), "s1", "s2"), {})
    given = given.where_it_matters(system, system, {"s1"})
    before, after = Marks(scores(0.5), scores(0.9), NONE), Marks(scores(0.75), scores(0.8, right=0.5), NONE)
    found = evidence_of(given, Marks(scores(0.1), scores(0.1), NONE), before, after, np.zeros(0), -0.01)
    assert (found.earlier_before.tolist(), found.earlier_after.tolist()) == ([1, 1, 1, 1], [0.5, 1, 1, 1])
    assert len(found.earlier_skills) == 4
    assert (found.probes_kept.tolist(), found.probes_kl.tolist(), found.debt) == ([1, 1, 1], [0, 0, 0], -0.01)


def test_the_gain_of_a_question_is_the_mean_over_its_answers() -> None:
    given = exam(["a", "b", "a"])
    before, after = scores(0.5, 0.5, 0.5), scores(0.75, 0.25, 0.65)
    found = evidence_of(
        given, Marks(before, NONE, NONE), Marks(before, NONE, NONE), Marks(after, NONE, NONE), np.zeros(0), 0.0
    )
    assert found.gain.tolist() == pytest.approx([0.2, -0.25])


def test_the_base_s_own_tokens_count_by_how_sure_it_was() -> None:
    """Of two tokens the candidate chooses the first alone; the base was sure of both alike, or of the second."""
    given = exam(["a"], probes=2)
    base = scores(0.9, 0.9)
    base.token_log_prob[1] = np.log(np.asarray([0.1, 0.9], np.float32))
    before, after = (Marks(scores(0.5), NONE, part) for part in (base, scores(0.2, 0.2)))
    found = evidence_of(given, before, before, after, np.asarray([0.3, 0.1]), 0.0)
    assert found.probes_kept.tolist() == pytest.approx([0.5, 0.1])
    assert found.probes_kl.tolist() == [0.3, 0.1]


def test_marks_tell_of_what_there_is() -> None:
    metrics = marks_of(*(Marks(scores(p, p), NONE, NONE) for p in (0.1, 0.4, 0.8)))
    assert set(metrics) == {f"new_{what}_{who}" for what in ("exact", "nats") for who in ("base", "before", "after")}
    assert metrics["new_nats_after"] == pytest.approx(-np.log(0.8))
    assert (metrics["new_exact_before"], metrics["new_exact_after"]) == (0.0, 1.0)


def test_a_skill_s_usual_losses_are_its_last_ones() -> None:
    skills = known("s1", "s2").put(changed(known("s1").skills[0], merged=("s9",), usual=(9.0,) * (USUAL - 1)))
    given = exam(["a", "b", "c"], ["s1", "s9", "s2"])
    first, second = with_usual(skills, given, Marks(scores(0.5, 0.25, 1.0), NONE, NONE)).skills
    assert len(first.usual) == USUAL
    assert first.usual[-3:] == pytest.approx((9.0, -np.log(0.5), -np.log(0.25)))
    assert second.usual == pytest.approx((0.0,))


# ------------------------------------------------------------------------------------------------ who serves as well


@dataclass
class Adapters:
    """The probability of each answer's tokens by adapter."""

    by_adapter: Mapping[str, float]

    def score(self, examples: Sequence[Example], answered_by: Sequence[str], adapters: Any, stage: str) -> Scores:
        assert set(answered_by) <= set(adapters)
        return scores(*(self.by_adapter[name] for name in answered_by))


def served(by_adapter: dict[str, float], touched: Sequence[str] = ("s2",), count: int = 8) -> dict[str, str]:
    skills = known(*by_adapter)
    given = exam(["q"] * count, list(touched) * count if len(touched) == 1 else [*touched] * (count // len(touched)))
    system = System(skills, {name: {} for name in by_adapter})
    after = serve_as_well(system, touched, given, Adapters(by_adapter))  # type: ignore[arg-type]
    return {skill.id: skill.adapter for skill in after.skills}


def test_a_skill_that_another_adapter_serves_as_well_goes_over_to_it() -> None:
    assert served({"s1": 0.9, "s2": 0.9}) == {"s1": "s1", "s2": "s1"}
    assert served({"s1": 0.895, "s2": 0.9}) == {"s1": "s1", "s2": "s1"}


@pytest.mark.parametrize(
    ("by_adapter", "count"),
    [
        ({"s1": 0.8, "s2": 0.9}, 8),  # likely, but less so
        ({"s1": 0.1, "s2": 0.9}, 8),
        ({"s1": 0.9, "s2": 0.4}, 8),  # not learned yet
        ({"s1": 0.9, "s2": 0.9}, 7),  # too few answers to say so
        ({"s2": 0.9}, 8),  # nobody else
    ],
)
def test_otherwise_it_keeps_its_own(by_adapter: dict[str, float], count: int) -> None:
    assert served(by_adapter, count=count) == {name: name for name in by_adapter}


def test_two_skills_never_change_places() -> None:
    assert set(served({"s1": 0.9, "s2": 0.9}, ["s1", "s2"], count=16).values()) == {"s2"}


def test_nats_are_a_token_s_and_between_is_on_the_line() -> None:
    assert nats(scores(0.5, 0.25)).tolist() == pytest.approx([np.log(2), np.log(4)])
    old, new = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}
    assert between(old, new, 0.25)["w"].tolist() == [0.25, 2.5]
    assert between(old, new, 1.0)["w"].tolist() == [1.0, 4.0]
