"""Who learns what: new answers, what of the past still holds for them, and what is to be unlearned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed

from sona.bank.skills import SHARED, Skill, SkillSet
from sona.config import Config, TrainConfig
from sona.learn.dataset import Example
from sona.learn.ewc import initial_state
from sona.learn.likelihood import Scores, empty_scores
from sona.loops.lesson import AdapterState
from sona.loops.lesson_plan import Plan, plan_lessons
from sona.loops.mixture import Scope
from sona.loops.roster import Roster
from sona.loops.screen import Ready
from sona.loops.sorting import BASE
from sona.loops.split import Split
from sona.ports import Stored
from sona.types import Trajectory

CYCLE = 7
WIDTH = 4
START = AdapterState(
    {"w": torch.zeros(2)}, initial_state({"w": torch.ones(2)}, {"w": torch.zeros(2)}), {"step": torch.ones(1)}
)
PROBES = [Example(np.asarray([1], np.int32), np.asarray([2], np.int32))]


class Adapters:
    """What each adapter makes of answers: ``nats`` a token by adapter; the default is an answer that it gives."""

    def __init__(self, **nats: float) -> None:
        self.nats = nats
        self.asked: list[str | None] = []

    def score(
        self,
        examples: Sequence[Example],
        answered_by: Sequence[str | None],
        adapters: Mapping[str, Mapping[str, torch.Tensor]],
        stage: str,
    ) -> Scores:
        self.asked += answered_by
        scores = empty_scores(len(examples))
        for place, (example, name) in enumerate(zip(examples, answered_by, strict=True)):
            assert name is not None
            assert name in adapters
            nats = self.nats.get(name, 0.01)
            scores.tokens[place] = len(example.response)
            scores.log_prob[place] = -len(example.response) * (nats + 0.001 * (place % 5))
            scores.exact[place] = nats < 0.1
        return scores


def ready(place: int, quality: float) -> Ready:
    row = Stored(
        seq=place + 1, trajectory=Trajectory(id=f"t{place}", prompt_ids=[1], response_ids=[2]), quality=quality
    )
    asked = np.asarray([1, place], np.int32)
    return Ready(row, asked, np.asarray([2, 3], np.int32), asked)


def roster(
    trained: Sequence[str],
    held_out: Sequence[str] = (),
    pushed: Sequence[str] = (),
    skills: SkillSet | None = None,
    quality: float = 0.0,
    born: Sequence[str] = (),
) -> Roster:
    """Trajectories that belong to these skills; those that are ``pushed`` are of this ``quality``."""
    owners = [*trained, *held_out, *pushed]
    items = [ready(place, 1.0) for place in range(len(trained) + len(held_out))]
    down = [ready(place, quality) for place in range(len(items), len(owners))]
    parts = Split(items[: len(trained)], items[len(trained) :])
    features = np.arange(len(owners) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    return Roster(parts, down, features, owners, known("s1", "s2") if skills is None else skills, [*born])


def known(*names: str, adapter: str = "", usual: tuple[float, ...] = ()) -> SkillSet:
    skills = SkillSet()
    for name in names:
        skill = Skill(id=name, adapter=adapter or name, born_cycle=1, touched_cycle=1, count=10, usual=usual)
        skills = skills.put(skill)
    return skills


def plan(
    given: Roster,
    adapters: Adapters,
    baseline: Mapping[str, float] | None = None,
    train: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
) -> Plan:
    return plan_lessons(given, lambda _: START, baseline or {}, adapters, PROBES, Config(train=train), CYCLE)  # type: ignore[arg-type]


def test_each_adapter_that_something_was_said_for_learns_its_own() -> None:
    made = plan(roster(["s1"] * 6 + ["s2"] * 4 + [BASE] * 3, ["s1"] * 2), Adapters(s1=2.0, s2=2.0))
    assert [(lesson.adapter, len(lesson.new)) for lesson, _ in made.lessons] == [("s1", 6), ("s2", 4)]
    assert [list(lesson.scopes) for lesson, _ in made.lessons] == [[Scope(("s1",))], [Scope(("s2",))]]
    assert all(start is START and not lesson.probes for lesson, start in made.lessons)
    assert made.metrics == {"drift_detected": 0.0, "skills_born": 0.0}


def test_an_adapter_that_gives_the_answers_already_is_left_alone() -> None:
    made = plan(roster(["s1"] * 6 + ["s2"] * 4), Adapters(s1=0.01, s2=2.0))
    assert [lesson.adapter for lesson, _ in made.lessons] == ["s2"]
    assert plan(roster([BASE] * 9), Adapters()).lessons == []
    assert plan(roster([]), Adapters()).lessons == []


def test_what_was_heard_is_counted_and_remembered_whether_or_not_it_is_learned() -> None:
    made = plan(roster(["s1"] * 6 + [BASE] * 3, ["s1"] * 2, ["s1"] * 2), Adapters())
    first, second = made.skills.skills
    assert (first.count, first.touched_cycle) == (16, CYCLE)
    assert (second.count, second.touched_cycle) == (10, 1)
    assert len(made.skills.rows["s1"]) == 8, "what is held out is remembered later, once it has been judged by"
    assert len(made.skills.rows[BASE]) == 3


def test_what_was_turned_down_is_not_taken_for_the_base_s() -> None:
    assert BASE not in plan(roster(["s1"], (), [BASE] * 4), Adapters()).skills.rows


def test_skills_that_share_an_adapter_are_one_lesson() -> None:
    made = plan(roster(["s1"] * 6 + ["s2"] * 4, skills=known("s1", "s2", "s3", adapter="s1")), Adapters(s1=1.0))
    ((lesson, _),) = made.lessons
    assert (lesson.adapter, len(lesson.new)) == ("s1", 10)
    assert list(lesson.scopes) == [Scope(("s1",)), Scope(("s2",)), Scope(("s3",))], "s3 must not be forgotten"


def test_a_merged_skill_replays_what_was_claimed_for_its_parts() -> None:
    skills = known("s1").put(changed(known("s1").skills[0], merged=("s4", "s9"), replay_after=3))
    ((lesson, _),) = plan(roster(["s1"] * 6, skills=skills), Adapters(s1=1.0)).lessons
    assert list(lesson.scopes) == [Scope(("s1", "s4", "s9"), 3)]


# ------------------------------------------------------------------------------------------------ changed answers

USUAL = tuple(0.2 + 0.01 * place for place in range(12))


def asked_before(count: int, skills: SkillSet) -> SkillSet:
    """As if the skill ``s1`` had been asked the very queries that :func:`roster` makes."""
    return skills.with_rows("s1", np.arange(count * WIDTH, dtype=np.float32).reshape(-1, WIDTH))


def test_losses_on_other_queries_are_no_drift() -> None:
    skills = known("s1", usual=USUAL).with_rows(
        "s1", -np.arange(1.0, 16 * WIDTH + 1, dtype=np.float32).reshape(-1, WIDTH)
    )
    made = plan(roster(["s1"] * 12, ["s1"] * 4, skills=skills), Adapters(s1=2.0))
    assert made.metrics["drift_detected"] == 0.0


def test_one_answer_of_another_source_does_not_silence_the_first() -> None:
    found = roster(["s1"] * 12)
    items = [*found.parts.train]
    other = msgspec.structs.replace(items[0].stored.trajectory, source="other")
    items[0] = items[0]._replace(stored=msgspec.structs.replace(items[0].stored, trajectory=other))
    made = plan(replace(found, parts=Split(items, [])), Adapters(s1=2.0))
    ((lesson, _),) = made.lessons
    assert lesson.effort[1] == 0.5 * lesson.effort[0]


def test_other_answers_to_the_same_questions_let_go_of_the_past() -> None:
    skills = asked_before(16, known("s1", usual=USUAL))
    made = plan(roster(["s1"] * 12, ["s1"] * 4, skills=skills), Adapters(s1=2.0))
    ((lesson, start),) = made.lessons
    assert made.metrics["drift_detected"] == 1.0
    assert list(lesson.scopes) == [Scope(("s1",), CYCLE - 1)], "only what this cycle claims is replayed from now on"
    skill = made.skills.get("s1")
    assert skill is not None
    assert (skill.replay_after, skill.usual) == (CYCLE - 1, ())
    assert start.ewc is not None
    assert not start.ewc.latest.importance.any()
    assert start.weights is START.weights, "what it can do else is not thrown away"


@pytest.mark.parametrize(
    ("usual", "nats", "count"),
    [
        (USUAL, 0.25, 12),  # as usual
        (USUAL, 0.45, 12),  # more, but by too little to let go of a past for it
        (USUAL[:7], 2.0, 12),  # too few losses to compare with
        (USUAL, 2.0, 7),  # too few new ones
        ((), 2.0, 12),  # a skill that was never judged
    ],
)
def test_usual_losses_and_too_few_of_them_change_nothing(usual: tuple[float, ...], nats: float, count: int) -> None:
    made = plan(roster(["s1"] * count, skills=known("s1", usual=usual)), Adapters(s1=nats))
    ((lesson, start),) = made.lessons
    assert made.metrics["drift_detected"] == 0.0
    assert start is START
    assert list(lesson.scopes) == [Scope(("s1",))]


def test_where_one_adapter_answers_everything_other_queries_are_no_change_of_answers() -> None:
    skills = known(SHARED, usual=USUAL)
    given = roster([SHARED] * 16, skills=skills)
    unrouted = Roster(given.parts, [], None, given.owners, skills, [])
    made = plan(unrouted, Adapters(shared=9.0))
    ((lesson, start),) = made.lessons
    assert (made.metrics["drift_detected"], start) == (0.0, START)
    assert list(lesson.scopes) == [Scope(None)]
    assert lesson.probes is PROBES, "it answers the base's queries too"


# ------------------------------------------------------------------------------------------------ turned down


def test_an_answer_that_was_turned_down_is_pushed_below_what_it_is_now() -> None:
    settings = TrainConfig(push_weight=0.1, push_margin=2.0)
    made = plan(
        roster(["s1"] * 4, (), ["s1"] * 2, quality=0.2), Adapters(s1=0.5), {"t4": 0.7, "t5": 0.9}, train=settings
    )
    ((lesson, _),) = made.lessons
    imitated, pushed = lesson.new[:4], lesson.new[4:]
    assert all(example.push_below is None for example in imitated)
    assert [example.weight for example in pushed] == pytest.approx([0.1 * 0.5, 0.1 * 0.7])
    assert [example.push_below for example in pushed] == pytest.approx([-2 * 0.5 - 2.0, -2 * 0.501 - 2.0])


def test_what_is_no_worse_than_usual_is_not_pushed_away() -> None:
    """Where every answer fails, the query is hard; nothing says that this answer is the fault."""
    made = plan(roster(["s1"] * 4, (), ["s1"] * 2, quality=0.2), Adapters(s1=0.5), {"t4": 0.2, "t5": 0.1})
    assert len(made.lessons[0][0].new) == 4
    off = plan(roster(["s1"] * 4, (), ["s1"] * 2), Adapters(s1=0.5), train=TrainConfig(push_weight=0.0))
    assert len(off.lessons[0][0].new) == 4


def test_failures_alone_are_no_lesson() -> None:
    made = plan(roster(["s2"] * 4, (), ["s1"] * 20), Adapters(s1=2.0, s2=2.0))
    assert [lesson.adapter for lesson, _ in made.lessons] == ["s2"]
