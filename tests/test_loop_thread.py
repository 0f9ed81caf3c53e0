"""The event loop behind a SyncEngine: what goes wrong in one call is that call's alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import sona
from sona.errors import ClosedError
from sona.loop_thread import LoopThread
from tests.processes import run

of_the_host = ContextVar("of_the_host", default="")


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    loop.start()
    yield loop
    loop.close()


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_a_call_raises_is_raised_where_it_was_called_and_ends_no_other(
    loop: LoopThread, error: BaseException
) -> None:
    began = threading.Event()
    gate: list[anyio.Event] = []
    found: list[int] = []

    async def waits() -> int:
        gate.append(anyio.Event())
        began.set()
        await gate[0].wait()
        return 1

    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async def open_gate() -> None:
        gate[0].set()

    other = threading.Thread(target=lambda: found.append(loop.call(waits)))
    other.start()
    assert began.wait(10)
    with pytest.raises(type(error)):
        loop.call(raises)
    assert loop.call(double, 21) == 42
    loop.call(open_gate)
    other.join(10)
    assert found == [1]


def test_a_call_sees_the_hosts_context(loop: LoopThread) -> None:
    async def seen() -> str:
        await anyio.lowlevel.checkpoint()
        return of_the_host.get()

    token = of_the_host.set("a trace")
    try:
        assert loop.call(seen) == "a trace"
    finally:
        of_the_host.reset(token)


def test_a_host_on_trio_may_call(tmp_path: Path) -> None:
    """Its context names its own kind of loop."""

    async def host() -> int:
        with sona.open_sync(tmp_path / "store") as engine:
            engine.record(sona.Trajectory(messages="q", response="r"))
            engine.flush()
            return engine.status().store.trajectories

    assert anyio.run(host, backend="trio") == 1


def test_nothing_of_a_call_is_kept_behind_it(loop: LoopThread) -> None:
    class Large:
        pass

    async def made(_: Large) -> Large:
        return Large()

    argument = Large()
    result = loop.call(made, argument)
    held = [weakref.ref(argument), weakref.ref(result)]
    del argument, result
    loop.call(double, 1)  # the loop has gone on
    gc.collect()
    assert [known() for known in held] == [None, None]


def test_a_loop_that_has_ended_says_so(loop: LoopThread) -> None:
    loop.close()
    with pytest.raises(ClosedError):
        loop.call(double, 1)


START_CUT_SHORT = """
import random, signal, sys, threading, sona

def cut_short(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, cut_short)
rng, cut = random.Random(0), 0
for number in range(60):
    with sona.open_sync(f"{sys.argv[1]}/{number}"):
        pass
    engine = sona.open_sync(f"{sys.argv[1]}/{number}")
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 0.01))
            engine.start()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        cut += 1
    engine.close()
    with sona.open_sync(f"{sys.argv[1]}/{number}"):
        pass
print(cut > 5, [thread.name for thread in threading.enumerate() if thread.name.startswith("sona")])
"""


def test_a_start_that_a_ctrl_c_cuts_short_leaves_nothing_open(tmp_path: Path) -> None:
    assert run(START_CUT_SHORT, tmp_path) == "True []"
