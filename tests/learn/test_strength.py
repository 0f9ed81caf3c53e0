from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sona.config import TrainConfig
from sona.errors import InvalidInputError
from sona.learn.ewc import initial_state
from sona.learn.strength import adapted, adapted_lambda, current_lambda, lambda_bounds

LED = TrainConfig(ewc_lambda=0.01, ewc_target_forgetting=0.02, ewc_lambda_span=10.0)
STATE = initial_state({"a": torch.ones(2)}, {"a": torch.zeros(2)})
positive = st.floats(1e-6, 1e6)


@given(lam=positive, forgotten=st.floats(-1, 1), target=st.floats(1e-6, 1), lower=positive, width=st.floats(1, 1e6))
def test_lambda_stays_in_bounds(lam: float, forgotten: float, target: float, lower: float, width: float) -> None:
    adapted_to = adapted_lambda(lam, forgotten, target, (lower, lower * width))
    assert lower <= adapted_to <= lower * width


@pytest.mark.parametrize(
    ("forgotten", "expected"),
    [(0.1, 2.0), (0.031, 2.0), (0.029, 1.0), (0.02, 1.0), (0.014, 1.0), (0.013, 0.5), (0.0, 0.5), (-0.1, 0.5)],
)
def test_lambda_follows_what_was_forgotten_and_rests_near_the_target(forgotten: float, expected: float) -> None:
    assert adapted_lambda(1.0, forgotten, 0.02, (0.01, 100.0)) == expected


def test_a_penalty_switched_off_stays_off() -> None:
    assert adapted_lambda(0.0, 1.0, 0.02, (0.1, 1.0)) == 0.0
    assert adapted(STATE, 1.0, TrainConfig(ewc_lambda=0.0, ewc_target_forgetting=0.02)) is STATE


@pytest.mark.parametrize(
    ("lam", "forgotten", "target", "bounds"),
    [
        (1.0, float("nan"), 0.1, (0.1, 1.0)),
        (1.0, 0.1, 0.0, (0.1, 1.0)),
        (-1.0, 0.1, 0.1, (0.1, 1.0)),
        (float("inf"), 0.1, 0.1, (0.1, 1.0)),
        (1.0, 0.1, 0.1, (0.0, 1.0)),
        (1.0, 0.1, 0.1, (2.0, 1.0)),
    ],
)
def test_numbers_out_of_range_are_refused(
    lam: float, forgotten: float, target: float, bounds: tuple[float, float]
) -> None:
    with pytest.raises(InvalidInputError, match="adapted λ"):
        adapted_lambda(lam, forgotten, target, bounds)


def test_lambda_that_is_led_is_a_part_of_the_state() -> None:
    state = STATE
    for _ in range(10):
        state = adapted(state, 0.5, LED)
    assert state.lam == current_lambda(state, LED) == lambda_bounds(LED)[1] == pytest.approx(0.1)
    assert current_lambda(STATE, LED) == 0.01, "a rollback to the earlier state takes λ back too"


def test_lambda_is_the_settings_where_it_is_not_led() -> None:
    state = adapted(STATE, 0.5, LED)
    assert current_lambda(state, TrainConfig(ewc_lambda=0.3)) == 0.3
    assert adapted(state, 0.5, TrainConfig(ewc_lambda=0.3)) is state


def test_lambda_comes_back_into_bounds_that_were_moved() -> None:
    state = adapted(STATE, 0.5, LED)  # 0.02
    assert current_lambda(state, TrainConfig(ewc_lambda=1.0, ewc_target_forgetting=0.02)) == pytest.approx(0.1)
