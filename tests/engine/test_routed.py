"""Each task has an adapter of its own, a router picks it, and the base's own queries stay the base's."""

from pathlib import Path

import pytest
from msgspec.structs import replace

import sona
from sona.config import SkillsConfig, TrainConfig
from sona.loops.members import embeddings_of
from sona.memory_spans import question_of
from sona.tiny import SKILLS, AgentWorld, sample
from sona.types import Reply, to_messages
from tests.engine.small import SMALL, WORLD, open_small, record_task

TASKS = ("tool_call", "routing_policy")
ASKED = {task: [one.prompt for one in WORLD.sample(task, 10, 99, "held_out")] for task in TASKS}
OWN = [one.prompt for skill in SKILLS for one in sample(skill, 3, 9, "held_out")]
SHARED = replace(SMALL, skills=SkillsConfig(mode="shared"))

Answers = list[tuple[int, ...]]


def replies(engine: sona.SyncEngine, prompts: list[str]) -> list[Reply]:
    return engine.generate_batch(prompts, max_new_tokens=12)


def tokens(engine: sona.SyncEngine, prompts: list[str]) -> Answers:
    """Each prompt on its own, as a request comes: a batch's padding moves float rounding."""
    return [engine.generate(prompt, max_new_tokens=12).token_ids for prompt in prompts]


def adapters(engine: sona.SyncEngine, prompts: list[str]) -> set[str | None]:
    return {reply.adapter for reply in replies(engine, prompts)}


def learn(engine: sona.SyncEngine, task: str, seed: int, count: int = 60) -> None:
    record_task(engine, count, seed=seed, task=task)
    report = engine.learn()
    assert report.status == "published", report.reason


