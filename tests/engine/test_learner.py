"""Cycles in a process of their own: they learn the same, and whatever becomes of that process, the host goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

import sona
from sona.bank.lessons import LessonDraft, LessonRequest
from sona.config import Config, CycleConfig, LearnerConfig, LessonsConfig
from sona.errors import CycleError, LearnerError, ModelError, StoreLockedError
from sona.events import CycleFinished, CycleStarted, Swapped, VersionPublished
from sona.loops import learner
from sona.storage.layout import LEARNER_LOCK
from sona.storage.lock import LearnerLock
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.tiny import model_path
from sona.types import Progress
from tests.engine.loops import BACKENDS, run_on
from tests.engine.small import SMALL, WORLD, open_small, record_task
from tests.engine.test_lessons import distill, record_both
from tests.processes import first_line, kill, start

pytestmark = pytest.mark.timeout(100)
PROCESS = LearnerConfig(mode="process", nice=0)  # beside other work that all cores have to do, a test would wait
SMALL_PROCESS = replace(SMALL, learner=PROCESS)
BANK = Config(cycle=CycleConfig(min_trajectories=4), learner=PROCESS)
"""For a host without a model, whose cycles take a moment, and their process another one."""


def digest_of(store: Path, version: str) -> str:
    """Of a version's files, without what says when it was made, how long that took, and where."""
    sha, folder = hashlib.sha256(), store / "versions" / version
    for file in sorted(folder.rglob("*")):
        if file.name == "version.json":
            about = json.loads(file.read_bytes())
            del about["created_ns"], about["settings"]["learner"]
            about["metrics"] = {name: value for name, value in about["metrics"].items() if not name.endswith("_s")}
            sha.update(json.dumps(about, sort_keys=True).encode())
        elif file.is_file():
            sha.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return sha.hexdigest()


def record(engine: sona.SyncEngine, seed: int, task: str = "tool_call") -> None:
    """60 right answers, the same ones each time it is asked for them."""
    for place, example in enumerate(WORLD.sample(task, 60, seed)):
        made = sona.Trajectory(
            id=f"{seed}-{place}", messages=example.prompt, response=example.response, created_ns=place
        )
        engine.record(made, quality=1.0)


def learner_pid(engine: sona.SyncEngine | sona.Engine) -> int:
    pid = engine.status().learner.pid
    assert pid is not None
    return pid


