"""Attempts replayed: what is foretold rests on the past alone."""

import dataclasses

import numpy as np
import pytest

from benchmarks.bank.attempts import Attempt
from benchmarks.bank.predicting import CYCLE, NEIGHBOURS, figures, nearest_mean, replay
from sona.checks import Float32
from sona.errors import InvalidInputError

COUNT = 70


def made_up() -> tuple[list[Attempt], Float32]:
    """Queries of four kinds, two of which succeed, in seven directions a kind."""
    kinds = [place % 4 for place in range(COUNT)]
    attempts = [Attempt(f"kind {kind}", "", ("tool:x",), float(kind < 2), "a", 1) for kind in kinds]
    rows = 5 * np.eye(4, 8)[kinds] + np.random.default_rng(0).standard_normal((COUNT, 8)) / 10
    return attempts, rows.astype(np.float32)


def test_nearest_mean_is_that_of_the_largest_cosines() -> None:
    rng = np.random.default_rng(0)
    queries, past = (rng.standard_normal((n, 6)).astype(np.float32) for n in (5, 40))
    quality = rng.random(40)
    for query, found in zip(queries, nearest_mean(queries, past, quality), strict=True):
        cosines = [row @ query / np.linalg.norm(row) for row in past]
        assert found == pytest.approx(quality[np.argsort(cosines)[-NEIGHBOURS:]].mean())
    assert nearest_mean(queries, past[:3], quality[:3]) == pytest.approx(quality[:3].mean())


def test_what_comes_later_changes_nothing() -> None:
    attempts, rows = made_up()
    changed = [
        dataclasses.replace(attempt, quality=1 - attempt.quality) if place >= 2 * CYCLE else attempt
        for place, attempt in enumerate(attempts)
    ]
    one, other = replay(attempts, rows, 0), replay(changed, rows, 0)
    for method in ("bank", "base", "knn"):
        before, after = getattr(one, method), getattr(other, method)
        assert before.shape == (COUNT - CYCLE,)
        np.testing.assert_array_equal(before[: 2 * CYCLE], after[: 2 * CYCLE])  # of the second and the third cycle
    assert one.base[0] == np.mean([attempt.quality for attempt in attempts[:CYCLE]])


def test_figures_are_those_of_all_but_the_first_cycle() -> None:
    attempts, rows = made_up()
    unknown = Attempt("no known word", "", (), 0.0, "a", 1)
    found = figures([unknown, *attempts], lambda texts: [None, *rows], 0)
    assert found["attempts"] == COUNT - CYCLE
    assert found["seen_before"] == 1.0
    assert found["successes"] == pytest.approx(0.5, abs=0.05)
    assert found["knn"] > 0.95
    assert found["brier.knn"] < found["brier.base"]
    assert {"auroc", "base", "brier.bank"} < found.keys()


def test_one_cycle_is_too_little() -> None:
    attempts, rows = made_up()
    with pytest.raises(InvalidInputError, match="20; more than a cycle of 20"):
        figures(attempts[:CYCLE], lambda texts: [*rows[:CYCLE]], 0)
