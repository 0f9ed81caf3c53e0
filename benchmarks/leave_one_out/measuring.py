"""CPU seconds of one thread, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.leave_one_out.model import random_model, source
from benchmarks.leave_one_out.naive import full_logits, largest_difference
from benchmarks.leave_one_out.scenario import Turn, conversation, passages
from sona.attribution.leave_one_out import LeaveOneOut
from sona.attribution.live import LiveScorer
from sona.attribution.passes import plain_scores
from sona.attribution.scorer import Answer, Passage, PassagesScorer, Scores
from sona.ports import ModelTree

Method = Callable[[], list[list[Scores]]]
"""Scores each call's passages."""


@dataclass
class Measured:
    """Of one method."""

    seconds: list[float] = field(default_factory=list)
    """CPU seconds, a value a round."""
    difference: float = 0.0
    """From naive, the largest of a token, in nats."""

    @property
    def best(self) -> float:
        """The round that others disturbed least: what they do to the caches only makes it longer."""
        return min(self.seconds)


def measure(methods: Mapping[str, Method], rounds: int) -> dict[str, Measured]:
    """Each method in each round, in turn; the first one's scores are what the others are compared with."""
    torch.set_num_threads(1)
    found = {name: Measured() for name in methods}
    for _ in range(rounds):
        wanted: list[list[Scores]] | None = None
        for name, method in methods.items():
            began = time.process_time()
            scores = method()
            found[name].seconds.append(time.process_time() - began)
            if wanted is None:
                wanted = scores
            worst = max(largest_difference(one, other) for one, other in zip(scores, wanted, strict=True))
            found[name].difference = max(found[name].difference, worst)
    return found


def matrix(layout: str, vocab: int, seed: int, rounds: int) -> dict[str, Measured]:
    """The full matrix of a conversation."""
    model = random_model(vocab, seed)
    scorer = LeaveOneOut(source(model))
    assert scorer.way == "packed"  # which also warms up
    tree = ModelTree(model, model.lm_head)
    calls = [passages(conversation(layout, vocab, seed))]
    methods: dict[str, Method] = {
        "naive": lambda: [full_logits(model, call) for call in calls],
        "rows": lambda: [[plain_scores(tree, passage) for passage in call] for call in calls],
        "ours": lambda: [_all(scorer, call) for call in calls],
    }
    return measure(methods, rounds)


def online(layout: str, vocab: int, seed: int, rounds: int) -> dict[str, Measured]:
    """After each turn its response against all memories so far."""
    model = random_model(vocab, seed)
    scorer = LeaveOneOut(source(model))
    assert scorer.way == "packed"
    tree = ModelTree(model, model.lm_head)
    turns: list[Turn] = conversation(layout, vocab, seed)
    calls = [passages(turns[: count + 1], last_alone=True) for count in range(len(turns))]

    def live() -> list[list[Scores]]:
        fresh = LiveScorer(scorer)
        return [_all(fresh, call) for call in calls]

    methods: dict[str, Method] = {
        "naive": lambda: [full_logits(model, call) for call in calls],
        "rows": lambda: [[plain_scores(tree, passage) for passage in call] for call in calls],
        "ours": live,
    }
    return measure(methods, rounds)


def _all(scorer: PassagesScorer, call: Sequence[Passage]) -> list[Scores]:
    found: dict[int, Scores] = dict(_scores(answer) for answer in scorer.score_all(call))
    return [found[place] for place in range(len(call))]


def _scores(answer: Answer) -> tuple[int, Scores]:
    place, scores = answer
    assert isinstance(scores, list), scores
    return place, scores
