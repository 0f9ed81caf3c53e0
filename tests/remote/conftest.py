"""One model for all servers of a file, and one store that each test gets a copy of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sona.config import ServeConfig
from sona.serving.local import LocalModel
from sona.storage.store import Store
from tests.remote.elsewhere import Weights
from tests.remote.published import publish_noisy


@pytest.fixture(scope="session")
def weights() -> Weights:
    return Weights()


@pytest.fixture(scope="session")
def model() -> Iterator[LocalModel]:
    opened = LocalModel("tiny", ServeConfig(device="cpu", threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def published(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1 and v2 have an adapter each, v3 two, v4 an empty one."""
    path = tmp_path_factory.mktemp("published") / "store"
    with Store.open(path) as store:
        publish_noisy(store, model, {"s1": 1})
        publish_noisy(store, model, {"s1": 2})
        publish_noisy(store, model, {"s1": 3, "s 2 ü": 4})
        publish_noisy(store, model, {"s1": 5}, empty=True)
    return path


@pytest.fixture
def store(published: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(published, tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened
