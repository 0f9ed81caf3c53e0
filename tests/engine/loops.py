"""The event loops that a host may run. sona does not need trio: where it is not installed, its tests are skipped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

BACKENDS: list[Any] = [
    "asyncio",
    pytest.param("trio", marks=pytest.mark.skipif(find_spec("trio") is None, reason="trio is not installed")),
]


def run_on(backend: str, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario to its end, on a loop of its own; 60 seconds at most."""

    async def bounded() -> None:
        with anyio.fail_after(60):
            await scenario()

    anyio.run(bounded, backend=backend)
