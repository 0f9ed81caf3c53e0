"""What a benchmark leaves behind."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.dataset import DataNeed


def measure(call: Call) -> None:
    for seed in call.seeds:
        call.result("toy.acc", 0.5 + seed)
    call.table("accuracy", ["method", "acc"], [["ours", 0.5]])
    with call.picture("toy", 2.0, 1.0) as figure:
        if figure is not None:
            figure.subplots().plot([0, 1])


TOY = Benchmark("bench_toy", "A toy.", measure)
WITH_DATA = Benchmark("bench_toy", "A toy.", measure, data=DataNeed("text and intent", lambda row: "intent" in row))


def test_last_line_is_json_with_commit_machine_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TOY.main(["--out", str(tmp_path / "toy.json")]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "bench_toy"
    assert last["results"] == {"toy.acc": 0.5}
    assert last["commit"]
    assert {"cpu", "cores", "memory_gib", "python", "torch"} <= last["machine"].keys()


def test_file_holds_the_last_line_with_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOY.main(["--out", str(tmp_path / "deep" / "toy.json"), "--quick"])
    written = json.loads((tmp_path / "deep" / "toy.json").read_text())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: written[key] for key in last} == last
    assert last["quick"] is True
    assert written["tables"][0]["rows"] == [["ours", "0.500"]]
    assert (tmp_path / "deep" / written["pictures"][0]).read_bytes().startswith(b"\x89PNG")


def test_several_seeds_give_mean_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOY.main(["--out", str(tmp_path / "toy.json"), "--seeds", "3"])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert results == {"toy.acc": 1.5, "toy.acc_std": 1.0}


def test_figure_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    call = Call("bench_toy", argparse.Namespace(quick=False, seeds=(0,), out=tmp_path / "toy.json"))
    call.result("toy.acc", float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        call.finish(0.0)


def test_missing_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert WITH_DATA.main([]) == 2
    assert "needs --data DIR" in capsys.readouterr().out
    assert WITH_DATA.main(["--data", str(tmp_path)]) == 2
    assert f"{tmp_path} has no dev/*.jsonl with text and intent" in capsys.readouterr().out


def test_data_that_fit_are_taken(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "a.jsonl").write_text('{"text": "hello", "intent": "greeting"}\n')
    assert WITH_DATA.main(["--data", str(tmp_path), "--out", str(tmp_path / "toy.json")]) == 0
