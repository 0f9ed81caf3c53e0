"""Signals: a Ctrl-C that cuts the end of a block short, and handlers that call the engine in the midst of a call."""

from __future__ import annotations

import gc
import linecache
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import sona
from sona.errors import StoreError
from sona.storage.snapshot_gate import SnapshotGate, make_gate
from tests.processes import run


class Lines:
    """A trace function that calls ``act`` before the ``number``-th line that runs in ``files``.

    Not before a block of ``with`` is left: Python runs no signal handler between its last call and that.
    """

    def __init__(self, files: tuple[str, ...], act: Callable[[], object] | None = None, number: int = 0) -> None:
        self.seen = 0
        self._files, self._act, self._number = files, act, number
        self._entered: set[tuple[FrameType, int]] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if Path(frame.f_code.co_filename).name not in self._files:
            return None
        if event == "line" and not self._leaves(frame):
            self.seen += 1
            if self.seen == self._number and self._act is not None:
                self._act()
        return self

    def _leaves(self, frame: FrameType) -> bool:
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with "):
            return False
        known = (frame, frame.f_lineno) in self._entered
        self._entered.add((frame, frame.f_lineno))
        return known


def lines_of(call: Callable[[], object], *files: str) -> int:
    sys.settrace(lines := Lines(files))
    try:
        call()
    finally:
        sys.settrace(None)
    return lines.seen


class TimeLimitError(Exception):
    """As a host's own signal handler raises it."""


def interrupt() -> None:
    raise KeyboardInterrupt


def limit() -> None:
    raise TimeLimitError


@pytest.mark.parametrize("act", [interrupt, limit])
def test_a_block_whose_end_is_cut_short_anywhere_is_recorded_as_it_would_have_been(
    tmp_path: Path, act: Callable[[], None]
) -> None:
    files = ("trajectory.py", "intake.py", "open_trajectories.py")
    with sona.open_sync(tmp_path / "store") as engine:

        def answered(name: str) -> sona.sync.SyncTrajectory:
            block = engine.trajectory("q", id=name).__enter__()
            block.respond("an answer")
            engine.feedback(name, 0.25)
            engine.feedback(name, 0.75)
            return block

        first = answered("first")
        steps = lines_of(lambda: first.__exit__(None, None, None), *files)
        assert steps > 40
        for number in range(1, steps + 1):
            block = answered(f"t{number}")
            sys.settrace(Lines(files, act, number))
            with pytest.raises((KeyboardInterrupt, TimeLimitError)):
                block.__exit__(None, None, None)
            sys.settrace(None)
        names = [f"t{number}" for number in range(1, steps + 1)]
        engine.flush()
        status = engine.status()
        assert (status.conflicts, status.late, status.hook_errors) == (0, 0, 0)
        assert status.open < 10  # whose end had not begun
    with sona.open_sync(tmp_path / "store") as engine:
        stored = [engine.get(name).trajectory for name in names]
        given = [{feedback.quality for feedback in engine.feedback_of(name)} for name in names]
    assert {one.response for one in stored} == {"an answer"}
    assert [one.outcome for one in stored].count("completed") > steps - 10  # but where the end had not begun
    assert given == [{0.25, 0.75}] * steps


@pytest.mark.parametrize("what", ["record", "_rate"])
def test_an_error_of_ours_at_the_end_of_a_block_is_not_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What fails once more is no time limit of the host's."""

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    with sona.open_sync(tmp_path / "store") as engine:
        monkeypatch.setattr(engine._engine._intake, what, fails)
        with engine.trajectory("q", id="a") as t:
            t.respond("an answer")
            engine.feedback("a", 1.0)
        status = engine.status()
        assert (status.hook_errors, status.open) == (1, 0)


