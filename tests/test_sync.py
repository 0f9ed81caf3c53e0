"""The twin without an event loop has everything that the engine has."""

import asyncio
import threading
import time
from collections.abc import Collection
from pathlib import Path

import pytest

import sona
from sona.engine import Engine
from sona.errors import ClosedError, InvalidInputError, StoreLockedError
from sona.sync import SyncEngine

# The same under the name that each world gives it.
NAMES = {"aclose": "close"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def own_threads(before: Collection[threading.Thread]) -> list[str]:
    """Those that have come since: other tests of this process may have left a model that nobody closed."""
    return sorted(one.name for one in threading.enumerate() if one.name.startswith("sona") and one not in before)


def test_every_method_has_its_twin() -> None:
    assert {NAMES.get(name, name) for name in public(Engine)} == public(SyncEngine)


def test_a_host_without_a_block_starts_and_closes(tmp_path: Path) -> None:
    before = threading.enumerate()
    engine = sona.open_sync(tmp_path / "store")
    with pytest.raises(ClosedError, match=r"call start\(\)"):
        engine.flush()
    assert engine.start() is engine
    assert engine.start() is engine  # nothing happens
    engine.record(sona.Trajectory(id="a", messages="q", response="a"))
    engine.close()
    engine.close()
    with pytest.raises(ClosedError):
        engine.record(sona.Trajectory(messages="q", response="a"))
    with engine.start():  # and again
        assert engine.get("a").trajectory.response == "a"
    assert own_threads(before) == []


def test_a_quality_is_given_by_place_or_by_name(tmp_path: Path) -> None:
    one, two = (sona.Trajectory(id=name, messages="q", response="a") for name in "ab")
    with sona.open_sync(tmp_path / "store") as engine:
        engine.record(one, 0.25, "ann")
        engine.record(two, quality=0.75, giver="bob")
        engine.flush()
        given = [(rating.quality, rating.giver) for id in "ab" for rating in engine.feedback_of(id)]
    assert given == [(0.25, "ann"), (0.75, "bob")]


def test_the_same_on_an_event_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = await sona.open(tmp_path / "store").start()
        assert await engine.start() is engine
        engine.record(sona.Trajectory(id="a", messages="q", response="a"))
        await engine.aclose()
        await engine.aclose()
        async with await engine.start():
            assert engine.get("a").trajectory.response == "a"

    asyncio.run(scenario())


def test_a_start_that_fails_leaves_no_thread_behind(tmp_path: Path) -> None:
    before = threading.enumerate()
    with sona.open_sync(tmp_path / "store"):
        with pytest.raises(StoreLockedError):
            sona.open_sync(tmp_path / "store").start()
        assert own_threads(before) == ["sona-loop", "sona-writer"]  # those of the engine that is open


def test_a_call_that_is_under_way_when_the_engine_closes_comes_back(tmp_path: Path) -> None:
    engine = sona.open_sync(tmp_path / "store").start()
    loop = engine._loop
    assert loop is not None
    caller = threading.Thread(target=engine.run)
    caller.start()
    until = time.monotonic() + 10
    while not loop._calls:
        assert time.monotonic() < until
        time.sleep(0.001)
    engine.close()
    caller.join(10)
    assert not caller.is_alive()


def test_a_call_from_the_engines_own_loop_is_refused_where_it_would_wait_for_itself(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        loop = engine._loop
        assert loop is not None

        async def call() -> None:
            engine.flush()

        with pytest.raises(InvalidInputError, match="on its own event loop"):
            loop.call(call)
        engine.flush()


def test_a_closed_engine_says_how_either_kind_is_opened(tmp_path: Path) -> None:
    engine = sona.open_sync(tmp_path / "store")
    with pytest.raises(ClosedError, match=r"with sona\.open_sync\(\.\.\.\)' or 'async with sona\.open"):
        engine.status()
