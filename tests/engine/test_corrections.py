"""Feedback that takes back what was said before, through the engine."""

from pathlib import Path

import numpy as np
import pytest

import sona
from sona.checks import Float32
from sona.config import Config, CycleConfig

WIDTH = 16
CENTRE = np.random.default_rng(0).normal(size=WIDTH)
SETTINGS = Config(cycle=CycleConfig(min_trajectories=4))


def near(seed: int) -> Float32:
    return np.asarray(CENTRE + 0.1 * np.random.default_rng(seed).normal(size=WIDTH), np.float32)


def record(engine: sona.SyncEngine, count: int, quality: float) -> list[str]:
    ids = []
    for place in range(count):
        steps = [sona.Step(name="tool:search")]
        one = sona.Trajectory(messages=f"q {place}", response=f"a {place}", embedding=near(place), steps=steps)
        assert engine.record(one, quality=quality) == "recorded"
        ids.append(one.id)
    return ids


def rate(engine: sona.SyncEngine, ids: list[str], quality: float) -> None:
    for name in ids:
        engine.feedback(name, quality)


def test_a_corrected_trajectory_counts_once_and_is_no_example_of_what_was_withdrawn(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", config=SETTINGS) as engine:
        ids = record(engine, 60, 1.0)
        engine.learn()
        assert "quality 1.00" in engine.recall(near(99), 1)[0].text
        for _ in range(2):
            rate(engine, ids, 0.0)
            report = engine.learn()
            assert (report.funnel.collected, report.metrics["bank_revised"]) == (60, 60)
            assert engine.bank.learned == 60
            (pattern,) = engine.bank.patterns
            for verdict in (pattern.verdict, pattern.routes["tool:search"]):
                assert verdict.count == 60
                assert (verdict.mean, verdict.recent_mean) == pytest.approx((0, 0))
            assert {one.quality for one in (*pattern.exemplars, *pattern.failures)} == {0.0}
            assert "quality 1.00" not in engine.recall(near(99), 1)[0].text
        best = engine.best_route(near(99), "tool")
        assert best is not None
        assert best.chosen.quality < 0.1


def test_after_a_rollback_only_what_the_version_in_force_learned_is_revised(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", config=SETTINGS) as engine:
        old = record(engine, 20, 1.0)
        engine.learn()
        new = record(engine, 20, 1.0)
        rate(engine, old, 0.0)
        engine.learn()
        engine.roll_back()
        assert (engine.bank.learned, engine.bank.patterns[0].verdict.mean) == (20, 1.0)
        rate(engine, [*old, *new], 0.5)
        report = engine.learn()
        assert report.metrics["bank_revised"] == 20
        assert engine.bank.learned == 40
        assert sum(pattern.verdict.count for pattern in engine.bank.patterns) == 40
        for pattern in engine.bank.patterns:
            assert (pattern.verdict.mean, pattern.verdict.m2) == pytest.approx((0.5, 0), abs=1e-9)
