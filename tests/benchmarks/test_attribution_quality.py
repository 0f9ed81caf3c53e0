"""What bench_attribution_quality counts as right, and what it shows its small model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.attribution.evidence import MEMORIES, Item, fitted, read_items
from benchmarks.attribution.facts import World, read_cases, read_world, words_of
from benchmarks.attribution.methods import measure
from benchmarks.attribution.peer import ContextCite
from benchmarks.attribution.reader import Reader, message_of, train
from benchmarks.attribution.score import lds, precision_at, ranks
from sona.attribution.layout import lay_out
from sona.attribution.tokens import encode
from tests.attribution.servers import codec

STORY = [
    {"i": 1, "t": "Mary moved to the garden."},
    {"i": 2, "t": "John went to the office."},
    {"i": 3, "t": "Mary went back to the kitchen."},
    {"i": 4, "t": "John journeyed to the garden."},
    {"i": 5, "q": "Where is Mary?", "a": "kitchen", "support": [3]},
    {"i": 6, "t": "John moved to the garden."},
    {"i": 7, "q": "Where is John?", "a": "garden", "support": [6]},
]
WORLD = World(("John", "Mary"), ("moved", "went", "went back"), ("garden", "kitchen", "office"))


@pytest.fixture
def babi(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    rows = [{"task": 1, "story": "1", "lines": STORY}, {"task": 2, "story": "2", "lines": STORY[:1]}]
    (tmp_path / "dev" / "stories.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture(scope="module")
def untrained() -> Reader:
    return train(WORLD, steps=1, seed=0)


def test_world_is_made_of_the_tasks_words(babi: Path) -> None:
    world = read_world(babi)
    assert world.people == ("John", "Mary")
    assert world.places == ("garden", "kitchen", "office")
    assert "back" in words_of(world)


def test_unique_question_has_one_fact_and_no_other_that_says_the_same(babi: Path) -> None:
    (case,) = read_cases(babi, "unique", 0)  # John was in the garden before, too: without the support, still the answer
    assert (case.who, case.where, case.support) == ("Mary", "kitchen", (2,))


def test_duplicated_fact_is_told_where_it_is_true_in_other_words(babi: Path) -> None:
    for seed in range(20):
        (case,) = read_cases(babi, "duplicated", seed)
        one, other = (case.facts[place] for place in case.support)
        assert (one.who, one.where) == (other.who, other.where) == ("Mary", "kitchen")
        assert one.verb != other.verb
        assert [fact.where for fact in case.facts if fact.who == "Mary"] == ["garden", "kitchen", "kitchen"]


def test_what_is_asked_is_what_the_context_lays_out(babi: Path) -> None:
    (case,) = read_cases(babi, "unique", 0)
    asked, _ = lay_out(case.context())
    assert asked.message == message_of(case)


def test_answer_is_one_token_behind_the_prompt(babi: Path, untrained: Reader) -> None:
    (case,) = read_cases(babi, "unique", 0)
    encoded = encode(case.context(), untrained.codec)
    prompt = untrained.codec.encode_prompt([message_of(case)])
    assert encoded.responses == {len(case.facts) + 1: (len(prompt), len(prompt) + 1)}
    assert encoded.ids[: len(prompt)].tolist() == prompt.tolist()


def test_stories_are_as_long_as_asked_and_none_ends_early() -> None:
    rng = Random(0)
    assert {len(WORLD.story(rng, count)) for count in [7] * 50} == {7}
    assert WORLD.story(rng, 0) == ()


def test_every_method_weighs_every_memory(babi: Path, untrained: Reader) -> None:
    (case,) = read_cases(babi, "duplicated", 0)
    measured = measure(case.context(), untrained.codec, untrained.scorer, seed=0)
    assert {len(weights) for weights in measured.weights.values()} == {5}
    assert set(measured.weights) == {"loo", "strip_all", "ablate", "ablate_32"}
    assert measured.log_odds.shape == (32,)


def test_precision_shares_out_what_ties() -> None:
    assert precision_at(np.array([3.0, 1.0, 2.0]), [0], 1) == 1.0
    assert precision_at(np.array([3.0, 1.0, 2.0]), [1, 2], 2) == 0.5
    assert precision_at(np.zeros(4), [2], 1) == 0.25
    assert precision_at(np.array([5.0, 0.0, 0.0, 0.0]), [0, 2], 2) == pytest.approx((1 + 1 / 3) / 2)


def test_lds_is_the_rank_correlation_of_forecast_and_outcome() -> None:
    kept = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=bool)
    weights = np.array([2.0, 1.0])
    assert lds(weights, kept, np.array([20.0, 10.0, 90.0, -5.0])) == pytest.approx(1.0)
    assert lds(-weights, kept, np.array([20.0, 10.0, 90.0, -5.0])) == pytest.approx(-1.0)
    assert lds(np.zeros(2), kept, np.array([20.0, 10.0, 90.0, -5.0])) == 0.0
    assert ranks(np.array([5.0, 1.0, 5.0])).tolist() == [1.5, 0.0, 1.5]


def test_python_without_the_peer_is_told_apart_from_one_that_has_it(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    peer = ContextCite(str(script), tmp_path)
    assert peer.version is None
    peer.close()


def test_items_keep_their_evidence_among_ten_memories(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    turns = [{"content": f"turn {place}"} for place in range(40)]
    (tmp_path / "dev" / "conversations.jsonl").write_text(json.dumps({"scenario": "s", "turns": turns}))
    row = {"scenario": "s", "question": "which?", "answers": ["17"], "evidence_turns": [17, 30]}
    (tmp_path / "dev" / "questions.jsonl").write_text(json.dumps(row))
    (item,) = read_items(tmp_path, 0)
    assert len(item.memories) == MEMORIES
    assert [item.memories[place] for place in item.evidence] == ["turn 17", "turn 30"]


def test_long_memories_are_cut_to_what_the_model_takes_around_the_answer() -> None:
    item = Item(("word " * 400 + "the answer is blue " + "word " * 400, "short"), (0,), "which colour?", "blue")
    short = fitted(item, codec(), 200)
    assert short.cut
    assert "blue" in short.memories[0]
    assert short.memories[1] == "short"
    assert len(encode(short.context(), codec()).ids) <= 200
    assert not fitted(Item(("short",), (0,), "which?", "blue"), codec(), 200).cut