def is_gone(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # nobody's any more: whoever adopts it has not looked yet
            return True
        time.sleep(0.02)
    return False


# ------------------------------------------------------------------------------------------------ it learns the same


@pytest.mark.timeout(240)
def test_thread_and_process_learn_the_same_also_one_that_is_killed_between_its_cycles(tmp_path: Path) -> None:
    digests: dict[str, list[str]] = {}
    metrics: dict[str, Any] = {}
    for name in ("thread", "process", "killed"):
        mode = LearnerConfig(mode="thread" if name == "thread" else "process", nice=0)
        config = replace(SMALL, learner=mode, lessons=LessonsConfig(by_model=True, max_tokens=32))
        with open_small(tmp_path / name, config=config) as engine:
            pids = set()
            for seed, task in ((1, "tool_call"), (2, "routing_policy")):
                record(engine, seed, task)
                stages: list[str] = []
                events = engine.events()
                report = engine.learn(lambda progress, stages=stages: stages.append(progress.stage))  # type: ignore[misc]
                assert report.version == f"v{seed}", report.reason
                assert {"place", "train", "publish"} <= set(stages)
                pids.add(engine.status().learner.pid)
                if name == "killed":
                    os.kill(learner_pid(engine), signal.SIGKILL)
                _tells_its_course(events, seed)
                metrics.setdefault(str(seed), []).append(report.metrics["lessons_asked"])
            status = engine.status().learner
            assert (status.cycle, status.failed, status.last_failure) == (None, 0, None)
            assert len(pids) == (2 if name == "killed" else 1)
            assert (None in pids) == (name == "thread")
        digests[name] = [digest_of(tmp_path / name, version) for version in ("v1", "v2")]
    assert digests["thread"] == digests["process"] == digests["killed"]
    assert all(len(set(asked)) == 1 for asked in metrics.values())


def _tells_its_course(events: Any, cycle: int) -> None:
    begun, published, swapped, finished = (next(events) for _ in range(4))
    assert isinstance(begun, CycleStarted)
    assert isinstance(published, VersionPublished)
    assert isinstance(swapped, Swapped)
    assert isinstance(finished, CycleFinished)
    assert (begun.cycle, finished.status, finished.version) == (cycle, "published", f"v{cycle}")


def test_the_distiller_is_asked_in_the_host_and_its_lessons_are_the_same(tmp_path: Path) -> None:
    asked_in: list[int] = []

    def ask(request: LessonRequest) -> list[Any]:
        asked_in.append(os.getpid())
        if not any(word.startswith("bob") for word in request.best[0].prompt.split()):
            raise ValueError("nobody knows")
        return [*distill(request), {"title": object()}, 3, LessonDraft(title="a", when="b", advice="avoid", text="c")]

    banks, metrics = [], []
    for mode in ("thread", "process"):
        config = replace(BANK, learner=LearnerConfig(mode=mode, nice=0))
        with sona.open_sync(tmp_path / mode, config=config, distill=ask) as engine:
            record_both(engine, sources=("bob", "ann"))
            metrics.append({name: value for name, value in engine.learn().metrics.items() if "lessons" in name})
            banks.append(sorted((one.text, one.advice) for pattern in engine.bank.patterns for one in pattern.lessons))
    assert set(asked_in) == {os.getpid()}
    assert metrics[0] == metrics[1]
    assert (metrics[1]["lessons_failed"], metrics[1]["lessons_refused"]) == (1, 2)
    assert banks[0] == banks[1]


# ------------------------------------------------------------------------------------------------ death


def test_a_learner_that_is_killed_at_any_moment_changes_nothing_or_publishes(tmp_path: Path) -> None:
    rng, outcomes = random.Random(7), list[str]()
    with sona.open_sync(tmp_path / "store", config=BANK) as engine:
        record_both(engine)
        began = time.monotonic()
        assert engine.learn().version == "v1"  # from nothing, as each that follows a kill
        whole_s = time.monotonic() - began
        for number in range(10):
            for place in range(10):
                engine.record(
                    sona.Trajectory(messages=f"q {number} {place}", response="a", embedding=[1.0] * 16), quality=0.5
                )
            killer = _Killer(engine, rng.uniform(0.0, 1.2 * whole_s))
            engine.flush()
            before, new = engine.version, engine.status().store.uncollected
            try:
                outcomes.append(engine.learn().status)
                assert engine.version.parent == before.id
            except LearnerError:
                outcomes.append("failed")
                assert "LearnerError: the process that learns was killed" in str(engine.status().learner.last_failure)
                assert engine.version == before
                assert engine.status().store.uncollected == new
            killer.join()
            assert engine.bank.patterns, "the host goes on"
            folders = {path.name for path in (tmp_path / "store" / "versions").iterdir()}
            assert folders <= {version.id for version in engine.versions()}
        assert engine.status().learner.failed == outcomes.count("failed") > 0
        engine.learn()
        assert engine.status().store.uncollected == 0
    with Store.open(tmp_path / "store") as store:
        Versions(store.path).verify(store.current())
        taken = [claim.seq for cycle in range(1, store.next_cycle()) for claim in store.claims(cycle)]
        assert len(taken) == len(set(taken)) == 140


class _Killer(threading.Thread):
    """Kills the learner so long after its start, if it is there by then."""

    def __init__(self, engine: sona.SyncEngine, after_s: float) -> None:
        super().__init__()
        self._engine, self._after_s = engine, after_s
        self.start()

    def run(self) -> None:
        time.sleep(self._after_s)
        with suppress(ProcessLookupError):
            if (pid := self._engine.status().learner.pid) is not None:
                os.kill(pid, signal.SIGKILL)


HOST = """
import sys, time, sona
from pathlib import Path
from tests.engine.test_learner import BANK
from tests.engine.test_lessons import record_both

def ask(request):
    print(engine.status().learner.pid, flush=True)
    time.sleep(60)

engine = sona.open_sync(sys.argv[1], config=BANK, distill=ask).start()
record_both(engine)
engine.learn()
"""


def test_the_host_s_death_ends_the_learner_and_the_next_host_goes_on(tmp_path: Path) -> None:
    host = start(HOST, tmp_path / "store")
    said = first_line(host)
    assert said.isdecimal(), said + kill(host)
    kill(host)
    assert is_gone(int(said))
    with sona.open_sync(tmp_path / "store", config=BANK) as engine:
        assert engine.learn().version == "v1"
        assert engine.status().store.uncollected == 0


def test_the_hourly_loop_goes_on_after_a_learner_that_died(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed: list[int] = []

    def ask(request: LessonRequest) -> list[LessonDraft]:
        if not killed:
            killed.append(learner_pid(engine))
            os.kill(killed[0], signal.SIGKILL)
        return []

    config = replace(BANK, cycle=CycleConfig(min_trajectories=4, interval_s=0.05))
    engine = sona.open(tmp_path / "store", config=config, distill=ask)

    async def scenario() -> None:
        async with engine:
            for place in range(40):
                trajectory = sona.Trajectory(messages=f"q {place}", response="a", embedding=[1.0, place % 2, 0.0])
                engine.record(trajectory, quality=1.0)
            finished = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                async for event in engine.events():
                    if isinstance(event, CycleFinished):
                        finished.append(event)
                        if event.status == "published":
                            tasks.cancel_scope.cancel()
            failed = [event for event in finished if event.status == "failed"]
            assert len(failed) == 1
            assert "LearnerError: the process that learns was killed" in failed[0].reason

    run_on("asyncio", scenario)
    assert "cycle failed, 1 in a row; it is tried again" in caplog.text


# ------------------------------------------------------------------------------------------------ stopping


def test_cancelling_ends_the_cycle_in_the_process_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL_PROCESS) as engine:
            for example in WORLD.sample("tool_call", 60, 1):
                engine.record(sona.Trajectory(messages=example.prompt, response=example.response), quality=1.0)
            training, loop = asyncio.Event(), asyncio.get_running_loop()

            def on_progress(progress: Progress) -> None:
                if progress.stage == "train":
                    loop.call_soon_threadsafe(training.set)

            task = asyncio.create_task(engine.learn(on_progress))
            await training.wait()
            status = engine.status().learner
            assert status.cycle == 1
            pid = status.pid
            reply = await engine.generate("echo blue", max_new_tokens=4)
            assert reply.version == "v0"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (engine.version.id, engine.status().store.uncollected) == ("v0", 60)
            assert engine.status().learner.cycle is None
            assert "stopped before it was done" in str(engine.status().learner.last_failure)
            assert list((tmp_path / "store" / "versions").iterdir()) == []
            assert learner_pid(engine) == pid, "it came to its next progress, and keeps its model"
            assert (await engine.learn()).status == "published"

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_ends_the_cycle_and_its_process(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        asked = threading.Event()
        pids = []

        def ask(request: LessonRequest) -> list[LessonDraft]:
            pids.append(learner_pid(engine))
            asked.set()
            return []

        engine = sona.open(tmp_path / "store", config=BANK, distill=ask)
        await engine.start()
        for place in range(40):
            trajectory = sona.Trajectory(messages=f"q {place}", response="a", embedding=[1.0, place % 2, 0.0])
            engine.record(trajectory, quality=1.0)
        with suppress(CycleError):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_learn, engine)
                await anyio.to_thread.run_sync(asked.wait)
                await engine.aclose()
        assert is_gone(pids[0], within_s=0.5)
        with Store.open(tmp_path / "store") as store:
            assert {path.name for path in (store.path / "versions").iterdir()} <= {one.id for one in store.versions()}

    run_on(backend, scenario)


async def _learn(engine: sona.Engine) -> None:
    with suppress(CycleError):
        await engine.learn()


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_cycle_beyond_its_budget_is_ended_and_told(tmp_path: Path, mode: Any) -> None:
    config = replace(BANK, learner=LearnerConfig(mode=mode, budget_s=0.001))
    with sona.open_sync(tmp_path / "store", config=config) as engine:
        record_both(engine)
        events = engine.events()
        with pytest.raises(CycleError, match=r"not done within learner.budget_s \(0.001 s\)"):
            engine.learn()
        course = [event for event in (next(events), next(events)) if isinstance(event, CycleFinished)]
        assert [event.status for event in course] == ["failed"]
        assert engine.version.id == "v0"
        assert engine.status().store.uncollected == 40
        assert "budget_s" in str(engine.status().learner.last_failure)


def test_one_without_work_ends_and_gives_its_memory_back(tmp_path: Path) -> None:
    config = replace(BANK, learner=LearnerConfig(mode="process", nice=0, idle_s=0.1))
    with sona.open_sync(tmp_path / "store", config=config) as engine:
        record_both(engine)
        assert engine.learn().version == "v1"
        deadline = time.monotonic() + 10
        while engine.status().learner.pid is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for place in range(4):
            engine.record(sona.Trajectory(messages=f"new {place}", response="a", embedding=[1.0] * 16), quality=1.0)
        assert engine.learn().version == "v2"


def test_too_little_starts_no_process(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", config=BANK) as engine:
        assert (engine.learn().status, engine.status().learner.pid) == ("skipped", None)


# ----------------------------------------------------------------------------------------------- what stands in its way


def test_a_model_that_the_learner_can_not_load_or_that_has_changed_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(model_path()).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    with open_small(tmp_path / "store", model=str(folder), config=SMALL_PROCESS) as engine:
        record_task(engine, 60, seed=1)
        for bad, told in ((data[:-1000], "weights are damaged"), (data[:-2] + b"\x00\x42", "is another model than")):
            events = engine.events()
            weights.write_bytes(bad)
            with pytest.raises(ModelError, match=told):
                engine.learn()
            _, finished = next(events), next(events)
            assert isinstance(finished, CycleFinished)
            assert (finished.status, told in finished.reason) == ("failed", True)
            assert engine.generate("echo blue", max_new_tokens=2).version == "v0"
        assert engine.status().store.uncollected == 60


def test_a_store_has_one_host_and_one_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sona.open_sync(tmp_path / "store", config=BANK) as engine:
        with pytest.raises(StoreLockedError, match="this process writes to it"):
            sona.open_sync(tmp_path / "store", config=BANK).start()
        record_both(engine)
        lock = LearnerLock(tmp_path / "store" / LEARNER_LOCK)  # as one whose host was killed holds for a moment
        monkeypatch.setattr(learner, "PREDECESSOR_S", 0.1)
        with pytest.raises(StoreLockedError, match=r"learns for it.*one learner"):
            learner._lock(tmp_path / "store")
        ending = threading.Timer(1.0, lock.release)
        ending.start()
        assert engine.learn().version == "v1"
        ending.join()
        with pytest.raises(StoreLockedError, match=f"pid {learner_pid(engine)}"):
            learner._lock(tmp_path / "store")


@pytest.mark.parametrize("trigger", [{"after_count": 40}, {"after_quiet_s": 0.1}])
def test_a_cycle_begins_before_its_hour(tmp_path: Path, trigger: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", config=replace(BANK, learner=LearnerConfig(**trigger))) as engine:
            events = engine.events()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                finished: list[str] = []
                async for event in events:
                    if not isinstance(event, CycleFinished):
                        continue
                    finished.append(event.status)
                    if event.status == "published":
                        break
                    for place in range(40):
                        engine.record(
                            sona.Trajectory(messages=f"q {place}", response="a", embedding=[1.0, 0.0]), quality=1.0
                        )
                tasks.cancel_scope.cancel()
            assert finished == ["skipped", "published"]

    run_on("asyncio", scenario)
