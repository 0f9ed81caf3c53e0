"""The demo from beginning to end: small runs for what it writes, one of full size for what it claims."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import sona
import sona.demo.story
from sona.demo import DemoOptions, DemoResult, DemoSize, run_demo
from sona.errors import InvalidInputError
from sona.sync import SyncEngine

SMALL = DemoSize(new=32, earlier=4, everyday=1, exam=8, passes=2, held_out_share=0.5, probes=16)
"""As little as still makes cycles that train."""


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def told(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Run:
    """A small run's options and result."""

    def __init__(self, out: Path) -> None:
        self.options = DemoOptions(out=out, size=SMALL, json_path=out.parent / "demo.json", console=quiet())
        self.result = run_demo(self.options)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("demo") / "out")


def findings(result: DemoResult) -> list[object]:
    """All that must be the same for the same seed: not ids and times."""
    return [
        [(row.cycle, row.answers) for row in result.rows],
        result.traffic,
        [(cycle.status, cycle.funnel, cycle.gate) for cycle in result.cycles],
        result.returns,
        result.comparisons,
    ]


def test_run_writes_figures_picture_report_and_store(first: Run) -> None:
    result = first.result
    assert first.options.json_path is not None
    figures = json.loads(first.options.json_path.read_text())
    assert set(figures) == {"before", "after", "kept", "rollback_identical", "seconds"}
    assert figures == result.figures()
    assert result.picture is not None
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert result.report.read_text().startswith("<!doctype html>")
    with sona.open_sync(result.store, model="tiny") as engine:
        assert engine.status().store.trajectories == result.trajectories
        assert [version.id for version in engine.versions()] == [version.id for version in result.versions]


def test_cycles_learn_what_was_recorded(first: Run) -> None:
    assert [cycle.status == "skipped" for cycle in first.result.cycles] == [False] * 3
    assert all(cycle.funnel.trained for cycle in first.result.cycles)
    funnels = [cycle.funnel for cycle in first.result.cycles]
    waiting = [sum(n for reason, n in funnel.left_out.items() if "next cycle" in reason) for funnel in funnels]
    collected = sum(funnel.collected for funnel in funnels) - sum(waiting[:-1])  # what waits is collected again
    recorded = sum(traffic.queries + traffic.asked_person for traffic in first.result.traffic)
    assert collected == recorded == first.result.trajectories


def test_console_tells_each_cycle_and_where_the_results_are(first: Run) -> None:
    lines = told(first.options.console)
    assert all(f"Cycle {number} of 3" in lines for number in (1, 2, 3))
    assert str(first.result.report) in lines
    assert "\x1b" not in lines  # neither colours nor moving bars where there is no terminal


def test_second_run_in_the_same_folder_finds_the_same(first: Run) -> None:
    again = run_demo(first.options)
    assert findings(again) == findings(first.result)
    assert again.trajectories == first.result.trajectories  # a fresh store, not the old one's traffic as well


def test_without_learning_nothing_rises(tmp_path: Path) -> None:
    result = run_demo(DemoOptions(out=tmp_path / "out", learning=False, size=SMALL, console=quiet()))
    assert result.after == result.before
    assert result.kept == 1.0
    assert result.rollback_identical is None
    assert [version.id for version in result.versions] == ["v0"]
    assert result.trajectories == sum(traffic.queries + traffic.asked_person for traffic in result.traffic)
    assert result.rows[-1].answers.token_ids == result.rows[0].answers.token_ids


def test_interrupt_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(engine: SyncEngine, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sona.demo.story, "take", interrupted)
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoOptions(out=tmp_path / "out", size=SMALL, console=console))
    assert "Stopped" in told(console)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/demo.json", "."])
def test_figures_that_could_not_be_written_stop_it_at_once(tmp_path: Path, place: str) -> None:
    options = DemoOptions(out=tmp_path / "out", json_path=tmp_path / place, console=quiet())
    with pytest.raises(InvalidInputError, match="name a file"):
        run_demo(options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_tasks_rise_old_skills_stay_and_roll_back_restores_the_answers(tmp_path: Path) -> None:
    result = run_demo(DemoOptions(out=tmp_path / "out", console=quiet()))
    assert result.after - result.before >= 0.40
    assert result.kept >= 0.90
    assert result.rollback_identical is True
