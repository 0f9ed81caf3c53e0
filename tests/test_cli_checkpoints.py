"""``sona checkpoints``: what there is, whether it is whole, and a model's folder of it, without the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from sona.cli import app
from sona.errors import SonaError, StoreCorruptError
from sona.storage.store import Store
from sona.storage.training_folder import TrainingFolder
from sona.training import CheckpointNote, JobResult


def result(number: int) -> JobResult:
    return JobResult(number=number, id=f"job-{number}", digest=b"", state="done")


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    """Of a store with two checkpoints."""
    with Store.open(tmp_path / "S"):
        pass
    found = TrainingFolder(tmp_path / "S")
    found.base_files.mkdir(parents=True)
    (found.base_files / "config.json").write_text("{}")
    (found.base_files / "chat_template.jinja").write_text("{{ messages }}")
    for number in (1, 2):
        note = CheckpointNote(through=number, fingerprint="f", kind="k", steps=1, results=(result(number),))
        tensors = {
            "weight/a": torch.full((300,), float(number), dtype=torch.bfloat16),
            "optimizer/seed": torch.tensor(0),
        }
        found.checkpoints.save(save(tensors, note.metadata()))
    return found


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([*map(str, words)])
    return int(ended.value.code or 0)


def test_they_are_listed_with_what_is_new_in_each(folder: TrainingFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("checkpoints", "list", "--store", folder.path.parent) == 0
    table = capsys.readouterr().out
    assert "whole" in table
    assert "delta" in table
    assert run("checkpoints", "list", "--store", folder.path.parent, "--json") == 0
    told = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(one["number"], one["is_snapshot"], one["jobs"]) for one in told] == [
        (1, True, ["job-1"]),
        (2, False, ["job-2"]),
    ]


def test_a_models_folder_holds_the_weights_and_the_bases_files(
    folder: TrainingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("checkpoints", "restore", 2, "--store", folder.path.parent, "--to", tmp_path / "M", "--json")
    assert run(*words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["checkpoint"], told["base"], told["path"]) == (2, "f", str(tmp_path / "M"))
    assert {path.name for path in (tmp_path / "M").iterdir()} == {
        "config.json",
        "chat_template.jinja",
        "model.safetensors",
        "sona.json",
    }
    weights = load_file(tmp_path / "M" / "model.safetensors")
    assert list(weights) == ["a"]
    assert torch.equal(weights["a"], torch.full((300,), 2.0, dtype=torch.bfloat16))


def test_what_cant_be_restored_leaves_nothing(folder: TrainingFolder, tmp_path: Path) -> None:
    store = folder.path.parent
    (tmp_path / "taken").mkdir()
    for number, to, told in (
        (9, "M", "checkpoint 9: there is none"),
        (1, "taken", "exists; give a folder that is to be made"),
        (1, "S/M", "lies within the store"),
    ):
        with pytest.raises(SonaError, match=told):
            app(["checkpoints", "restore", str(number), "--store", str(store), "--to", str(tmp_path / to)])
    with pytest.raises(SonaError, match="no store"):
        app(["checkpoints", "list", "--store", str(tmp_path / "none")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["S", "taken"]


def test_damage_is_found_and_not_restored(
    folder: TrainingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder.path.parent
    assert run("checkpoints", "verify", "--store", store) == 0
    path = folder.checkpoints.folder / "00000002.delta"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert run("checkpoints", "verify", "--store", store) == 1
    said = capsys.readouterr().out
    assert "1: whole" in said
    assert "2: damaged" in said
    with pytest.raises(StoreCorruptError):
        app(["checkpoints", "restore", "2", "--store", str(store), "--to", str(tmp_path / "M")])
    assert [one.name for one in tmp_path.iterdir()] == ["S"]
    assert run("checkpoints", "restore", 1, "--store", store, "--to", tmp_path / "M") == 0


def test_a_store_without_any_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "S"):
        pass
    assert run("checkpoints", "list", "--store", tmp_path / "S") == 0
    assert "no checkpoint" in capsys.readouterr().out
    assert run("checkpoints", "verify", "--store", tmp_path / "S") == 0
