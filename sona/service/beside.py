"""Tasks that run beside a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio


@asynccontextmanager
async def beside(*functions: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
    """Each of ``functions`` runs beside the block, and is cancelled at its end.

    The block's own error comes through as it is; a task group would wrap it.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
