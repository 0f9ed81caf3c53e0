"""The hourly loop outlives what goes wrong in it."""

import logging

import anyio
import anyio.lowlevel
import pytest

from sona.errors import SwapError
from sona.loops import background
from sona.loops.background import Triggers, run_forever
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


@pytest.mark.parametrize(
    ("triggers", "seen", "fires"),
    [
        (Triggers(100, 0.0, 24), (100, 0, 0.0), True),
        (Triggers(100, 0.0, 24), (150, 51, 999.0), False),  # the last cycle left 51 of them
        (Triggers(0, 60.0, 24), (24, 0, 60.0), True),
        (Triggers(0, 60.0, 24), (24, 0, 59.0), False),
        (Triggers(0, 60.0, 24), (23, 0, 60.0), False),  # too few for a cycle
        (Triggers(0, 60.0, 24), (24, 24, 60.0), False),  # nothing has come since
        (Triggers(100, 60.0, 24), (24, 0, 60.0), True),
        (Triggers(0, 0.0, 24), (1000, 0, 1000.0), False),
    ],
)
def test_a_cycle_is_due_by_count_or_quiet(triggers: Triggers, seen: tuple[int, int, float], fires: bool) -> None:
    assert triggers.fire(*seen) is fires
    assert bool(triggers) is bool(triggers.after_count or triggers.after_quiet_s)


@pytest.mark.anyio
async def test_what_is_due_does_not_wait_for_its_hour_but_a_failure_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LOOK_S", 0.001)
    calls, looks = 0, 0
    failed = anyio.Event()

    async def learn() -> CycleReport:
        nonlocal calls
        calls += 1
        if calls == 3:
            failed.set()
            raise MemoryError("no room")
        return report(calls)

    async def is_due() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("the disk is away for a moment")
        return True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_forever, learn, 1000.0, is_due)
        with anyio.fail_after(30):
            await failed.wait()
        before = looks
        await anyio.sleep(0.05)
        assert (calls, looks) == (3, before), "after a failure the back-off holds, whatever is due"
        tasks.cancel_scope.cancel()
