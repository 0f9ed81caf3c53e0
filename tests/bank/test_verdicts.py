"""Verdicts: exact moments whatever they are put together from, and a mean that forgets."""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.verdicts import ALL, MOST_ROUTES, RECENT, by_route, continued, followed, joined, pooled, verdict_of
from sona.patterns import Verdict

Both = Callable[[Verdict, Verdict], Verdict]

qualities = st.lists(st.floats(0, 1), max_size=12)


@given(st.lists(qualities, min_size=1, max_size=5), st.sampled_from([followed, pooled]))
def test_moments_are_those_of_all_values_together(parts: list[list[float]], both: Both) -> None:
    whole = Verdict()
    for part in parts:
        whole = both(whole, verdict_of(part))
    values = [value for part in parts for value in part]
    assert whole.count == len(values)
    assert whole.recent_weight <= min(len(values), RECENT) + 1e-9
    if values:
        assert whole.mean == pytest.approx(np.mean(values), abs=1e-12)
        assert whole.m2 == pytest.approx(np.var(values) * len(values), abs=1e-9)
        assert min(values) - 1e-9 <= whole.recent_mean <= max(values) + 1e-9
    if len(values) > 1:
        assert whole.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=200))
def test_what_is_recent_is_the_running_average_one_by_one(values: list[float]) -> None:
    whole, weight, total = Verdict(), 0.0, 0.0
    for value in values:
        whole = followed(whole, verdict_of([value]))
        weight, total = weight * (1 - 1 / RECENT) + 1, total * (1 - 1 / RECENT) + value
    assert whole.recent_weight == pytest.approx(weight)
    assert whole.recent_mean == pytest.approx(total / weight)


def test_a_route_that_breaks_is_seen_after_some_fifty_tries() -> None:
    known = verdict_of([1.0] * 500)
    few, some, many = (followed(known, verdict_of([0.0] * tries)) for tries in (10, 50, 150))
    assert few.recent_mean > 0.8
    assert some.recent_mean < 0.4
    assert many.recent_mean < 0.06
    assert many.trend < -0.7
    assert many.mean == pytest.approx(500 / 650)


def test_routes_that_nobody_takes_keep_their_name() -> None:
    found = continued({ALL: verdict_of([1.0] * 60), "tool:old": verdict_of([1.0] * 60)}, {ALL: verdict_of([0.0] * 500)})
    assert found["tool:old"] == verdict_of([1.0] * 60)
    assert found[ALL].recent_mean < 0.01


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.213), (5, 10, 0.269, 0.731), (10, 10, 0.787, 1.0)]
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    verdict = verdict_of([1.0] * right + [0.0] * (n - right))
    assert verdict.interval[0] == pytest.approx(low, abs=5e-4)
    assert verdict.interval[1] == pytest.approx(high, abs=5e-4)


def test_of_nothing_nothing_is_known() -> None:
    assert Verdict().interval == (0.0, 1.0)
    assert Verdict().trend == 0.0
    assert by_route([]) == {}


def test_routes_have_verdicts_of_their_own() -> None:
    found = by_route([(("tool:a", "model:m"), 1.0), (("tool:b", "model:m"), 0.0), (("tool:a", "tool:a"), 0.5)])
    assert {route: (one.count, one.mean) for route, one in found.items()} == {
        ALL: (3, 0.5),
        "tool:a": (2, 0.75),
        "model:m": (2, 0.5),
        "tool:b": (1, 0.0),
    }


def test_a_route_for_every_query_does_not_fill_the_bank() -> None:
    many = [by_route([((f"tool:{n}", "tool:usual"), 1.0)]) for n in range(100)]
    found = joined(many)
    assert len(found) == MOST_ROUTES + 1
    assert found[ALL].count == found["tool:usual"].count == 100
