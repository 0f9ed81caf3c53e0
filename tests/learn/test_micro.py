"""Micro-LoRA: the exact gradient, steps that go the right way, and bounds that nothing breaks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sona.checks import Float32
from sona.config import MicroConfig
from sona.errors import DimensionMismatchError, InvalidInputError
from sona.learn.micro import Judged, MicroLora, MicroWeights, Objective, new_weights
from sona.learn.policy import response_log_prob

D, VOCAB = 12, 40
HEAD = torch.from_numpy(np.random.default_rng(7).normal(size=(VOCAB, D)).astype(np.float32))


def hidden_states(seed: int, tokens: int = 5) -> tuple[Float32, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, D)).astype(np.float32), rng.integers(0, VOCAB, tokens).astype(np.int32)


def log_prob_of(targets: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Objective:
    return response_log_prob(lambda hidden: hidden @ HEAD.T, targets, VOCAB)


def some_pair(seed: int, rank: int = 2) -> MicroWeights:
    rng = np.random.default_rng(seed)
    A = np.linalg.qr(rng.normal(size=(D, rank)))[0].T.astype(np.float32)
    return MicroWeights(A, (0.1 * rng.normal(size=(D, rank))).astype(np.float32))


def unit(seed: int, width: int = D) -> Float32:
    vector = np.random.default_rng(seed).normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ the gradient


def test_the_gradient_at_the_hidden_state_is_onehot_minus_softmax_through_the_head() -> None:
    hidden, targets = hidden_states(0)
    found = log_prob_of(targets)(hidden)
    logits = torch.from_numpy(hidden) @ HEAD.T
    wanted = (torch.nn.functional.one_hot(torch.from_numpy(targets).long(), VOCAB) - logits.softmax(dim=1)) @ HEAD
    np.testing.assert_allclose(found.gradient, wanted.numpy(), atol=1e-5)
    chosen = logits.log_softmax(dim=1)[torch.arange(len(targets)), torch.from_numpy(targets).long()]
    assert found.value == pytest.approx(float(chosen.sum()), rel=1e-6)


def test_a_response_in_pieces_is_judged_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets = hidden_states(1, tokens=7)
    whole = log_prob_of(targets)(hidden)
    monkeypatch.setattr("sona.learn.policy.LOGITS", 2 * VOCAB)
    pieces = log_prob_of(targets)(hidden)
    assert pieces.value == pytest.approx(whole.value, rel=1e-6)
    np.testing.assert_allclose(pieces.gradient, whole.gradient, atol=1e-6)


def test_the_gradient_of_both_matrices_is_autograd_s() -> None:
    hidden, targets = hidden_states(2)
    pair = some_pair(3)
    dA, dB = pair.gradient(hidden, log_prob_of(targets)(pair.apply(hidden)).gradient)
    A, B = (torch.from_numpy(matrix.copy()).double().requires_grad_() for matrix in (pair.A, pair.B))
    x = torch.from_numpy(hidden).double()
    logits = (x + x @ A.T @ B.T) @ HEAD.double().T
    total = -torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long(), reduction="sum")
    wanted = torch.autograd.grad(total, (A, B))
    np.testing.assert_allclose(dA, wanted[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(dB, wanted[1].numpy(), atol=1e-4)


def test_a_head_that_caps_its_logits_is_in_the_gradient() -> None:
    hidden, targets = hidden_states(4)

    def capped(states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(states @ HEAD.T / 3.0) * 3.0

    objective = response_log_prob(capped, targets, VOCAB)
    gradient, step = objective(hidden).gradient, 1e-2
    for place in (0, 5):
        moved = hidden.copy(), hidden.copy()
        moved[0][1, place] += step
        moved[1][1, place] -= step
        slope = (objective(moved[0]).value - objective(moved[1]).value) / (2 * step)
        assert gradient[1, place] == pytest.approx(slope, abs=2e-3)


def test_new_weights_are_the_identity_and_their_rows_orthonormal() -> None:
    hidden, targets = hidden_states(5)
    for rank in (1, 2):
        pair = new_weights(hidden, log_prob_of(targets)(hidden).gradient, rank, seed=0)
        np.testing.assert_array_equal(pair.apply(hidden), hidden)
        np.testing.assert_allclose(pair.A @ pair.A.T, np.eye(rank), atol=1e-6)


def test_the_first_step_is_the_best_of_its_rank() -> None:
    hidden, targets = hidden_states(6)
    gradient = log_prob_of(targets)(hidden).gradient
    pair = new_weights(hidden, gradient, 1, seed=0)
    _, dB = pair.gradient(hidden, gradient)
    assert float(np.linalg.norm(dB)) == pytest.approx(np.linalg.norm(gradient.T @ hidden, 2), rel=1e-4)


def test_one_row_fills_a_pair_of_rank_two() -> None:
    micro = MicroLora(MicroConfig(rank=2))
    assert micro.learn(unit(0), unit(1), 1.0) > 0
    pair = micro.get("shared")
    assert pair is not None
    np.testing.assert_allclose(pair.A @ pair.A.T, np.eye(2), atol=1e-6)


# ------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize("rank", [1, 2])
def test_a_right_answer_becomes_likelier_and_a_wrong_one_less_likely(rank: int) -> None:
    micro = MicroLora(MicroConfig(rank=rank))
    hidden, targets = hidden_states(8)
    objective = log_prob_of(targets)
    before = objective(hidden).value
    assert micro.learn_response(hidden, objective, 0.5, "p") == pytest.approx(0.5, rel=0.2)
    risen = objective(micro.apply(hidden, "p")).value
    assert risen > before
    assert micro.learn_response(hidden, objective, -0.5, "p") < 0
    assert objective(micro.apply(hidden, "p")).value < risen


def test_repeated_praise_approaches_certainty_and_never_goes_back() -> None:
    micro = MicroLora(MicroConfig(bound=5.0))
    hidden, targets = hidden_states(9, tokens=1)
    objective = log_prob_of(targets)
    values = [objective(hidden).value]
    for _ in range(60):
        micro.learn_response(hidden, objective, 1.0, "p")
        values.append(objective(micro.apply(hidden, "p")).value)
    assert all(after >= before for before, after in itertools.pairwise(values))
    assert values[0] < -1.0
    assert -0.01 < values[-1] <= 0


def test_repeated_blame_pushes_less_and_less() -> None:
    micro = MicroLora(MicroConfig(bound=5.0, push_margin=2.0))
    hidden, targets = hidden_states(10, tokens=2)
    objective = log_prob_of(targets)
    falls = [-micro.learn_response(hidden, objective, -1.0, "p") for _ in range(40)]
    assert all(fall > 0 for fall in falls)
    assert falls[-1] < 0.1 * falls[0]
    assert sum(falls) < 10.0


def test_a_vector_points_where_it_was_praised_and_away_from_where_it_was_blamed() -> None:
    x, u = unit(0), unit(1)
    for advantage in (0.6, -0.6):
        micro = MicroLora(MicroConfig())
        moved = micro.learn(5.0 * x, 9.0 * u, advantage)
        assert moved == pytest.approx(0.1 * advantage, rel=1e-4), "neither length plays a part"
        assert float((micro.apply(x) - x) @ u) == pytest.approx(0.1 * advantage, rel=1e-4)


def test_opposite_clusters_learn_opposite_directions_in_one_pair() -> None:
    micro = MicroLora(MicroConfig(rank=1))
    a, b, u = unit(0, 64), unit(1, 64), unit(2, 64)
    for _ in range(20):
        micro.learn(a, u, 0.5)
        micro.learn(b, -u, 0.5)
    assert float((micro.apply(a) - a) @ u) > 0.1
    assert float((micro.apply(b) - b) @ u) < -0.1


def test_keys_do_not_touch_one_another() -> None:
    micro = MicroLora(MicroConfig())
    x, u = unit(0), unit(1)
    micro.learn(x, u, 1.0, "a")
    before = micro.apply(x, "a")
    micro.learn(x, -u, 1.0, "b")
    np.testing.assert_array_equal(micro.apply(x, "a"), before)
    assert micro.apply(x, "c") is x


def test_weights_decay_with_each_feedback() -> None:
    for decay, share in ((0.0, 1.0), (0.5, 0.5)):
        micro = MicroLora(MicroConfig(decay=decay))
        first, other = np.eye(D, dtype=np.float32)[:2]
        micro.learn(first, unit(1), 1.0)
        before = micro.apply(first) - first
        micro.learn(other, unit(2), 1e-6)
        np.testing.assert_allclose(micro.apply(first) - first, share * before, atol=1e-4)


def test_the_same_feedbacks_make_the_same_weights() -> None:
    def learned(seed: int) -> MicroWeights:
        micro = MicroLora(MicroConfig(rank=2), seed)
        for place in range(10):
            micro.learn(unit(place), unit(100 + place), 0.5 * (-1) ** place, "p")
        pair = micro.get("p")
        assert pair is not None
        return pair

    a, b, other = learned(0), learned(0), learned(1)
    assert (a.A.tobytes(), a.B.tobytes()) == (b.A.tobytes(), b.B.tobytes())
    assert a.A.tobytes() != other.A.tobytes()


# ------------------------------------------------------------------------------------------------ bounds


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(-1.0, 1.0)), min_size=1, max_size=30),
    st.sampled_from([1, 2]),
    st.sampled_from([0.01, 0.5, 3.0]),
    st.floats(1e-10, 1e10),
)
def test_no_vector_moves_by_more_than_the_bound(
    feedbacks: list[tuple[int, int, float]], rank: int, bound: float, scale: float
) -> None:
    micro = MicroLora(MicroConfig(rank=rank, bound=bound, vector_step=1.0))
    for x, direction, advantage in feedbacks:
        micro.learn(scale * unit(x), unit(direction), advantage)
    pair = micro.get("shared")
    if pair is not None:
        assert pair.norm <= bound * 1.0001
        assert np.linalg.norm(pair.B @ pair.A) <= bound * 1.0001
    for place in range(5):
        moved = micro.apply(unit(place)) - unit(place)
        assert np.linalg.norm(moved) <= bound * 1.0001


@pytest.mark.parametrize("advantage", [math.nan, math.inf, -math.inf, 1.5, 1e30, -1e300, 10**400, True, "1"])
def test_a_reward_that_is_none_changes_nothing(advantage: float) -> None:
    micro = MicroLora(MicroConfig())
    hidden, targets = hidden_states(11)
    micro.learn(unit(0), unit(1), 0.5, "v")
    micro.learn_response(hidden, log_prob_of(targets), 0.5, "r")
    before = micro.get("v"), micro.get("r")
    with pytest.raises(InvalidInputError, match="from -1 to 1"):
        micro.learn(unit(0), unit(1), advantage, "v")
    with pytest.raises(InvalidInputError, match="from -1 to 1"):
        micro.learn_response(hidden, log_prob_of(targets), advantage, "r")
    assert (micro.get("v"), micro.get("r")) == before


@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38])
def test_a_vector_that_is_none_changes_nothing(number: float) -> None:
    micro = MicroLora(MicroConfig())
    micro.learn(unit(0), unit(1), 0.5)
    before = micro.get("shared")
    bad = unit(2).copy()
    bad[3] = number
    for x, direction in ((bad, unit(1)), (unit(0), bad), (0 * unit(0), unit(1)), (unit(0)[None], unit(1))):
        with pytest.raises(InvalidInputError):
            micro.learn(x, direction, 0.5)
    assert micro.get("shared") is before


def test_states_that_are_not_finite_are_refused() -> None:
    hidden, targets = hidden_states(12)
    hidden[2, 2] = np.nan
    micro = MicroLora(MicroConfig())
    with pytest.raises(InvalidInputError, match="finite"):
        micro.learn_response(hidden, log_prob_of(targets), 0.5, "p")
    assert len(micro) == 0


def test_a_head_that_overflows_changes_nothing() -> None:
    micro = MicroLora(MicroConfig())
    hidden, _ = hidden_states(13)

    def broken(rows: Float32) -> Judged:
        return Judged(math.nan, np.full_like(rows, math.nan))

    def steep(rows: Float32) -> Judged:
        return Judged(0.0, np.full_like(rows, 1e30))

    with np.errstate(all="ignore"):
        assert micro.ascend("p", hidden, steep, 0.5) == 0.0
        assert micro.ascend("p", hidden, broken, 0.5) == 0.0
    assert len(micro) == 0


@pytest.mark.parametrize(
    "bad",
    ["x", ["a"] * D, [1j] * D, 1.0, np.float32(1.0), [[1.0], [1.0, 2.0]], b"x" * 48, None, [True] * D, 10**400],
    ids=lambda bad: str(bad)[:12],
)
def test_what_is_no_vector_of_real_numbers_is_refused(bad: Any) -> None:
    micro = MicroLora(MicroConfig())
    micro.learn(unit(0), unit(1), 0.5)
    before = micro.get("shared")
    objective = log_prob_of(hidden_states(15)[1])
    for refused in (
        lambda: micro.apply(bad),
        lambda: micro.apply(bad, "unknown"),
        lambda: micro.learn(bad, unit(1), 0.5),
        lambda: micro.learn(unit(0), bad, 0.5),
        lambda: micro.learn_response(bad, objective, 0.5, "p"),
        lambda: micro.ascend("p", bad, objective, 0.5),
    ):
        with pytest.raises(InvalidInputError):
            refused()
    assert micro.get("shared") is before
    assert len(micro) == 1


def test_lists_and_other_real_numbers_are_taken_and_answers_are_float32() -> None:
    micro, same = MicroLora(MicroConfig()), MicroLora(MicroConfig())
    x, u = unit(0), unit(1)
    assert micro.learn(x.tolist(), u.astype(np.float64), 0.5) == same.learn(x, u, 0.5)
    for key in ("shared", "unknown"):
        for value in (x.tolist(), x.astype(np.float64), np.stack([x, x]).astype(np.float16), np.arange(D)):
            assert micro.apply(value, key).dtype == np.float32
    np.testing.assert_array_equal(micro.apply(x.tolist()), same.apply(x))


def test_another_width_is_an_error_that_names_both() -> None:
    micro = MicroLora(MicroConfig())
    micro.learn(unit(0), unit(1), 0.5)
    with pytest.raises(DimensionMismatchError, match="width 7; this key learned from 12"):
        micro.apply(unit(0, 7))
    with pytest.raises(DimensionMismatchError, match="direction"):
        micro.learn(unit(0), unit(1, 7), 0.5)


def test_the_least_recently_used_pattern_goes() -> None:
    micro = MicroLora(MicroConfig(max_patterns=2))
    for key in ("a", "b"):
        micro.learn(unit(0), unit(1), 0.5, key)
    micro.apply(unit(0), "a")
    micro.learn(unit(0), unit(1), 0.5, "c")
    assert list(micro) == ["a", "c"]
    micro.drop(["a", "unknown"])
    assert list(micro) == ["c"]


def test_a_pair_that_was_dropped_in_the_meantime_is_not_put_back() -> None:
    micro = MicroLora(MicroConfig())
    hidden, targets = hidden_states(14)
    objective = log_prob_of(targets)
    micro.learn_response(hidden, objective, 0.5, "p")

    def dropping(rows: Float32) -> Judged:
        micro.drop(["p"])
        return objective(rows)

    assert micro.ascend("p", hidden, dropping, 0.5) == 0.0
    assert len(micro) == 0


def test_a_feedback_that_another_overtakes_counts_all_the_same() -> None:
    micro = MicroLora(MicroConfig())
    hidden, targets = hidden_states(16)
    objective = log_prob_of(targets)
    overtaking = [True]

    def overtaken(rows: Float32) -> Judged:
        if overtaking.pop() if overtaking else False:
            assert micro.ascend("p", hidden, objective, 0.3) == pytest.approx(0.3, rel=0.2)
        return objective(rows)

    for _ in range(2):  # the first move of a key, and a later one
        before = objective(micro.apply(hidden, "p")).value
        assert micro.ascend("p", hidden, overtaken, 0.3) == pytest.approx(0.3, rel=0.2)
        assert objective(micro.apply(hidden, "p")).value - before == pytest.approx(0.6, rel=0.2)
        overtaking.append(True)


def test_a_step_that_is_overtaken_keeps_to_what_is_left_of_the_way() -> None:
    micro = MicroLora(MicroConfig(bound=5.0, step_nats=100.0))
    hidden, targets = hidden_states(17, tokens=1)
    objective = log_prob_of(targets)
    overtaking = [True]

    def overtaken(rows: Float32) -> Judged:
        if overtaking.pop() if overtaking else False:
            micro.learn_response(hidden, objective, 1.0, "p")
        return objective(rows)

    start = objective(hidden).value
    found = micro.learn_response(hidden, overtaken, 1.0, "p")
    assert found < 0.8 * -start / 2, "half of what was left, not half of all"
    assert objective(micro.apply(hidden, "p")).value < 0.0