def test_a_handler_may_read_the_store_in_the_midst_of_reading_it(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        engine.record(sona.Trajectory(id="a", messages="q", response="r"))
        engine.flush()
        told: list[str] = []

        def rate() -> None:
            told.append(engine.feedback("a", 0.5))

        steps = lines_of(rate, "snapshot_gate.py")
        assert steps > 10
        for number in range(1, steps + 1):
            sys.settrace(Lines(("snapshot_gate.py",), rate, number))
            rate()
            sys.settrace(None)
        assert told == ["recorded"] * (1 + 2 * steps)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_read_that_is_cut_short_anywhere_keeps_nobody_from_overwriting(tmp_path: Path) -> None:
    make_gate(tmp_path)
    gate = SnapshotGate(tmp_path)

    def read() -> None:
        with gate.shared():
            pass

    steps = lines_of(read, "snapshot_gate.py")
    assert steps > 10
    for number in range(1, steps + 1):
        sys.settrace(Lines(("snapshot_gate.py",), interrupt, number))
        with suppress(KeyboardInterrupt):
            read()
        sys.settrace(None)
        gc.collect()  # what traces has the frames
        assert gate.passed(0.0), number


@pytest.mark.parametrize("call", ["flush", "close"])
@pytest.mark.parametrize("whose", ["writer", "intake", "open", "events", "mailbox", "block"])
def test_a_handler_that_would_wait_for_its_own_thread_is_told(tmp_path: Path, call: str, whose: str) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        parts, intake = engine._engine._parts, engine._engine._intake
        assert parts is not None
        block, stream = engine.trajectory("q").__enter__(), engine.events()
        owners = {
            "writer": parts.writer,
            "intake": intake,
            "open": intake.open,
            "events": parts.events,
            "mailbox": parts.events.mailboxes[0](),
            "block": block._handle,
        }
        lock: threading.RLock = getattr(owners[whose], "_lock")  # noqa: B009 - of several classes
        with lock, pytest.raises(StoreError, match=f"{call}: called by a signal handler in the midst"):
            getattr(engine, call)()
        told: list[bool] = []

        def ask() -> None:
            intake.check_outside(call)
            told.append(True)

        other = threading.Thread(target=ask)
        with lock:  # held by another thread it is waited for
            other.start()
            time.sleep(0.02)
        other.join()
        assert told
        block.__exit__(None, None, None)
        del stream


CLOSED_BY_A_HANDLER = """
import signal, sys, sona
engine = sona.open_sync(sys.argv[1]).start()
engine.record(sona.Trajectory(id="a", messages="q", response="r"))
def end(*_):
    try:
        engine.close()
    except sona.SonaError as error:
        print(error)
    raise SystemExit(0)
signal.signal(signal.SIGALRM, end)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    engine.run()
finally:
    engine.close()
    print("closed")
"""


def test_a_handler_that_closes_while_its_thread_waits_is_told(tmp_path: Path) -> None:
    told, closed = run(CLOSED_BY_A_HANDLER, tmp_path / "store").splitlines()
    assert told.startswith("close: called by a signal handler in the midst of another call; let that end: raise")
    assert closed == "closed"
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.status().store.trajectories == 1


CUT_SHORT = """
import random, signal, sys, sona

def cut_short(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, cut_short)
rng = random.Random(0)
with sona.open_sync(sys.argv[1]) as engine:
    engine.record(sona.Trajectory(id="a", messages="q", response="r"))
    engine.flush()
    calls = {
        "flush": engine.flush,
        "feedback": lambda: engine.feedback("a", 0.5),
        "listen": lambda: list(engine.events(timeout_s=0.0001)),
    }
    call = calls[sys.argv[2]]
    for _ in range(4000):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 4e-4), 0.01)
                while True:
                    call()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
    engine.record(sona.Trajectory(id="b", messages="q", response="r"))
    engine.flush()
    assert engine.erase("default").trajectories == 2
print("closed")
"""


@pytest.mark.parametrize("call", ["flush", "feedback", "listen"])
def test_thousands_of_ctrl_c_leave_an_engine_that_works(tmp_path: Path, call: str) -> None:
    assert run(CUT_SHORT, tmp_path / "store", call).splitlines()[-1] == "closed"


CUT_SHORT_TWICE = """
import random, signal, sys, sona

left = 0

def cut_short(*_):
    global left
    if left:
        left -= 1
        raise KeyboardInterrupt

def cut(call):
    global left
    try:
        try:
            left = 2
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1e-4), rng.uniform(1e-6, 5e-5))
            call()
            left = 0
        except KeyboardInterrupt:
            left = 0
    except KeyboardInterrupt:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)

signal.signal(signal.SIGALRM, cut_short)
rng = random.Random(0)
with sona.open_sync(sys.argv[1]) as engine:
    for number in range(1000):
        block = engine.trajectory("q", id=f"t{number}").__enter__()
        block.respond("an answer")
        engine.feedback(f"t{number}", 0.25)
        cut(lambda: block.__exit__(None, None, None))
    print(engine.status().open < 1000)  # not all were cut short before their end began
"""


def test_a_second_ctrl_c_in_the_end_of_a_block_loses_nothing(tmp_path: Path) -> None:
    assert run(CUT_SHORT_TWICE, tmp_path / "store") == "True"
    with sona.open_sync(tmp_path / "store") as engine:
        stored = [engine.get(f"t{number}") for number in range(1000)]
    assert {one.trajectory.response for one in stored} == {"an answer"}
    assert {one.quality for one in stored} == {0.25}
