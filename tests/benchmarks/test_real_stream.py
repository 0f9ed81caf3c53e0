"""The real stream, end to end, at the smallest size that a cycle accepts."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_real_stream
from benchmarks.bench_real_stream import BENCHMARK
from benchmarks.intent_stream import StreamSize

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "toydata"
    (folder / "dev").mkdir(parents=True)
    rows = [
        {"text": f"{word} {place}", "intent": intent, "domain": domain}
        for domain, intents in (("a", ("one", "two")), ("b", ("three", "four")))
        for intent, word in zip(intents, ("apple", "chair"), strict=True)
        for place in range(90)
    ]
    (folder / "dev" / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_result_keys_are_those_of_the_readme(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_real_stream, "QUICK", StreamSize(domains=2, chunks=1, chunk=120, held_out=10))
    assert BENCHMARK.main(["--data", str(data), "--quick", "--out", str(tmp_path / "out.json")]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    keys = {
        f"toydata.shipped.{key}" for key in ("acc", "base_acc", "shared_acc", "plain_acc", "joint_acc", "base_kept")
    }
    assert keys <= last["results"].keys()
    assert all(0.0 <= last["results"][key] <= 1.5 for key in keys)  # a ratio can rise a little above 1
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row[0] for row in written["tables"][0]["rows"]] == ["base", "sona", "shared", "plain", "joint"]
    steps = {row[0]: row[-2] for row in written["tables"][0]["rows"]}
    assert steps["sona"] == steps["plain"] == steps["joint"]
