"""Trajectories whose blocks do not end: recorded as abandoned, once, and bounded in number."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sona
from sona.config import Config, RecordingConfig, StoreConfig
from sona.errors import ConflictError, InvalidInputError, StoreError
from sona.events import RecordDropped, TrajectoryRecorded
from sona.hooks.trajectory import OpenTrajectory
from sona.storage.store import Store
from tests.engine.small import open_small

SHORT = Config(recording=RecordingConfig(open_timeout_s=0.05))


def left_open(engine: sona.SyncEngine, name: str) -> sona.sync.SyncTrajectory:
    block = engine.trajectory("q", source="bot", id=name).__enter__()
    block.step("tool:x")
    return block


def test_one_that_is_open_for_too_long_is_abandoned_and_its_late_answer_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_small(tmp_path / "store", model=None, config=SHORT) as engine:
        events = engine.events()
        block = left_open(engine, "hangs")
        engine.feedback("hangs", 0.5)
        time.sleep(0.06)
        status = engine.status()
        assert (status.open, status.abandoned, status.late) == (0, 1, 0)
        block.respond("the answer, at last")
        with caplog.at_level(logging.WARNING):
            block.__exit__(None, None, None)
        assert caplog.text.count("hangs ended after it had been recorded as abandoned") == 1
        with pytest.raises(ConflictError, match="recorded as abandoned"):
            block.durable()
        engine.flush()
        status = engine.status()
        assert (status.late, status.conflicts, status.hook_errors, status.store.trajectories) == (1, 0, 0, 1)
        kept = engine.get("hangs")
        assert (kept.trajectory.outcome, kept.trajectory.response, kept.quality) == ("abandoned", "", 0.5)
        assert [step.name for step in kept.trajectory.steps] == ["tool:x"]
        assert engine.feedback("hangs", 1.0) == "recorded"  # late feedback finds it all the same
    told = list(events)
    assert [event.outcome for event in told if isinstance(event, TrajectoryRecorded)] == ["abandoned"]
    assert [(event.id, event.reason) for event in told if isinstance(event, RecordDropped)] == [("hangs", "late")]


@pytest.mark.parametrize(
    "say",
    [
        lambda block: block.respond("an afterthought"),
        lambda block: block.step("tool:x"),
        lambda block: block.used(["p1"]),
        lambda block: block.recall(),
        lambda block: block.generate(),
    ],
    ids=["respond", "step", "used", "recall", "generate"],
)
def test_what_is_said_after_the_end_of_the_block_is_an_error(
    tmp_path: Path, say: Callable[[sona.sync.SyncTrajectory], object]
) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        with engine.trajectory("q", id="ends") as block:
            block.respond("a")
        with pytest.raises(InvalidInputError, match=r"block of trajectory 'ends' has ended.*within the block"):
            say(block)
        engine.flush()
        assert engine.get("ends").trajectory.response == "a"


@pytest.mark.parametrize(
    "sweeps",
    [
        lambda engine: engine.trajectory("q").__enter__(),
        lambda engine: engine.flush(),
        lambda engine: engine.learn(),
        lambda engine: engine.status(),
    ],
    ids=["open", "flush", "learn", "status"],
)
def test_each_of_these_looks_for_them(tmp_path: Path, sweeps: Callable[[sona.SyncEngine], object]) -> None:
    with open_small(tmp_path / "store", model=None, config=SHORT) as engine:
        engine._engine._started().writer.on_tick = None
        left_open(engine, "hangs")
        engine.flush()
        time.sleep(0.06)
        sweeps(engine)
        wait_until_stored(engine, "hangs")


def test_one_is_abandoned_in_time_where_nothing_else_happens(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None, config=SHORT) as engine:
        left_open(engine, "hangs")
        wait_until_stored(engine, "hangs")
        assert engine.get("hangs").trajectory.outcome == "abandoned"


def wait_until_stored(engine: sona.SyncEngine, name: str) -> None:
    deadline = time.monotonic() + 10
    while name not in engine._engine._started().store:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_clock_that_is_set_does_not_end_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(recording=RecordingConfig(open_timeout_s=1000))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        with engine.trajectory("q") as t:
            monkeypatch.setattr(time, "time_ns", lambda: 2**62)
            monkeypatch.setattr(time, "time", lambda: 4e9)
            assert engine.status().open == 1
            t.respond("a")
        monkeypatch.undo()
        t.durable()


def test_beyond_the_bound_the_oldest_is_abandoned(tmp_path: Path) -> None:
    config = Config(recording=RecordingConfig(max_open=3))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        blocks = [left_open(engine, str(n)) for n in range(5)]
        assert (engine.status().open, engine.status().abandoned) == (3, 2)
        for block in blocks:
            block.respond("a")
            block.__exit__(None, None, None)
        engine.flush()
        assert engine.status().late == 2
        outcomes = [engine.get(str(n)).trajectory.outcome for n in range(5)]
        assert outcomes == ["abandoned"] * 2 + ["completed"] * 3


def test_many_that_are_left_open_take_bounded_memory(tmp_path: Path) -> None:
    config = Config(recording=RecordingConfig(max_open=100))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        for n in range(3000):
            left_open(engine, str(n))
        registry = engine._engine._intake.open
        assert len(registry) == len(registry._by_id) == 100
        engine.flush()
        assert engine.status().store.trajectories == 2900


def test_closing_records_what_is_open(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        events = engine.events()
        block = left_open(engine, "open")
        block.respond("half an answer")
        engine.feedback("open", 1.0)
    with Store.open(tmp_path / "store", read_only=True) as opened:
        kept = opened.get("open")
    assert (kept.trajectory.outcome, kept.trajectory.response, kept.quality) == ("abandoned", "half an answer", 1.0)
    assert [type(event).__name__ for event in events] == ["TrajectoryRecorded", "FeedbackRecorded"]
    block.__exit__(None, None, None)  # raises nothing


def test_a_block_that_ends_while_it_is_swept_is_recorded_once(tmp_path: Path) -> None:
    config = Config(recording=RecordingConfig(open_timeout_s=0.001))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        stop = threading.Event()

        def sweep() -> None:
            while not stop.is_set():
                engine._engine._intake.sweep()

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        for n in range(300):
            with engine.trajectory("q", id=str(n)) as t:
                t.respond("a")
                engine.feedback(str(n), 1.0)
                time.sleep(0.001 if n % 2 else 0.0)
        stop.set()
        sweeper.join(10)
        engine.flush()
        status = engine.status()
        assert (status.store.trajectories, status.store.feedback, status.conflicts) == (300, 300, 0)
        assert status.late == status.abandoned > 0
        assert status.hook_errors == 0


def test_of_two_open_ones_with_one_id_each_ends_by_itself(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        first, second = left_open(engine, "x"), left_open(engine, "x")
        second.respond("another answer")
        first.__exit__(None, None, None)
        assert engine.status().open == 1
        engine.feedback("x", 1.0)
        second.__exit__(None, None, None)
        first.durable()
        with pytest.raises(ConflictError, match="taken by other content"):
            second.durable()
        # The feedback was for the second: stored in one batch with it, it is left out too.
        assert (engine.status().conflicts, engine.get("x").quality) in ((2, None), (1, 1.0))


def test_feedback_for_an_open_one_is_held_and_recorded_with_it(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        events = engine.events()
        with engine.trajectory("q", id="x") as block:
            assert engine.feedback("x", 0.5) == "held"
            engine.flush()
            assert engine.status().store.feedback == 0
            block.respond("a")
        block.durable()
        assert engine.get("x").quality == 0.5
        assert engine.feedback("x", 1.0) == "recorded"
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["TrajectoryRecorded", "FeedbackRecorded", "FeedbackRecorded"]


def test_held_feedback_goes_with_a_trajectory_that_can_not_be_recorded(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=4096))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        events = engine.events()
        with engine.trajectory("q", id="x") as block:
            assert engine.feedback("x", 0.5, id="f") == "held"
            block.respond("a" * 9000)
        with pytest.raises(StoreError, match="rejected"):
            block.durable()
    told = [(event.kind, event.id, event.reason) for event in events if isinstance(event, RecordDropped)]
    assert told == [("trajectory", "x", "queue full"), ("feedback", "f", "queue full")]


def test_what_open_ones_hold_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    config = Config(recording=RecordingConfig(max_open_bytes=100_000))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        blocks = [left_open(engine, str(n)) for n in range(4)]
        for n, block in enumerate(blocks):
            block.step("tool:x", content="a" * 30_000)
            assert engine.status().abandoned == max(n - 2, 0)
        assert engine.feedback("3", 0.5, comment="a" * 20_000) == "held"
        assert engine.status().abandoned == 2
        blocks[3].respond("a" * 30_000)
        assert engine.status().abandoned == 3
        for block in blocks:
            block.__exit__(None, None, None)
        engine.flush()
        assert engine._engine._intake.open._bytes == 0
        outcomes = [engine.get(str(n)).trajectory.outcome for n in range(4)]
        assert outcomes == ["abandoned"] * 3 + ["completed"]
        assert [len(engine.get(str(n)).trajectory.steps) for n in range(4)] == [2] * 4
        assert engine.get("3").quality == 0.5


def test_a_step_that_makes_one_too_large_to_be_recorded_ends_it_with_what_came_before(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=64 * 1024))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        with engine.trajectory("q", id="x") as block:
            for n in range(5):
                block.step(f"tool:{n}", content="a" * 20_000)
            assert (engine.status().abandoned, engine.status().open) == (1, 0)
            block.respond("too late")
        with pytest.raises(ConflictError, match=r"store\.queue_bytes"):
            block.durable()
        engine.flush()
        kept = engine.get("x").trajectory
        assert (kept.outcome, [step.name for step in kept.steps]) == ("abandoned", ["tool:0", "tool:1", "tool:2"])
        assert (engine.status().late, engine.status().rejected) == (1, 0)


def test_feedback_that_can_not_be_recorded_with_its_trajectory_is_rejected_and_not_held(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=64 * 1024))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        with engine.trajectory("q", id="x") as block:
            block.respond("a")
            receipts = [engine.feedback("x", 0.5, comment="a" * 20_000) for _ in range(5)]
            assert receipts == ["held"] * 3 + ["rejected"] * 2
        block.durable()
        assert (engine.status().rejected, engine.status().store.feedback) == (2, 3)


@pytest.mark.parametrize("asked", ["all", "overdue"])
def test_one_that_a_finaliser_ends_while_all_are_looked_at_is_no_error(tmp_path: Path, asked: str) -> None:
    config = Config(recording=RecordingConfig(max_open=3))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        blocks = [left_open(engine, str(n)) for n in range(3)]
        registry = engine._engine._intake.open

        class Changing(OrderedDict[OpenTrajectory, float]):
            """The collector may run wherever something is made."""

            def __iter__(self) -> Iterator[OpenTrajectory]:
                for known in super().__iter__():
                    if len(blocks) == 3:
                        blocks.pop(0).__exit__(None, None, None)
                    yield known

        registry._since = Changing(registry._since)
        found = registry.all() if asked == "all" else registry.overdue()
        assert [one.id for one in found] == (["1", "2"] if asked == "all" else [])


def test_without_a_block_nothing_is_taken_as_nothing_would_be_recorded(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path) as engine:
        handle = engine.trajectory("hi")
        for say in (lambda: handle.respond("a"), lambda: handle.step("s"), handle.recall, lambda: handle.used(["p1"])):
            with pytest.raises(InvalidInputError, match=r"has not begun.*'with engine\.trajectory\(\.\.\.\) as t:'"):
                say()
        with handle as t:
            t.respond("a")
        engine.flush()
        assert engine.status().store.trajectories == 1
