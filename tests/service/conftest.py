"""One engine for all tests of a file, and a hub of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from sona.engine import Engine
from sona.service.hub import Hub
from tests.engine.small import open_small
from tests.service.serving import client_of


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_small(tmp_path_factory.mktemp("service") / "store") as opened:
        yield opened._engine  # on no loop of its own: each test asks it on another


@pytest.fixture
async def hub(engine: Engine) -> Hub:
    return Hub(engine)


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(hub) as opened:
        yield opened
