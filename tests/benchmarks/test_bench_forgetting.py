"""What the benchmark of forgetting tells, without its runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import bench_forgetting
from benchmarks.bench_forgetting import BENCHMARK
from benchmarks.forgetting.course import Course
from benchmarks.forgetting.methods import METHODS, Job, Outcome
from benchmarks.forgetting.score import AccuracyMatrix
from benchmarks.forgetting.stream import make_stream
from sona.types import CycleReport, Funnel

MATRIX = AccuracyMatrix(
    rows=({"base": 1.0, "a": 0.0}, {"base": 1.0, "a": 0.0}, {"base": 0.5, "a": 0.8}),
    segments=("base", "a"),
    judged=("a",),
)
NOTHING = Funnel(collected=0, trained=0, held_out=0)


def hand_made(jobs: Sequence[Job], processes: int) -> list[Outcome]:
    """Each method's outcome: sona founds a skill in every hour."""
    outcomes = []
    for job in jobs:
        hours = len(make_stream(job.stream, job.seed, job.size).hours) if "sona" in job.method else 0
        reports = [
            CycleReport(cycle=hour, status="published", reason="", funnel=NOTHING, parent="v0", metrics=born)
            for hour, born in enumerate([{"skills_born": 1.0}] * hours)
        ]
        outcomes.append(Outcome(Course(MATRIX, 2.5), tuple(reports)))
    return outcomes


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_forgetting, "run_jobs", hand_made)
    monkeypatch.setattr(bench_forgetting, "base_folder", lambda recipe, progress: Path())


def results(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(last["results"], dict)
    return last["results"]


def test_every_method_has_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ["--only", "streams", "--streams", "plain,drift", "--methods", ",".join(METHODS), "--seeds", "0,"]
    assert BENCHMARK.main([*arguments, "--out", str(out)]) == 0
    told = results(capsys)
    figures = ("acc", "bwt", "la", "base_kept", "cpu_s")
    assert {f"{name}.{m}.{figure}" for name in ("plain", "drift") for m in METHODS for figure in figures} <= told.keys()
    assert "plain.peft.fwt" in told
    assert "plain.joint.fwt" not in told  # it has no order, so nothing was measured
    assert told["plain.sona.acc"] == 0.8
    assert told["plain.sona.base_kept"] == 0.5
    pictures = {picture.name for picture in tmp_path.glob("*.png")}
    assert {f"bench_forgetting-plain-{method}.png" for method in METHODS} <= pictures


def test_skill_founded_in_every_hour_is_found_at_once_and_mostly_false(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--only", "streams", "--streams", "plain", "--methods", "sona", "--seeds", "0,"]
    BENCHMARK.main([*arguments, "--out", str(tmp_path / "out.json")])
    told = results(capsys)
    hours = len(make_stream("plain", 0).hours)
    assert told["boundary.delay_hours"] == 0.0
    assert told["boundary.false_alarms_per_100h"] == pytest.approx(100 * (hours - 5) / hours)


def test_three_seeds_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BENCHMARK.main(["--only", "streams", "--streams", "plain", "--methods", "peft", "--out", str(tmp_path / "o.json")])
    told = results(capsys)
    assert told["plain.peft.acc_std"] == 0.0
    assert not any(key.startswith("boundary") for key in told)


def test_unknown_stream_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        BENCHMARK.main(["--streams", "plain,stormy"])
    assert "stormy" in capsys.readouterr().err
