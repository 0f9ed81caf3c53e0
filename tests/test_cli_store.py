"""The commands that look after a store, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sona
from sona.storage.store import Store
from tests.storage.learned import publish
from tests.storage.records import add, rated
from tests.test_cli import command


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store of twenty trajectories and one version."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated(f"t{number}" for number in range(20)))
        publish(store)
    return tmp_path / "store"


def test_backup_works_beside_a_running_agent(filled: Path, tmp_path: Path) -> None:
    with Store.open(filled):
        assert "20 trajectories, version v1" in command("backup", tmp_path / "copy", "--store", filled).stdout
        told = json.loads(command("backup", tmp_path / "two", "--store", filled, "--json").stdout)
        assert (told["version"], told["versions"]) == ("v1", ["v1"])
        assert "exists" in command("backup", tmp_path / "copy", "--store", filled, code=2).stderr
    with sona.open_sync(tmp_path / "copy") as copy:
        assert copy.status().store.trajectories == 20
