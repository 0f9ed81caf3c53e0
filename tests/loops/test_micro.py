"""The loop around micro-LoRA: what a feedback moves, what it does not, and what takes it away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.checks import Float32, Int32
from sona.config import BankConfig, Config, MicroConfig
from sona.loops.micro import MicroLoop
from sona.ports import Claim, ResponseStates, Stored
from sona.types import Feedback, Message, Trajectory, Version, new_id

D, VOCAB = 16, 30
HEAD = torch.from_numpy(np.random.default_rng(1).normal(size=(VOCAB, D)).astype(np.float32))
QUESTIONS = {"a": 3, "b": 4}
"""A question's word and its token; the bank has a pattern for each."""


class Model:
    """A served model whose hidden states are its prompt's embedding."""

    vocab_size, hidden_size, max_tokens = VOCAB, D, 64

    def __init__(self) -> None:
        self.version, self.adapter = "v0", "key-a"
        self.before_states: Callable[[], None] = lambda: None

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        return np.array([1, QUESTIONS.get(messages[0].content, 5)], np.int32)

    def encode_response(self, text: str) -> Int32:
        return np.array([int(text), 2], np.int32)

    def embed(self, prompts: Sequence[Int32]) -> Float32:
        return np.stack([embedding_of(int(prompt[1])) for prompt in prompts])

    @contextmanager
    def response_states(self, prompt: Int32, response: Int32, question: Int32) -> Iterator[ResponseStates]:
        self.before_states()
        hidden = np.tile(embedding_of(int(prompt[1])), (len(response), 1))
        yield ResponseStates(self.version, self.adapter, hidden, lambda states: states @ HEAD.T)


def embedding_of(token: int) -> Float32:
    if token == 5:  # like no pattern
        return -sum(embedding_of(known) for known in QUESTIONS.values())  # type: ignore[return-value]
    return np.random.default_rng(token).normal(size=D).astype(np.float32)


def bank(quality: float = 0.5) -> Bank:
    rng = np.random.default_rng(0)
    members = [
        Member(f"{token}-{n}", embedding_of(token) + 0.05 * rng.normal(size=D).astype(np.float32), quality, "", "")
        for token in QUESTIONS.values()
        for n in range(10)
    ]
    return Bank().learn(members, BankConfig(), cycle=1, seed=0).bank


def version(name: str, parent: str | None, cycle: int = 0) -> Version:
    return Version(id=name, parent=parent, cycle=cycle, created_ns=0, digest="")


class Desk:
    """A loop with a model, a bank and trajectories to rate."""

    def __init__(self, micro: MicroConfig | None = None, quality: float = 0.5) -> None:
        self.model, self.stored = Model(), dict[str, Stored]()
        self.bank = bank(quality)
        config = Config(micro=micro or MicroConfig(enabled=True))
        self.loop = MicroLoop(self.model, self.stored.__getitem__, config)  # type: ignore[arg-type]
        self.loop.put_in_force(version("v0", None), self.bank, ())

    def rate(self, question: str, answer: int, quality: float, id: str | None = None) -> None:
        trajectory = Trajectory(messages=question, response=str(answer))
        self.stored[trajectory.id] = Stored(seq=1, trajectory=trajectory, quality=None)
        self.loop.offer(Feedback(trajectory_id=trajectory.id, quality=quality, id=id or new_id()))
        assert self.loop.settle(10.0)

    def log_prob(self, question: str, answer: int) -> float:
        prompt = self.model.encode_prompt([Message(role="user", content=question)])
        (row,) = self.loop.rows(self.model.version, [self.model.adapter], self.model.embed([prompt]))
        hidden = embedding_of(int(prompt[1]))
        if row is not None:
            hidden = hidden + row.B @ (row.A @ hidden)
        return float((torch.from_numpy(hidden) @ HEAD.T).log_softmax(dim=0)[answer])

    def has(self, question: str) -> bool:
        embedding = embedding_of(QUESTIONS[question])[None]
        return self.loop.rows(self.model.version, [self.model.adapter], embedding) != [None]

    def pattern(self, question: str) -> str:
        return self.bank.recall(embedding_of(QUESTIONS[question]), 1)[0].pattern.id


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.loop.close()


def test_a_feedback_moves_its_pattern_and_no_other(desk: Desk) -> None:
    before = {question: desk.log_prob(question, 7) for question in QUESTIONS}
    desk.rate("a", 7, 1.0)
    assert desk.log_prob("a", 7) > before["a"]
    assert desk.log_prob("b", 7) == before["b"]
    desk.rate("b", 7, 0.0)
    assert desk.log_prob("b", 7) < before["b"]
    counts = desk.loop.counts()
    assert (counts.patterns, counts.moved, counts.errors, counts.waiting) == (2, 2, 0, 0)


def test_a_feedback_moves_the_patterns_that_are_alike_and_a_cycle_with_one_of_them_takes_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{__name__}.embedding_of", _alike)
    monkeypatch.setitem(QUESTIONS, "like a", 6)
    monkeypatch.setitem(QUESTIONS, "c", 7)
    desk = Desk()
    assert desk.pattern("a") != desk.pattern("like a")
    desk.rate("a", 7, 1.0)
    assert [desk.has(question) for question in ("a", "like a", "b", "c")] == [True, True, False, False]
    assert desk.loop.counts().patterns == 1
    claim = Claim(seq=1, role="train", pattern=desk.pattern("like a"))
    desk.loop.put_in_force(version("v1", "v0", 1), desk.bank, [claim])
    desk.model.version = "v1"
    assert not desk.has("a")
    desk.loop.close()


def _alike(token: int) -> Float32:
    """Unit vectors, "like a" at a cosine of .92 to "a", the others at right angles."""
    axes = np.eye(D, dtype=np.float32)
    found: Float32 = axes[3] + np.float32(0.42) * axes[6] if token == 6 else axes[token]
    return found


