"""The import form: what agents' logs hold arrives as trajectories, and a wrong line is named."""

import json
from pathlib import Path
from typing import Any

import pytest

import sona
from sona.errors import InvalidInputError
from sona.hooks.jsonl import Imported, read_jsonl


def read(tmp_path: Path, *rows: Any, source: str | None = None) -> list[Imported]:
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return list(read_jsonl(file, source))


def test_the_plain_form(tmp_path: Path) -> None:
    row = {
        "id": "a1",
        "source": "bot",
        "prompt": "hi",
        "response": "yo",
        "quality": 0.5,
        "steps": [{"name": "tool:x", "reward": 0.1, "latency_s": 2.0, "content": "c"}],
        "embedding": [1.0, 2.0],
        "metadata": {"k": "v"},
        "extra": 3,
    }
    (got,) = read(tmp_path, row)
    assert (got.line, got.quality, got.trajectory.id, got.trajectory.source) == (1, 0.5, "a1", "bot")
    assert got.trajectory.messages[0].content == "hi"
    assert got.trajectory.metadata == {"k": "v", "extra": "3"}
    assert (got.trajectory.steps[0].reward, got.trajectory.steps[0].latency_s) == (0.1, 2.0)


def test_a_conversation_ends_with_its_answer_and_its_calls_are_steps(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "agent": "retail",
        "reward": 1,
        "messages": [
            {"role": "user", "content": "return it"},
            {"role": "assistant", "tool_calls": [{"name": "find", "arguments": "{}"}]},
            {"role": "tool", "content": "found", "name": "find"},
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "###STOP###"},
        ],
    }
    (got,) = read(tmp_path, row)
    assert (got.trajectory.id, got.trajectory.source, got.quality) == ("7", "retail", 1.0)
    assert (got.trajectory.response, len(got.trajectory.messages)) == ("done", 3)
    assert [step.name for step in got.trajectory.steps] == ["tool:find"]
    assert got.trajectory.metadata["followed_by"] == "user: ###STOP###"


def test_actions_and_observations_are_steps_and_the_actions_are_the_answer(tmp_path: Path) -> None:
    steps = [{"thought": "hm", "action": "search[shoes]", "observation": "many"}, {"action": "click[Buy]"}]
    (got,) = read(
        tmp_path, {"env": "shop", "task": "buy shoes", "outcome": "unfinished", "reward": 0.0, "steps": steps}
    )
    assert got.trajectory.response == "search[shoes]\nclick[Buy]"
    assert [step.name for step in got.trajectory.steps] == ["search", "click"]
    assert "many" in got.trajectory.steps[0].content
    assert (got.trajectory.outcome, got.trajectory.metadata["outcome"]) == ("completed", "unfinished")


def test_names_fall_back_to_the_file_s(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "source": "x"}]
    assert [got.trajectory.source for got in read(tmp_path, *rows)] == ["log", "x"]
    assert [got.trajectory.source for got in read(tmp_path, *rows, source="me")] == ["me", "me"]
    assert [got.quality for got in read(tmp_path, *rows)] == [None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[1]",
        "{}",
        {"prompt": "a", "response": "b", "quality": 7},
        {"prompt": "a", "response": "b", "quality": "good"},
        {"prompt": "", "response": "b"},
        {"prompt": "a", "response": ["b"]},
        {"messages": {"role": "user"}, "response": "b"},
        {"messages": [{"role": "king", "content": "x"}], "response": "b"},
        {"prompt": "a", "response": "b", "steps": ["x"]},
        {"prompt": "a", "response": "b", "steps": [{"name": "x", "reward": "y"}]},
        {"prompt": "a", "response": "b", "metadata": [1]},
        {"prompt": "a", "response": "b", "embedding": ["x"]},
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="line 2"):
        read(tmp_path, {"prompt": "a", "response": "b"}, wrong)


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(
        "".join(json.dumps({"id": n, "prompt": "a", "response": "b", "quality": 1}) + "\n" for n in range(5))
    )
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.import_jsonl(file).new == 5
        again = engine.import_jsonl(file)
        assert (again.new, again.known) == (0, 5)
        assert engine.status().store.feedback == 5
        with pytest.raises(InvalidInputError, match="is no file"):
            engine.import_jsonl(tmp_path / "none.jsonl")
