"""What the gate does not admit is tried once more, beside what comes next."""

from pathlib import Path

from msgspec.structs import replace

from sona.config import GateConfig
from tests.engine.small import SMALL, open_small, record_task

IMPOSSIBLE = replace(SMALL, gate=GateConfig(min_held_out=4, min_gain=1.0, bootstrap_samples=200))


def test_the_trajectories_of_a_rejected_cycle_are_tried_once_more(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().status == "published"
    with open_small(tmp_path / "store", config=IMPOSSIBLE) as engine:
        record_task(engine, 60, seed=2)
        first = engine.learn()
        assert (first.status, first.funnel.left_out) == ("rejected", {"left for the next cycle": 60})
        assert engine.learn().status == "skipped", "alone they are not tried again"
        record_task(engine, 40, seed=3)
        second = engine.learn()
        assert (second.status, second.funnel.collected) == ("rejected", 100)
        assert second.funnel.left_out == {"left for the next cycle": 40}, "60 have had both their tries"
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 40, seed=4)
        third = engine.learn()
        assert third.funnel.collected == 80
        assert "left for the next cycle" not in third.funnel.left_out
