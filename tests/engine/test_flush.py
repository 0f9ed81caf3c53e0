"""Waiting for the disk, beside everything else that a host does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import sona
from sona.storage.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is stored until this is set."""
    goes_on = threading.Event()
    append = Store.append

    def waiting(store: Store, records: Any) -> Any:
        goes_on.wait(20)
        return append(store, records)

    monkeypatch.setattr(Store, "append", waiting)
    return goes_on


async def test_a_flush_can_be_cancelled_and_takes_no_thread(tmp_path: Path, slow_disk: threading.Event) -> None:
    async with sona.open(tmp_path) as engine:
        engine.record(sona.Trajectory(id="a", messages="hi", response="x"))
        threads = threading.active_count()
        began = time.monotonic()
        with anyio.move_on_after(0.1) as scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(60):  # more than anyio has threads for all that is to run in one
                    tasks.start_soon(engine.flush)
        assert scope.cancelled_caught
        assert time.monotonic() - began < 5
        assert threading.active_count() <= threads
        slow_disk.set()
        await engine.flush()
        assert engine.get("a").trajectory.response == "x"


async def test_all_who_wait_are_told(tmp_path: Path, slow_disk: threading.Event) -> None:
    async with sona.open(tmp_path) as engine:
        engine.record(sona.Trajectory(id="a", messages="hi", response="x"))
        done: list[int] = []

        async def wait(number: int) -> None:
            await engine.flush()
            done.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(wait, number)
            await anyio.sleep(0.05)
            assert done == []
            slow_disk.set()
        assert sorted(done) == list(range(20))


async def test_durable_can_be_cancelled(tmp_path: Path, slow_disk: threading.Event) -> None:
    async with sona.open(tmp_path) as engine:
        async with engine.trajectory("hi") as t:
            t.respond("x")
        with anyio.move_on_after(0.1) as scope:
            await t.durable()
        assert scope.cancelled_caught
        slow_disk.set()
        await t.durable()
