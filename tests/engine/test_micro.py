"""Micro-LoRA through the engine: a feedback changes the next answer of its pattern, and a cycle takes it over."""

import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

import sona
from sona.bank.families import families_of
from sona.config import Config, MicroConfig
from sona.loops.micro import MicroCounts
from sona.serving.local import LocalModel
from sona.status import EngineStatus
from tests.engine.small import SMALL, WORLD, open_small, record_task

FAST = replace(SMALL, micro=MicroConfig(enabled=True, step_nats=8.0, bound=3.0))
QUESTIONS = [one.prompt for one in WORLD.sample("tool_call", 12, 99, "held_out")]


def counts(engine: sona.SyncEngine) -> MicroCounts:
    """When every feedback so far has had its step."""
    for _ in range(4000):
        found = engine.status().micro
        assert found is not None
        if not found.waiting:
            return found
        time.sleep(0.005)
    raise AssertionError("the loop does not settle")


def learned(folder: Path, config: Config) -> None:
    """A store in which one cycle has learned."""
    with open_small(folder, config=config) as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().status == "published"


def blame(engine: sona.SyncEngine, question: str) -> str:
    """Turn an answer down, as a host would; returns it."""
    with engine.trajectory(question) as t:
        reply = t.generate(max_new_tokens=12)
    engine.feedback(t.id, 0.0)
    return reply.text


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "sona-micro"]


def test_an_answer_that_is_turned_down_is_not_given_again(tmp_path: Path) -> None:
    learned(tmp_path / "store", FAST)
    with open_small(tmp_path / "store", config=FAST) as engine:
        first = blame(engine, QUESTIONS[0])
        for _ in range(20):
            if (again := blame(engine, QUESTIONS[0])) != first:
                break
            counts(engine)
        reply = engine.generate(QUESTIONS[0], max_new_tokens=12)
        assert again != first
        assert reply.micro is not None
        assert reply.micro in {pattern.id for pattern in engine.bank.patterns}
        assert counts(engine).errors == 0


def test_a_cycle_that_learned_the_pattern_and_a_rollback_take_the_weights_away(tmp_path: Path) -> None:
    learned(tmp_path / "store", FAST)
    with open_small(tmp_path / "store", config=FAST) as engine:
        plain = engine.generate(QUESTIONS[0], max_new_tokens=12).token_ids
        blame(engine, QUESTIONS[0])
        assert counts(engine).moved == 1
        assert engine.generate(QUESTIONS[0], max_new_tokens=12).micro is not None
        engine.roll_back()
        assert counts(engine).patterns == 0
        engine.roll_back("v1")
        reply = engine.generate(QUESTIONS[0], max_new_tokens=12)
        assert (reply.micro, reply.token_ids) == (None, plain)

        blame(engine, QUESTIONS[0])
        assert counts(engine).patterns > 0
        record_task(engine, 60, seed=2, task="routing_policy")
        record_task(engine, 60, seed=3)
        touched = engine.generate(QUESTIONS[0], max_new_tokens=12).micro
        counts(engine)
        assert touched is not None
        family = families_of(engine._engine._started().bank.patterns)
        report = engine.learn()
        assert report.status == "published", report.reason
        claimed = {family.get(claim.pattern) for claim in engine._engine._started().store.claims(report.cycle)}
        assert family[touched] in claimed
        assert engine.generate(QUESTIONS[0], max_new_tokens=12).micro is None


def test_one_that_failed_is_counted_and_answers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned(tmp_path / "store", FAST)
    with open_small(tmp_path / "store", config=FAST) as engine:

        def broken(self: LocalModel, prompt: object, response: object, question: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(LocalModel, "response_states", broken)
            answer = blame(engine, QUESTIONS[0])
            assert counts(engine).errors == 1
        assert blame(engine, QUESTIONS[0]) == answer
        assert counts(engine).moved == 1


def test_feedback_with_the_record_and_held_feedback_move_too_and_an_import_does_not(tmp_path: Path) -> None:
    learned(tmp_path / "store", FAST)
    with open_small(tmp_path / "store", config=FAST) as engine:
        trajectory = sona.Trajectory(messages=QUESTIONS[0], response="no")
        engine.record(trajectory, quality=0.0)
        assert counts(engine).moved == 1
        with engine.trajectory(QUESTIONS[1]) as t:
            t.respond("no")
            engine.feedback(t.id, 0.0)
        assert counts(engine).moved == 2
        log = tmp_path / "log.jsonl"
        log.write_text('{"id": "t1", "prompt": "echo a", "response": "b", "quality": 0.1}\n')
        assert engine.import_jsonl(log).rated == 1
        assert counts(engine).moved == 2
        assert sum(counts(engine).still.values()) == 0


def test_the_thread_ends_with_the_engine(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=FAST):
        assert threads() == ["sona-micro"]
    assert threads() == []


def test_feedback_costs_the_caller_no_forward_pass(tmp_path: Path) -> None:
    learned(tmp_path / "store", FAST)
    with open_small(tmp_path / "store", config=FAST) as engine:
        model = engine._engine._started().model
        assert model is not None
        trajectory = sona.Trajectory(messages=QUESTIONS[0], response="no")
        engine.record(trajectory)
        engine.flush()
        with model._reading:  # whoever reads with the model has to wait now
            engine.feedback(trajectory.id, 0.0)
            status = engine.status().micro
            assert status is not None
            assert status.waiting == 1
        assert counts(engine).moved == 1


def test_switched_off_there_is_no_thread_and_no_answer_changes(tmp_path: Path) -> None:
    learned(tmp_path / "store", SMALL)
    with open_small(tmp_path / "store") as engine:
        assert not SMALL.micro.enabled
        assert threads() == []
        before = [reply.token_ids for reply in engine.generate_batch(QUESTIONS, max_new_tokens=12)]
        model = engine._engine._started().model
        assert model is not None
        assert model.fast_weights is None
        for question in QUESTIONS:
            blame(engine, question)
        replies = engine.generate_batch(QUESTIONS, max_new_tokens=12)
        assert [reply.token_ids for reply in replies] == before
        assert {reply.micro for reply in replies} == {None}
        status: EngineStatus = engine.status()
        assert status.micro is None
    with open_small(tmp_path / "store", config=FAST) as fast:
        replies = fast.generate_batch(QUESTIONS, max_new_tokens=12)
        assert [reply.token_ids for reply in replies] == before, "switched on, but nothing has moved yet"
