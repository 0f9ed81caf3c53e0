"""Verdicts: exact moments whatever they are put together from, and a mean that forgets."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.verdicts import ALL, MOST_ROUTES, by_route, joined, together, verdict_of
from sona.patterns import Verdict

qualities = st.lists(st.floats(0, 1), max_size=12)


@given(st.lists(qualities, min_size=1, max_size=5))
def test_moments_are_those_of_all_values_together(parts: list[list[float]]) -> None:
    whole = Verdict()
    for part in parts:
        whole = together(whole, verdict_of(part, 3), half_life=10)
    values = [value for part in parts for value in part]
    assert whole.count == len(values)
    if values:
        assert whole.mean == pytest.approx(np.mean(values), abs=1e-12)
        assert whole.m2 == pytest.approx(np.var(values) * len(values), abs=1e-9)
        assert whole.recent_mean == pytest.approx(whole.mean)  # all of one cycle
    if len(values) > 1:
        assert whole.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_a_half_life_ago_counts_half() -> None:
    found = together(verdict_of([0.0] * 4, 0), verdict_of([1.0] * 2, 10), half_life=10)
    assert found.count == 6
    assert found.mean == pytest.approx(1 / 3)
    assert found.recent_weight == pytest.approx(4.0)
    assert found.recent_mean == pytest.approx(0.5)
    assert found.trend == pytest.approx(0.5 - 1 / 3)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.213), (5, 10, 0.269, 0.731), (10, 10, 0.787, 1.0)]
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    verdict = verdict_of([1.0] * right + [0.0] * (n - right), 1)
    assert verdict.interval[0] == pytest.approx(low, abs=5e-4)
    assert verdict.interval[1] == pytest.approx(high, abs=5e-4)


def test_of_nothing_nothing_is_known() -> None:
    assert Verdict().interval == (0.0, 1.0)
    assert Verdict().trend == 0.0
    assert by_route([], 1) == {}


def test_routes_have_verdicts_of_their_own() -> None:
    found = by_route([(("tool:a", "model:m"), 1.0), (("tool:b", "model:m"), 0.0), (("tool:a", "tool:a"), 0.5)], 2)
    assert {route: (one.count, one.mean) for route, one in found.items()} == {
        ALL: (3, 0.5),
        "tool:a": (2, 0.75),
        "model:m": (2, 0.5),
        "tool:b": (1, 0.0),
    }


def test_a_route_for_every_query_does_not_fill_the_bank() -> None:
    many = [by_route([((f"tool:{n}", "tool:usual"), 1.0)], 1) for n in range(100)]
    found = joined(many, half_life=10)
    assert len(found) == MOST_ROUTES + 1
    assert found[ALL].count == found["tool:usual"].count == 100
