"""What the gate does not admit is tried once more, beside what comes next."""

from pathlib import Path

from msgspec.structs import replace

import sona
from sona.config import GateConfig
from tests.engine.small import SMALL, WORLD, open_small, record_task

IMPOSSIBLE = replace(SMALL, gate=GateConfig(min_held_out=4, min_gain=1.0, bootstrap_samples=200))
LEFT = "left for the next cycle"


def learned_once(store: Path) -> None:
    """A store whose first version knows the task, so that a rejection founds nothing."""
    with open_small(store) as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().status == "published"


def test_the_trajectories_of_a_rejected_cycle_are_tried_once_more(tmp_path: Path) -> None:
    learned_once(tmp_path / "store")
    with open_small(tmp_path / "store", config=IMPOSSIBLE) as engine:
        record_task(engine, 60, seed=2)
        first = engine.learn()
        assert (first.status, first.funnel.left_out) == ("rejected", {LEFT: 60})
        assert engine.learn().status == "skipped", "alone they are not tried again"
        record_task(engine, 1, seed=5)
        assert engine.learn().status == "skipped", "nor beside one that is new"
        record_task(engine, 40, seed=3)
        second = engine.learn()
        assert (second.status, second.funnel.collected) == ("rejected", 101)
        assert second.funnel.left_out == {LEFT: 41}, "60 have had both their tries"
        assert second.metrics["tokens"] > first.metrics["tokens"]
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 40, seed=4)
        third = engine.learn()
        assert (third.funnel.collected, third.funnel.left_out.get(LEFT)) == (81, None)
        assert engine.status().store.uncollected == 0


def test_what_was_turned_down_waits_with_the_rest(tmp_path: Path) -> None:
    learned_once(tmp_path / "store")
    with open_small(tmp_path / "store", config=IMPOSSIBLE) as engine:
        record_task(engine, 60, seed=2)
        for example in WORLD.sample("tool_call", 20, 7):
            engine.record(sona.Trajectory(messages=example.prompt, response="no"), quality=0.0)
        engine.record(sona.Trajectory(messages="echo a", outcome="failed"), quality=1.0)
        funnel = engine.learn().funnel
        # Those whose question is held out are not pushed away, but are left all the same.
        assert funnel.left_out == {LEFT: 80, "outcome failed": 1}
        assert funnel.collected == sum(funnel.left_out.values())


def test_of_a_full_load_nothing_waits(tmp_path: Path) -> None:
    learned_once(tmp_path / "store")
    full = replace(IMPOSSIBLE, cycle=replace(SMALL.cycle, max_trajectories=60))
    with open_small(tmp_path / "store", config=full) as engine:
        record_task(engine, 60, seed=2)
        report = engine.learn()
        assert (report.status, report.funnel.left_out) == ("rejected", {})
        assert engine.status().store.uncollected == 0
