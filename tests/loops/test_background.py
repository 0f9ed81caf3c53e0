"""The hourly loop outlives what goes wrong in it."""

import logging

import anyio
import anyio.lowlevel
import pytest

from sona.errors import SwapError
from sona.loops.background import run_forever
from sona.types import CycleReport, Funnel


def report(cycle: int) -> CycleReport:
    funnel = Funnel(collected=0, trained=0, held_out=0)
    return CycleReport(cycle=cycle, status="skipped", reason="nothing new", funnel=funnel, parent="v0")


@pytest.mark.anyio
async def test_a_version_that_can_not_be_served_is_told_from_a_failed_cycle(caplog: pytest.LogCaptureFixture) -> None:
    tried = anyio.Event()

    async def learn() -> CycleReport:
        tried.set()
        raise SwapError("version v1 was published and can't be served")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_forever, learn, 100.0)
        await tried.wait()
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert "cycle published" in caplog.text
    assert "failed" not in caplog.messages[0]


@pytest.mark.anyio
async def test_a_failing_cycle_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    done = anyio.Event()

    async def learn() -> CycleReport:
        nonlocal calls
        calls += 1
        if calls in (1, 2):
            raise MemoryError("no room")
        if calls == 4:
            done.set()
        return report(calls)

    with caplog.at_level(logging.INFO, "sona.background"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_forever, learn, 0.01)
            await done.wait()
            tasks.cancel_scope.cancel()
    assert "2 in a row" in caplog.text
    assert "cycle 3 skipped: nothing new" in caplog.text
