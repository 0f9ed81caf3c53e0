"""How an episode's feedbacks are scored, and that its contexts are opposite."""

import numpy as np
import pytest

from benchmarks.micro.episode import draw, shares
from benchmarks.micro.vectors import by_pattern, one_for_all, play

STEPS = [(0, 1, True), (1, -1, False), (0, -1, False), (2, 1, True)]
MOVES = np.array(
    [
        [1.0, 0.05, -0.09],  # right way, the others still
        [0.0, -1.0, 0.2],  # right way, but another moved
        [0.5, 0.0, 0.0],  # the wrong way
        [0.0, 0.0, 0.0],  # nothing at all, which is no way
    ]
)


def test_shares_are_those_reckoned_by_hand() -> None:
    found = shares(STEPS, MOVES)
    assert (found.rose, found.fell) == (0.5, 0.5)
    assert (found.still, found.right_way) == (0.5, 0.25)


def test_half_of_the_answers_are_right_and_the_contexts_opposite() -> None:
    episode = draw(seed=0, contexts=8, feedbacks=400)
    right = np.array([step.quality > 0.5 for step in episode.steps])
    assert 0.4 < right.mean() < 0.6
    assert {step.way for step in episode.steps if step.context % 2 == 0} == {1}
    assert {step.way for step in episode.steps if step.context % 2} == {-1}
    assert np.linalg.norm(episode.axis) == pytest.approx(1.0)


def test_patterns_keep_contexts_apart_and_a_single_pair_does_not() -> None:
    episode = draw(seed=1, contexts=2, feedbacks=20, width=64)
    steps = [(step.context, step.way, step.quality > 0.5) for step in episode.steps]
    apart = shares(steps, np.diff(play(episode, by_pattern(episode)).scores, axis=0))
    together = shares(steps, np.diff(play(episode, one_for_all).scores, axis=0))
    assert apart.right_way == 1.0
    assert together.still < 0.5
