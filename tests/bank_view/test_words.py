"""What is said of a pattern in few words."""

import pytest

from sona.bank.verdicts import followed
from sona.bank_view.words import best_and_worst, like, quality_and_interval, trend, what_happened
from sona.patterns import Change, PatternChange, Verdict
from tests.bank_view.patterns import pattern, rated


def test_nothing_is_said_of_what_nobody_rated() -> None:
    assert quality_and_interval(Verdict()) == "-"
    assert trend(Verdict()) == ""


def test_a_mean_stands_with_its_interval() -> None:
    low, high = rated(20, 0.75).interval
    assert quality_and_interval(rated(20, 0.75)) == f"0.75 ({low:.2f}-{high:.2f})"


def test_a_trend_needs_something_before_it() -> None:
    assert trend(rated(40, 0.2)) == ""
    assert trend(followed(rated(100, 0.2), rated(50, 0.8))) == "+0.20"
    assert trend(followed(rated(100, 0.8), rated(50, 0.2))) == "-0.20"
    assert trend(followed(rated(100, 0.5), rated(50, 0.5))) == "0.00"


def test_routes_of_different_kinds_are_not_compared() -> None:
    routes = {"tool:a": rated(20, 0.4), "model:big": rated(20, 0.9), "model:small": rated(20, 0.5)}
    assert best_and_worst(routes) == ("model:big", "model:small")
    assert best_and_worst({"tool:a": rated(20, 0.1), "model:big": rated(20, 0.9)}) is None


def test_routes_are_compared_where_there_is_evidence() -> None:
    good, bad, few = rated(20, 0.9), rated(20, 0.2), rated(1, 1.0)
    assert best_and_worst({"tool:a": bad, "tool:b": good, "tool:c": few}) == ("tool:b", "tool:a")
    assert best_and_worst({"tool:b": good, "tool:c": few}) is None
    assert best_and_worst({"tool:b": good}) is None
    assert best_and_worst({}) is None


def test_routes_that_can_not_be_told_apart_are_not_ranked() -> None:
    assert best_and_worst({"tool:a": rated(20, 0.6), "tool:b": rated(20, 0.5)}) is None
    assert best_and_worst({"tool:a": rated(20, 0.5), "tool:b": rated(20, 0.5)}) is None


def test_a_pattern_is_like_its_nearest_query() -> None:
    assert like(pattern(prompt="where is\n  my order")) == "where is my order"
    assert like(pattern(prompt="where is my order"), 9) == "where is…"
    assert like(pattern(prompt="")) == "and now"  # of what it keeps a failure is the nearest


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("born", "p2 born of 7 trajectories"),
        ("split", "p2 split from p1, with 7 trajectories"),
        ("merged", "p2 merged into p1, with 7 trajectories"),
        ("pruned", "p2 pruned, with 7 trajectories: it had hardly any weight left"),
    ],
)
def test_every_change_is_said_in_words(change: Change, text: str) -> None:
    assert what_happened(PatternChange(cycle=1, change=change, pattern="p2", other="p1", count=7)) == text