def test_what_is_as_good_as_usual_or_like_nothing_known_moves_nothing(desk: Desk) -> None:
    desk.rate("a", 7, 0.5)
    desk.rate("elsewhere", 7, 1.0)
    desk.stored["x"] = Stored(seq=1, trajectory=Trajectory(messages="a", id="x", outcome="failed"), quality=None)
    desk.loop.offer(Feedback(trajectory_id="x", quality=1.0))
    assert desk.loop.settle(10.0)
    counts = desk.loop.counts()
    assert counts.still == {"as good as usual": 1, "like no pattern": 1, "outcome failed": 1}
    assert (counts.moved, len(desk.loop)) == (0, 0)


def test_without_a_bank_nothing_moves() -> None:
    desk = Desk()
    desk.loop.put_in_force(version("v0", None), Bank(), ())
    desk.rate("a", 7, 1.0)
    assert desk.loop.counts().still == {"like no pattern": 1}
    desk.loop.close()


def test_the_advantage_is_against_the_pattern_s_mean() -> None:
    moves = []
    for quality in (0.0, 0.9):
        desk = Desk(quality=quality)
        before = desk.log_prob("a", 7)
        desk.rate("a", 7, 1.0)
        moves.append(desk.log_prob("a", 7) - before)
        desk.loop.close()
    assert moves[0] > 2 * moves[1] > 0


def test_the_same_feedback_counts_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.loops.micro.REMEMBERED", 2)
    for _ in range(3):
        desk.rate("a", 7, 1.0, id="one")
    assert desk.loop.counts().moved == 1
    for id in ("two", "three", "one"):  # of which the first is forgotten by then: what is remembered is bounded
        desk.rate("a", 7, 1.0, id=id)
    assert desk.loop.counts().moved == 4


def test_an_error_is_counted_and_the_loop_goes_on(desk: Desk) -> None:
    desk.loop.offer(Feedback(trajectory_id="nobody knows it", quality=1.0))
    assert desk.loop.settle(10.0)
    desk.rate("a", 7, 1.0)
    counts = desk.loop.counts()
    assert (counts.errors, counts.moved) == (1, 1)


def test_beyond_the_bound_feedback_is_dropped_and_counted_at_once() -> None:
    desk, go, began = Desk(MicroConfig(enabled=True, max_waiting=2)), threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert go.wait(10.0)

    desk.model.before_states = wait
    trajectory = Trajectory(messages="a", response="7")
    desk.stored[trajectory.id] = Stored(seq=1, trajectory=trajectory, quality=None)
    desk.loop.offer(Feedback(trajectory_id=trajectory.id, quality=1.0))
    assert began.wait(10.0)
    for _ in range(5):
        desk.loop.offer(Feedback(trajectory_id=trajectory.id, quality=1.0))
    counts = desk.loop.counts()
    assert (counts.waiting, counts.dropped) == (3, 3)
    go.set()
    assert desk.loop.settle(10.0)
    assert desk.loop.counts().moved == 3
    desk.loop.close()
    desk.loop.offer(Feedback(trajectory_id=trajectory.id, quality=1.0))
    assert desk.loop.counts().dropped == 4
    desk.loop.close()
    assert not desk.loop._thread.is_alive()


# ------------------------------------------------------------------------------------------------ versions


def test_a_cycle_takes_away_what_it_has_learned_and_keeps_the_rest(desk: Desk) -> None:
    desk.rate("a", 7, 1.0)
    desk.rate("b", 7, 1.0)
    claims = [
        Claim(seq=1, role="train", pattern=desk.pattern("a")),
        Claim(seq=2, role="left_out", pattern=desk.pattern("b")),
    ]
    desk.loop.put_in_force(version("v1", "v0", 1), desk.bank, claims)
    assert not desk.has("b"), "a request that began with the version before gets none"
    desk.model.version = "v1"
    assert (desk.has("a"), desk.has("b")) == (False, True)


def test_weights_serve_only_beside_the_adapter_that_they_were_learned_with(desk: Desk) -> None:
    desk.rate("a", 7, 1.0)
    desk.model.adapter = "key-b"
    assert not desk.has("a")
    desk.rate("a", 7, 1.0)
    assert desk.has("a")
    assert desk.loop.counts().patterns == 2


def test_a_pattern_that_is_gone_takes_its_weights_with_it(desk: Desk) -> None:
    desk.rate("a", 7, 1.0)
    desk.loop.put_in_force(version("v1", "v0", 1), Bank(), ())
    assert len(desk.loop) == 0


def test_a_version_that_does_not_follow_takes_all_away(desk: Desk) -> None:
    desk.rate("a", 7, 1.0)
    desk.loop.put_in_force(version("v5", "v3", 1), desk.bank, ())
    assert len(desk.loop) == 0
    desk.model.version = "v5"
    desk.rate("a", 7, 1.0)
    desk.loop.reset()
    assert len(desk.loop) == 0


@pytest.mark.parametrize("how", ["swap", "reset"])
def test_a_step_under_way_when_the_version_changes_is_taken_back(desk: Desk, how: str) -> None:
    def change() -> None:
        desk.model.before_states = lambda: None
        if how == "reset":
            desk.loop.reset()
        else:
            desk.loop.put_in_force(version("v1", "v0", 1), desk.bank, ())

    desk.model.before_states = change
    desk.rate("a", 7, 1.0)
    assert len(desk.loop) == 0
    assert desk.loop.counts().still == {"another version came": 1}
    desk.model.version = "v1" if how == "swap" else "v0"
    desk.rate("a", 7, 1.0)
    assert desk.has("a")
