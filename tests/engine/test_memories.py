"""What memories are worth: scored by the served model, kept by source, used by recall."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import sona
from sona.asked_model import question_tokens
from sona.attribution.marked import from_messages, from_trajectory
from sona.attribution.redundancy import redundancies
from sona.candidate import MemoryWeight
from sona.config import CandidatesConfig
from sona.errors import InvalidInputError, ModelError
from sona.memory_spans import find_spans, show, without_memories
from sona.types import Message, Trajectory, to_messages
from tests.engine.small import SMALL, WORLD, open_small, record_task

WATCHING = replace(SMALL, candidates=CandidatesConfig(watch=True, max_age_s=0.0))
KNOWN = {"told": "amber falcon harbour", "idle": "the office opens at nine"}
QUESTION = "what was i told ?"


def log_prob(engine: sona.SyncEngine, messages: tuple[Message, ...], response: str) -> float:
    """Of the response's words, in one plain pass."""
    model = engine.model
    prompt, answer = model.encode_prompt(messages), model.encode_response(response)[:-1]
    ids = np.concatenate([prompt, answer])
    found = model.score(ids, list(range(len(prompt), len(ids))), prompt_tokens=len(prompt))
    return float(found.log_probs.astype(np.float64).sum())


def told(engine: sona.SyncEngine, response: str = KNOWN["told"], source: str = "bot") -> str:
    with engine.trajectory(QUESTION, source=source) as t:
        t.respond(response, memories=KNOWN)
    return t.id