def test_two_tasks_become_two_skills_and_the_base_keeps_its_own(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        untouched = tokens(engine, OWN)
        learn(engine, "tool_call", 1)
        assert adapters(engine, ASKED["tool_call"]) == {"s1"}
        first = tokens(engine, ASKED["tool_call"])
        learn(engine, "routing_policy", 2)
        assert adapters(engine, ASKED["tool_call"]) == {"s1"}
        assert adapters(engine, ASKED["routing_policy"]) == {"s2"}
        second = tokens(engine, ASKED["routing_policy"])
        assert tokens(engine, ASKED["tool_call"]) == first, "what was learned for another task changes no answer"
        own = replies(engine, OWN)
        assert sum(reply.adapter is None for reply in own) >= 0.95 * len(OWN)
        at_home = [place for place, reply in enumerate(own) if reply.adapter is None]
        assert [tokens(engine, OWN)[place] for place in at_home] == [untouched[place] for place in at_home]

        assert engine.roll_back().id == "v1"
        assert tokens(engine, ASKED["tool_call"]) == first
        assert "s2" not in adapters(engine, ASKED["routing_policy"])
        assert engine.roll_back("v2").id == "v2"
        assert tokens(engine, ASKED["routing_policy"]) == second
    with open_small(tmp_path / "store") as again:
        assert tokens(again, ASKED["tool_call"]) == first
        assert tokens(again, ASKED["routing_policy"]) == second
        assert {reply.adapter for reply in replies(again, [*ASKED["tool_call"], *ASKED["routing_policy"]])} == {
            "s1",
            "s2",
        }


def test_more_of_one_task_stays_one_skill(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        learn(engine, "tool_call", 1)
        record_task(engine, 60, seed=2)
        report = engine.learn()
        assert report.status == "published", report.reason
        assert report.metrics["skills_born"] == report.metrics["drift_detected"] == 0
        assert adapters(engine, ASKED["tool_call"]) == {"s1"}
        assert report.funnel.trained + report.funnel.held_out == 60


def test_failures_of_a_new_task_are_no_skill_and_in_nobody_s_way(tmp_path: Path) -> None:
    """Nothing was accepted that an adapter of theirs could learn; what came beside them is learned all the same."""
    with open_small(tmp_path / "store") as engine:
        learn(engine, "tool_call", 1, count=200)
        for one in WORLD.sample("routing_policy", 80, 3):
            engine.record(sona.Trajectory(messages=one.prompt, response="wrong"), quality=0.1)
        learn(engine, "tool_call", 2)
        assert "s2" not in adapters(engine, ASKED["routing_policy"])
        learn(engine, "routing_policy", 4)
        assert adapters(engine, ASKED["routing_policy"]) == {"s3"}


def test_the_few_queries_of_a_skill_wait_once_and_are_counted_once(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        learn(engine, "tool_call", 1, count=100)
        learn(engine, "routing_policy", 2)
        record_task(engine, 60, seed=3, task="routing_policy")
        record_task(engine, 7, seed=9)
        left = engine.learn().funnel.left_out["left for the next cycle"]
        assert 0 < left <= 7
        counts = engine.status().store
        assert counts.uncollected == left
        assert engine.bank.learned == counts.trajectories - left
        record_task(engine, 60, seed=4, task="routing_policy")
        assert engine.learn().funnel.left_out["too few of their kind came"] == left
        counts = engine.status().store
        assert counts.uncollected == 0
        assert engine.bank.learned == counts.trajectories


def test_what_the_base_knows_already_is_left_to_it(tmp_path: Path) -> None:
    known = [(one.prompt, one.response) for one in sample("echo", 60, 1)]
    with open_small(tmp_path / "store") as engine:
        for prompt, response in known:
            engine.record(sona.Trajectory(messages=prompt, response=response), quality=1.0)
        report = engine.learn()
        assert report.status == "published"
        assert report.gate is None
        assert report.funnel.left_out == {"the base model answers such queries": 60 - report.funnel.held_out}
        assert adapters(engine, OWN) == {None}
        learn(engine, "tool_call", 2)
        assert adapters(engine, ASKED["tool_call"]) == {"s2"}


@pytest.mark.parametrize("mode", ["routed", "auto"])
def test_the_cap_on_adapters_holds(tmp_path: Path, mode: str) -> None:
    config = replace(SMALL, skills=SkillsConfig(mode=mode, max_adapters=1))  # type: ignore[arg-type]
    with open_small(tmp_path / "store", config=config) as engine:
        learn(engine, "tool_call", 1)
        learn(engine, "routing_policy", 2)
        assert adapters(engine, ASKED["tool_call"]) == adapters(engine, ASKED["routing_policy"]) == {"s1"}


def test_one_shared_adapter_answers_everything_where_that_is_asked_for(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=SHARED) as engine:
        learn(engine, "tool_call", 1)
        learn(engine, "routing_policy", 2)
        assert adapters(engine, [*ASKED["tool_call"], *ASKED["routing_policy"], *OWN]) == {"shared"}
    assert (tmp_path / "store" / "versions" / "v2" / "adapter").is_dir()
    assert not (tmp_path / "store" / "versions" / "v2" / "skills").exists()


def test_a_store_with_a_shared_adapter_goes_on_with_skills(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=SHARED) as engine:
        learn(engine, "tool_call", 1)
        before = tokens(engine, ASKED["tool_call"])
    with open_small(tmp_path / "store") as engine:
        learn(engine, "routing_policy", 2)
        assert adapters(engine, ASKED["routing_policy"]) == {"s2"}
        assert adapters(engine, ASKED["tool_call"]) == {"shared"}
        assert tokens(engine, ASKED["tool_call"]) == before
        learn(engine, "tool_call", 3)
        assert adapters(engine, ASKED["tool_call"]) == {"shared"}


def test_a_store_with_skills_goes_on_with_a_shared_adapter(tmp_path: Path) -> None:
    config = replace(SHARED, train=TrainConfig(passes=8, max_steps=60))
    with open_small(tmp_path / "store") as engine:
        learn(engine, "tool_call", 1)
    with open_small(tmp_path / "store", config=config) as engine:
        learn(engine, "tool_call", 2)
        assert adapters(engine, [*ASKED["tool_call"], *OWN]) == {"shared"}
        assert engine.roll_back().id == "v1"
        assert adapters(engine, ASKED["tool_call"]) == {"s1"}


def test_other_answers_to_the_same_questions_are_learned_in_place_of_the_old_ones(tmp_path: Path) -> None:
    """Another world asks the same and wants other answers; what was right is neither replayed nor held against it."""
    other = AgentWorld(77)
    asked = other.sample("tool_call", 10, 9, "held_out")
    with open_small(tmp_path / "store", config=replace(SMALL, train=TrainConfig(passes=12, max_steps=90))) as engine:
        learn(engine, "tool_call", 1, count=80)
        for one in other.sample("tool_call", 80, 5):
            engine.record(sona.Trajectory(messages=one.prompt, response=one.response), quality=1.0)
        report = engine.learn()
        assert report.status == "published", report.reason
        assert report.metrics["drift_detected"] == 1
        assert report.metrics["skills"] == 1
        found = engine.generate_batch([one.prompt for one in asked], max_new_tokens=32)
        right = [reply.text == one.response for reply, one in zip(found, asked, strict=True)]
        assert sum(right) >= 8


def test_a_memory_is_read_and_does_not_change_who_answers(tmp_path: Path) -> None:
    memory = {"note-1": "the office is closed on friday , ask again on monday"}
    with open_small(tmp_path / "store") as engine:
        learn(engine, "tool_call", 1)
        for question in ASKED["tool_call"]:
            plain = engine.generate(question, max_new_tokens=12)
            shown = engine.generate(question, memories=memory, max_new_tokens=12)
            assert plain.adapter == shown.adapter == "s1"
            assert len(shown.prompt_ids) > len(plain.prompt_ids)
            stream = engine.stream(question, memories=memory, max_new_tokens=12)
            assert "".join(stream) == shown.text
            assert stream.reply.adapter == "s1"
        own = {engine.generate(question, memories=memory, max_new_tokens=12).adapter for question in OWN[:6]}
        assert own == {None}


def test_what_is_learned_beside_memories_is_learned_for_the_question(tmp_path: Path) -> None:
    examples = WORLD.sample("tool_call", 60, 1)
    with open_small(tmp_path / "store") as engine:
        for place, example in enumerate(examples):
            with engine.trajectory(example.prompt) as t:
                t.respond(example.response, memories={f"note-{place}": f"it is the {place} th of may"})
            engine.feedback(t.id, quality=1.0)
        engine.flush()
        stored = engine.get(t.id).trajectory
        assert [message.role for message in stored.messages] == ["system", "user"]
        assert question_of(stored) == to_messages(examples[-1].prompt)
        assert embeddings_of([engine.get(t.id)], None, None)[0] is not None, "made before the memory came"
        assert engine.learn().status == "published"
        assert adapters(engine, ASKED["tool_call"]) == {"s1"}
