"""What the README shows runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

import sona
from tests.engine.small import SMALL, record_task

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[:1]
    assert len(example.strip().split("\n")) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert "skipped" in capsys.readouterr().out  # one trajectory is no cycle yet, and the example says so


def test_the_example_of_recall_runs_before_and_after_a_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len(example.strip().split("\n")) <= 20
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(example, "README.md", "exec"), names)
    assert capsys.readouterr().out == "nothing is known of such queries yet\n"
    with sona.open_sync("agent-store", model="tiny", config=SMALL, distill=names["distill"]) as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().metrics["lessons_written"] > 0
    exec(compile(example, "README.md", "exec"), names)
    told = capsys.readouterr().out
    assert told.startswith("Queries like this one:")
    assert "- Do: What went well." in told


def test_the_example_of_memories_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[2]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    weight, prunable = capsys.readouterr().out.splitlines()
    assert float(weight) > 1.0
    assert prunable == "[]", "scored once, it is not known yet"


def test_the_links_lead_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (README.parent / link).exists(), link
