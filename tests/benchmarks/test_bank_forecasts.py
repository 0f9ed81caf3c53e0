"""Scores of forecasts against their definitions."""

import numpy as np
import pytest

from benchmarks.bank.forecasts import auroc, brier


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chances, succeeded = rng.integers(6, size=60) / 5, rng.random(60) < 0.3  # many ties
    pairs = [(one > other) + 0.5 * (one == other) for one in chances[succeeded] for other in chances[~succeeded]]
    assert auroc(chances, succeeded) == pytest.approx(np.mean(pairs))


def test_auroc_of_the_best_the_worst_and_the_ignorant() -> None:
    succeeded = np.array([True, False, True, False])
    assert auroc(succeeded.astype(float), succeeded) == 1.0
    assert auroc(1.0 - succeeded, succeeded) == 0.0
    assert auroc(np.full(4, 0.7), succeeded) == 0.5
    assert auroc(np.arange(4.0), np.ones(4, dtype=np.bool_)) == 0.5


def test_brier_is_the_mean_squared_difference() -> None:
    assert brier(np.array([1.0, 0.5, 0.2]), np.array([True, True, False])) == pytest.approx((0.25 + 0.04) / 3)
