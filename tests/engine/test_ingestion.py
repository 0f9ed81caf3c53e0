"""Records from many threads and loops at once: each is in the store exactly once, or its host was told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import sona
from sona.config import Config, StoreConfig
from sona.errors import ClosedError, InvalidInputError, StoreError, StoreFullError
from sona.events import FeedbackRecorded, RecordDropped, TrajectoryRecorded
from sona.storage.store import Store
from tests.engine.loops import BACKENDS, run_on
from tests.engine.small import open_small
from tests.processes import run

THREADS = 8
EACH = 60


def trajectory(name: str, text: str = "q") -> sona.Trajectory:
    """The same each time."""
    return sona.Trajectory(id=name, created_ns=1, messages=text, response="a")


def stored(store: Path) -> dict[str, float | None]:
    """Each id and quality in a closed store; an id that is there twice is an error."""
    with Store.open(store, read_only=True) as opened:
        rows = [(row.trajectory.id, row.quality) for row in opened.iterate()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run ``work`` in many threads that begin together; what one raises is raised."""
    errors: list[BaseException] = []
    together = threading.Barrier(count)

    def one(place: int) -> None:
        together.wait(10)
        try:
            work(place)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def test_threads_with_blocks_records_and_feedback_lose_and_double_nothing(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:

        def work(place: int) -> None:
            for n in range(EACH):
                name, shared = f"{place}-{n}", f"shared {n}"
                with engine.trajectory("q", id=f"block {name}") as t:
                    t.respond("a")
                    assert engine.feedback(t.id, 0.25) == "held"
                assert engine.record(trajectory(f"whole {name}"), quality=0.25) == "recorded"
                assert engine.record(trajectory(shared)) == "recorded"  # all threads send the same
                for rated in (f"block {name}", f"whole {name}", shared):  # just queued, or stored already
                    for _ in range(2):
                        assert engine.feedback(rated, 0.75, id=f"{rated} by {place}") == "recorded"

        in_threads(work)
        engine.flush()
        status = engine.status()
        wrong = (status.hook_errors, status.conflicts, status.unknown, status.invalid, status.rejected)
        assert (status.open, *wrong) == (0, 0, 0, 0, 0, 0)
        assert status.store.feedback == THREADS * EACH * (2 + 3)
    qualities = stored(tmp_path / "store")
    assert len(qualities) == 2 * THREADS * EACH + EACH
    assert set(qualities.values()) == {0.75}


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_and_threads_beside_them_lose_nothing(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store") as engine:
            durable: list[str] = []

            async def handle(place: int) -> None:
                for n in range(10):
                    async with engine.trajectory("q", id=f"task {place}-{n}") as t:
                        await anyio.lowlevel.checkpoint()
                        rater = anyio.to_thread.run_sync(engine.feedback, t.id, 1.0)
                        t.respond("a")
                        await rater
                    await t.durable()
                    assert engine.get(t.id).quality == 1.0
                    durable.append(t.id)

            def record(place: int) -> None:
                for n in range(EACH):
                    engine.record(trajectory(f"thread {place}-{n}"), quality=1.0)

            async with anyio.create_task_group() as tasks:
                for place in range(20):
                    tasks.start_soon(handle, place)
                for place in range(3):
                    tasks.start_soon(anyio.to_thread.run_sync, record, place)
            assert len(durable) == 200

    run_on(backend, scenario)
    assert len(stored(tmp_path / "store")) == 200 + 3 * EACH


def test_two_loops_and_plain_threads_share_one_engine(tmp_path: Path) -> None:
    """The engine was opened on a third loop, in a thread of its own."""
    with open_small(tmp_path / "store", model=None) as engine:
        shared = engine._engine

        async def handle() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(EACH):
                    tasks.start_soon(one)
            await shared.flush()

        async def one() -> None:
            async with shared.trajectory("q") as t:
                t.respond("a")
                await anyio.lowlevel.checkpoint()
            shared.feedback(t.id, 1.0)
            await t.durable()

        def on_a_loop(place: int) -> None:
            backends = [backend if isinstance(backend, str) else "asyncio" for backend in BACKENDS]
            run_on(backends[place % 2], handle)

        in_threads(on_a_loop, 4)
    assert list(stored(tmp_path / "store").values()) == [1.0] * (4 * EACH)


def test_feedback_that_races_with_the_end_of_its_block_is_kept(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        for n in range(40):
            ready = threading.Barrier(5)

            def rate(place: int, name: str = f"t{n}", ready: threading.Barrier = ready) -> None:
                ready.wait(10)
                assert engine.feedback(name, 1.0, id=f"{name}-{place}") in ("held", "recorded")

            raters = [threading.Thread(target=rate, args=(place,)) for place in range(4)]
            with engine.trajectory("q", id=f"t{n}") as t:
                for rater in raters:
                    rater.start()
                t.respond("a")
                ready.wait(10)
            for rater in raters:
                rater.join(10)
            t.durable()
        engine.flush()
        assert engine.status().store.feedback == 40 * 4


def test_closing_while_others_record_stores_or_tells_each_record(tmp_path: Path) -> None:
    engine = open_small(tmp_path / "store", model=None).start()
    promised: list[set[str]] = [set() for _ in range(THREADS)]
    refused: list[int] = [0] * THREADS
    some = threading.Semaphore(0)

    def work(place: int) -> None:
        for n in range(100_000):
            name = f"{place}-{n}"
            try:
                if engine.record(trajectory(name)) == "recorded":
                    promised[place].add(name)
                else:
                    refused[place] += 1
                with engine.trajectory("q", id=f"block {name}") as t:
                    t.respond("a")
                t.durable()
                promised[place].add(t.id)
            except ClosedError:
                refused[place] += 1
                return
            some.release()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(2 * THREADS):
        some.acquire()
    engine.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert set().union(*promised) <= stored(tmp_path / "store").keys()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_cancelled_in_its_block_is_recorded_as_failed(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store") as engine:
            with anyio.move_on_after(0.02):
                async with engine.trajectory("q", id="cancelled") as t:
                    await anyio.sleep_forever()
            await t.durable()
            assert engine.get("cancelled").trajectory.outcome == "failed"
            assert engine.status().open == 0

    run_on(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_cancelled_before_its_block_is_recorded_as_abandoned(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny") as engine:
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with engine.trajectory("q", id="early"):
                    raise AssertionError("the block has begun")
            await engine.flush()
            assert engine.get("early").trajectory.outcome == "abandoned"
            assert engine.status().open == 0

    run_on(backend, scenario)


CTRL_C = """
import os, signal, sys
import sona
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born without it
engine = sona.open_sync(sys.argv[1]).start()
try:
    with engine.trajectory("q", id="broken off") as t:
        t.step("tool:x")
        os.kill(os.getpid(), signal.SIGINT)
        engine.flush()
except KeyboardInterrupt:
    engine.close()
    print("stopped")
"""


def test_ctrl_c_in_a_block_records_it_as_failed(tmp_path: Path) -> None:
    assert run(CTRL_C, tmp_path / "store") == "stopped"
    with Store.open(tmp_path / "store", read_only=True) as opened:
        kept = opened.get("broken off").trajectory
    assert (kept.outcome, [step.name for step in kept.steps]) == ("failed", ["tool:x"])


NEVER_CLOSED = """
import sys
import sona
engine = sona.open_sync(sys.argv[1]).start()
for n in range(100):
    engine.record(sona.Trajectory(id=str(n), messages="q", response="a"), wait_s=None)
engine.trajectory("q", id="open").__enter__()
print("end")
"""


def test_a_program_that_forgets_to_close_ends_and_keeps_what_it_recorded(tmp_path: Path) -> None:
    assert run(NEVER_CLOSED, tmp_path / "store") == "end"
    assert len(stored(tmp_path / "store")) == 100


FORKED = """
import logging, os, sys
logging.disable()
import sona
from sona.errors import ClosedError
engine = sona.open_sync(sys.argv[1]).start()
events = engine.events()
block = engine.trajectory("q", id="open at the fork").__enter__()
if (child := os.fork()) == 0:
    block.respond("child's answer")
    block.__exit__(None, None, None)
    told = [len(list(events))]
    record = lambda: engine.record(sona.Trajectory(id="child's", messages="q", response="a"))
    block_begins = lambda: engine.trajectory("q").__enter__()
    for call in (record, engine.flush, block.durable, block_begins, engine.status):
        try:
            call()
            told.append("no error")
        except ClosedError:
            told.append("closed")
    engine.close()
    print(*told, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
block.respond("parent's answer")
block.__exit__(None, None, None)
block.durable()
engine.close()
print(*(event.id for event in events))
"""


def test_a_forked_child_is_told_that_the_engine_is_not_its_own(tmp_path: Path) -> None:
    child, parent = run(FORKED, tmp_path / "store").splitlines()
    assert child == "0 closed closed closed closed closed"
    assert parent == "open at the fork"
    with Store.open(tmp_path / "store", read_only=True) as opened:
        assert [row.trajectory.response for row in opened.iterate()] == ["parent's answer"]


def test_durable_says_what_became_of_a_trajectory(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        with engine.trajectory("q", id="taken") as t:
            t.respond("a")
            with pytest.raises(InvalidInputError, match="has not ended"):
                t.durable()
        t.durable()
        with engine.trajectory("q", id="taken") as twin:
            twin.respond("another answer")
        with pytest.raises(InvalidInputError, match="taken by other content"):
            twin.durable()
        with pytest.raises(InvalidInputError, match="runs once"):
            t.__enter__()
        with engine.trajectory("q") as closed:
            closed.respond("a")
    with pytest.raises(ClosedError):
        anyio.run(engine._engine._intake.wait_durable, closed._handle)


def test_durable_raises_what_the_store_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("the disk has no room; free some")

    with open_small(tmp_path / "store", model=None) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "append", full)
            with engine.trajectory("q") as t:
                t.respond("a")
            with pytest.raises(StoreFullError, match="free some"):
                t.durable()
            assert engine.status().failed_attempts > 0
        t.durable()
        assert engine.get(t.id).trajectory.response == "a"


def test_a_block_whose_embedding_does_not_fit_is_told_as_dropped_with_its_feedback(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        engine.record(sona.Trajectory(messages="q", response="a", embedding=[1.0, 2.0]))
        events = engine.events()
        with engine.trajectory("q", id="x") as t:
            t.respond("a")
            t._handle._embedding = [1.0]  # type: ignore[assignment] # as a model of another width would make it
            engine.feedback("x", 1.0, id="f")
        with pytest.raises(InvalidInputError, match="width 1; this store's have 2"):
            t.durable()
        assert engine.status().hook_errors == 1
    dropped = [(event.kind, event.id, event.reason) for event in events if isinstance(event, RecordDropped)]
    assert dropped == [("trajectory", "x", "unrecordable"), ("feedback", "f", "unrecordable")]


def test_who_asks_for_it_waits_for_room(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=4096))
    with open_small(tmp_path / "store", model=None, config=config) as engine:

        def work(place: int) -> None:
            for n in range(20):
                assert engine.record(trajectory(f"{place}-{n}", "a" * 2000), quality=1.0, wait_s=30) == "recorded"

        in_threads(work, 4)
        assert engine.status().rejected == 0
        too_large = trajectory("large", "a" * 10_000)
        assert engine.record(too_large, wait_s=None) == "rejected", "no wait makes room for it"
        for wrong in (-1.0, "long"):
            with pytest.raises(InvalidInputError, match="wait_s"):
                engine.record(trajectory("x"), wait_s=wrong)  # type: ignore[arg-type]
    assert list(stored(tmp_path / "store").values()) == [1.0] * 80


def test_a_wait_for_room_ends_when_the_disk_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("the disk has no room; free some")

    config = Config(store=StoreConfig(queue_bytes=4096))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "append", full)
            assert engine.record(trajectory("a", "a" * 3000)) == "recorded"
            assert engine.record(trajectory("b", "a" * 3000), wait_s=0.2) == "rejected"
            with pytest.raises(StoreFullError):
                engine.record(trajectory("c", "a" * 3000), wait_s=None)
        assert engine.status().rejected == 1
    assert stored(tmp_path / "store").keys() == {"a"}


def test_an_import_waits_for_the_disk_and_names_what_never_fits(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=8192))
    file = tmp_path / "log.jsonl"
    file.write_text("".join(f'{{"id": "{n}", "prompt": "{"a" * 3000}", "response": "b"}}\n' for n in range(50)))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        events = engine.events()
        assert engine.import_jsonl(file).new == 50
        assert engine.status().rejected == 0
        file.write_text(f'{{"prompt": "{"a" * 30_000}", "response": "b"}}\n')
        with pytest.raises(StoreError, match=r"line 1: larger than the whole queue.*8192"):
            engine.import_jsonl(file)
    told = [type(event) for event in events]
    assert (told.count(TrajectoryRecorded), told.count(FeedbackRecorded)) == (50, 0)