def test_a_score_is_what_leaving_it_out_does_to_the_answer(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        shown = show(to_messages(QUESTION), KNOWN)
        trajectory = Trajectory(messages=shown.messages, response=KNOWN["told"], metadata=shown.metadata)
        matrix = engine.memories.score(trajectory)
        assert matrix.version == engine.version.id
        whole = log_prob(engine, shown.messages, KNOWN["told"])
        for place, key in enumerate(KNOWN):
            left = without_memories(shown.messages, find_spans(shown.messages, {key: KNOWN[key]}))
            assert matrix.signed[place, 0] == pytest.approx(whole - log_prob(engine, left, KNOWN["told"]), abs=1e-3)
        assert matrix.weights[0] > 10 * max(matrix.weights[1], 0.1)
        assert matrix.important_memories(0)[0][0] == "told"
        assert matrix.unexplained is not None
        by_text = engine.memories.score([*to_messages(QUESTION), *to_answer()], KNOWN)
        assert by_text.weights.tolist() == [], "texts that stand nowhere are no memories of it"


def to_answer() -> tuple[Message, ...]:
    return (Message(role="assistant", content="i do not know"),)


def test_turns_are_scored_in_the_background_and_their_memories_weighed(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", config=WATCHING) as engine:
        first = told(engine)
        engine.record(Trajectory(messages=QUESTION, response="no memory here"))
        told(engine)
        assert engine.candidates.wait_scored(60)
        page = engine.candidates.page()
        assert page.seen.turns == 3
        assert {one.trajectory_id for one in page.candidates} >= {first}
        shown = next(one for one in page.candidates if one.trajectory_id == first)
        assert next(iter(shown.mattered)).key == "told"
        known = engine.memories.get("told", "bot")
        assert known is not None
        assert known.times == 2
        assert known.weight > 1.0
        assert engine.memories.get("told") is None, "each source has its own"
        told(engine)
        assert engine.candidates.wait_scored(60)
        idle = engine.memories.get("idle", "bot")
        assert idle is not None
        assert [one.key for one in engine.memories.prune_candidates(idle.weight + 0.001, "bot")] == ["idle"]
    with open_small(tmp_path / "store") as again:
        kept = again.memories.get("told", "bot")
        assert kept is not None
        assert kept.times == 3


def test_a_fact_that_is_told_twice_is_worth_something_in_both_places(tmp_path: Path) -> None:
    twice = {"one": "amber falcon harbour it was", "two": "it was amber falcon harbour", "idle": KNOWN["idle"]}
    with open_small(tmp_path / "store", config=WATCHING) as engine:
        for _ in range(3):
            with engine.trajectory(QUESTION, source="bot") as t:
                t.respond(KNOWN["told"], memories=twice)
        engine.flush()
        matrix = engine.memories.score(engine.get(t.id).trajectory)
        assert redundancies(matrix), "leaving out one of them hides what they are worth"
        assert engine.candidates.wait_scored(60)
        weights = {key: engine.memories.get(key, "bot") for key in twice}
        found = {key: weight.weight for key, weight in weights.items() if weight is not None}
        assert found["one"] > 1.0
        assert found["two"] > 1.0
        assert {one.key for one in engine.memories.prune_candidates(1.0, "bot")} <= {"idle"}
        (shown, *_) = [one for one in engine.candidates.page().candidates if one.trajectory_id == t.id]
        assert {one.key for one in shown.mattered} >= {"one", "two"}


def test_whatever_is_scored_is_scored_by_the_adapter_that_its_question_is_like(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model="tiny") as engine:
        shown = show(to_messages(QUESTION), KNOWN)
        answer = Message(role="assistant", content=KNOWN["told"])
        wanted = engine.model.encode_prompt(to_messages(QUESTION)).tolist()
        trajectory = Trajectory(messages=shown.messages, response=answer.content, metadata=shown.metadata)
        for context in (from_trajectory(trajectory), from_messages([*shown.messages, answer], KNOWN)):
            tokens = question_tokens(context, engine.model)
            assert tokens is not None
            assert tokens.tolist() == wanted


def test_what_a_recalled_pattern_was_worth_changes_its_place(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        record_task(engine, 60, seed=2, task="routing_policy")
        engine.learn()
        query = WORLD.sample("tool_call", 1, 7, "held_out")[0].prompt
        before = [one.pattern.id for one in engine.recall(query, 2)]
        idle, useful = before
        engine.memories.put(
            [
                MemoryWeight(key=idle, weight=0.0, last_scored_ns=1, times=9, source="bot"),
                MemoryWeight(key=useful, weight=50.0, last_scored_ns=1, times=9, source="bot"),
            ]
        )
        assert [one.pattern.id for one in engine.recall(query, 2)] == before, "of another source"
        after = engine.recall(query, 2, source="bot")
        rank = engine.memories.ranking("bot")
        assert after[0].pattern.id == useful
        assert rank(useful, after[0].similarity) > rank(after[1].pattern.id, after[1].similarity)


def test_a_memory_of_no_worth_counts_half_and_an_unknown_one_as_it_is(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        engine.memories.put(
            [
                MemoryWeight(key="idle", weight=0.0, last_scored_ns=1, times=3),
                MemoryWeight(key="new", weight=0.0, last_scored_ns=1, times=2),
                MemoryWeight(key="good", weight=1.0, last_scored_ns=1, times=3),
            ]
        )
        rank = engine.memories.ranking()
        assert [rank(key, 0.8) for key in ("idle", "new", "good", "never")] == pytest.approx([0.4, 0.8, 0.8, 0.8])
        assert rank("idle", -0.4) < -0.4


def test_without_a_model_nothing_is_scored(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"candidates\.watch without a model"):
        sona.open_sync(tmp_path / "store", config=WATCHING)
    with open_small(tmp_path / "store", model=None) as engine, pytest.raises(ModelError, match="model="):
        engine.memories.score(to_messages(QUESTION))


def test_closing_waits_for_no_turn_that_is_being_scored(tmp_path: Path) -> None:
    many = {f"note-{place}": f"it is the {place} th of may , and nothing has come" for place in range(24)}
    with open_small(tmp_path / "store", config=WATCHING) as engine:
        for _ in range(40):
            with engine.trajectory(QUESTION, source="bot") as t:
                t.respond("amber falcon", memories=many)
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert not [one.name for one in threading.enumerate() if one.name == "sona-candidates"]
