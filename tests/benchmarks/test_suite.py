"""The run of all benchmarks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.suite import Outcome, discover, report

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").glob("bench_*.py"))


def test_every_bench_file_is_found_and_says_what_would_mislead() -> None:
    found = list(discover())
    assert [benchmark.name for benchmark in found] == [file.stem for file in FILES]
    assert all("misleading" in (benchmark.about or "") for benchmark in found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bench_file_runs_as_a_program_from_anywhere(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, file, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--quick", "--seeds", "--out"))


def test_benchmark_without_its_data_is_skipped_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy = [one for one in discover() if one.data is not None and not one.data_is_optional]
    monkeypatch.setattr(suite, "discover", lambda: needy)
    assert suite.main(["--out", str(tmp_path / "results.json")]) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    assert all("skipped: it needs --data DIR" in written["benchmarks"][benchmark.name] for benchmark in needy)
    assert "skipped" in capsys.readouterr().out
    assert "skipped" in (tmp_path / "report.md").read_text()


def test_report_shows_tables_and_pictures_and_what_failed() -> None:
    table = {"title": "accuracy", "columns": ["method", "acc"], "rows": [["ours", "0.5"]], "note": ""}
    measured = {"quick": True, "seeds": [0], "seconds": 3.2, "tables": [table], "pictures": ["a.png"], "results": {}}
    page = report([Outcome("bench_a", measured=measured), Outcome("bench_b", "failed with exit code 1", failed=True)])
    assert "| ours | 0.5 |" in page
    assert "![a.png](a.png)" in page
    assert "too small to count" in page
    assert "failed with exit code 1" in page
