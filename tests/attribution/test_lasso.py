"""The LASSO against its own optimality conditions, closed forms, and values of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.attribution.lasso import lasso
from sona.errors import InvalidInputError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 30), st.sampled_from([0.01, 0.1, 1.0]))
def test_weights_meet_the_optimality_conditions(seed: int, rows: int, columns: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    X = (rng.random((rows, columns)) < 0.5).astype(float)
    y = rng.normal(size=rows) * 3
    found = lasso(X, y, alpha)
    scales = X.std(0)
    standard = (X - X.mean(0)) / np.where(scales > 0, scales, 1.0)
    pull = standard.T @ (y - found.intercept - X @ found.weights) / rows  # the subgradient of the squared error
    size = 1e-6 * max(1.0, float(np.abs(y).max()))
    active = found.weights != 0
    assert np.all(np.abs(pull) <= alpha + size)
    assert np.allclose(pull[active], alpha * np.sign(found.weights[active]), atol=size)
    assert np.isclose((y - found.intercept - X @ found.weights).mean(), 0, atol=size)


def test_orthogonal_columns_get_soft_thresholds() -> None:
    X = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(float)  # every subset once: standardised, orthonormal
    y = 4.0 * X[:, 0] - 1.0 * X[:, 1] + 0.02 * X[:, 2] + 5.0
    found = lasso(X, y, 0.1)  # a column has the deviation 1/2, so its covariance is half its weight
    assert np.allclose(found.weights, [4.0 - 0.2, -1.0 + 0.2, 0.0], atol=1e-9)


def test_alpha_of_nothing_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 5))
    y = X @ np.arange(5.0) + 2.0 + rng.normal(size=30)
    wanted, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(30)]), y, rcond=None)
    found = lasso(X, y, 0.0)
    assert np.allclose([*found.weights, found.intercept], wanted, atol=1e-7)


def test_values_are_scikit_learns() -> None:
    X = (np.arange(12)[:, None] * np.array([3, 5, 7, 11]) % 13 % 2).astype(float)
    y = np.array([2.0, -1.0, 0.5, 3.0, 1.0, 0.0, -2.0, 4.0, 1.5, 2.5, -0.5, 1.0])
    found = lasso(X, y, 0.2)
    # make_pipeline(StandardScaler(), Lasso(alpha=0.2, tol=1e-14, max_iter=10**6)) of scikit-learn 1.9.1, rescaled
    assert np.allclose(found.weights, [-0.0, -0.38, -1.67, -0.67], atol=1e-8)
    assert np.isclose(found.intercept, 2.36, atol=1e-8)


def test_column_that_never_changes_gets_nothing() -> None:
    X = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = lasso(X, [0.0, 2.0, 0.0, 2.0], 0.0)
    assert found.weights[0] == 0.0
    assert found.weights[1] == pytest.approx(2.0)


def test_no_columns_leave_the_mean() -> None:
    found = lasso(np.zeros((3, 0)), [1.0, 2.0, 3.0], 0.1)
    assert (found.weights.shape, found.intercept) == ((0,), 2.0)


@pytest.mark.parametrize(
    ("X", "y", "alpha"),
    [
        (np.zeros((0, 2)), [], 0.1),
        (np.zeros((2, 2)), [1.0], 0.1),
        (np.zeros(2), [1.0, 2.0], 0.1),
        ([[np.nan], [1.0]], [1.0, 2.0], 0.1),
        (np.zeros((2, 1)), [1.0, np.inf], 0.1),
        (np.zeros((2, 1)), [1.0, 2.0], -0.1),
    ],
)
def test_what_can_not_be_fitted_is_refused(X: object, y: list[float], alpha: float) -> None:
    with pytest.raises(InvalidInputError, match="lasso"):
        lasso(X, y, alpha)  # type: ignore[arg-type]
