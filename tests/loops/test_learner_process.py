"""A host and a learner that dies, misbehaves, or will not stop: the host is told why, and goes on as before."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sona.config import Config, LearnerConfig
from sona.errors import ConfigError, CycleError, InvalidInputError, LearnerError, StoreCorruptError
from sona.loops import attendance, child, learner_process
from sona.loops.attendance import Host
from sona.loops.child import executable
from sona.loops.learner_process import LearnerProcess
from sona.ports import ignore_progress
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Progress
from tests.loops.stub_learner import begin
from tests.storage.records import add, rated

pytestmark = pytest.mark.timeout(60)
Play = Callable[[str], LearnerProcess]


def go_on() -> None:
    """The check of a cycle that nobody wants to end."""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        add(opened, rated(f"t{place}" for place in range(5)))
        yield opened


@pytest.fixture
def play(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """A learner whose processes play a scenario."""
    host = Host(store, Versions(store.path), None, None, Config(learner=LearnerConfig(mode="process")))
    learner = LearnerProcess(host)

    def scenario(name: str) -> LearnerProcess:
        monkeypatch.setattr(learner_process, "BEGIN", begin(name))
        return learner

    yield scenario
    learner.close()
    assert learner.pid is None


def is_as_before(store: Store) -> None:
    assert (store.current().id, store.next_cycle(), store.uncollected()) == ("v0", 1, 5)
    assert list((store.path / "versions").iterdir()) == []


# ------------------------------------------------------------------------------------------------ dying


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("is_killed", r"was killed \(SIGKILL: the system was out of memory"),
        ("is_killed_in_a_message", "was killed in the middle of a message"),
        ("says_why_it_ends", "ended with code 3; it said: RuntimeError: the heap is broken"),
        ("dies_of_a_signal", "was ended by SIGSEGV; it said: Fatal Python error: Segmentation fault"),
        ("begins_to_die", "MemoryError: no room"),
        ("dies_before_it_commits", "was killed"),
    ],
)
def test_a_death_is_an_error_that_names_its_cause_and_the_next_cycle_runs(
    play: Play, store: Store, scenario: str, told: str
) -> None:
    with pytest.raises(LearnerError, match=told):
        play(scenario).run(ignore_progress, go_on)
    is_as_before(store)
    assert play("publishes").run(ignore_progress, go_on).version == "v1"
    assert store.uncollected() == 0


def test_the_learner_s_own_traceback_goes_with_its_error(play: Play) -> None:
    with pytest.raises(LearnerError) as caught:
        play("begins_to_die").run(ignore_progress, go_on)
    assert "Traceback of the learner's" in caught.value.__notes__[0]


def test_a_death_between_the_commit_and_its_answer_is_a_cycle_that_was_done(play: Play, store: Store) -> None:
    report = play("commits_and_dies").run(ignore_progress, go_on)
    assert (report.version, store.current().id, store.next_cycle()) == ("v1", "v1", 2)
    assert store.uncollected() == 0
    Versions(store.path).verify(store.current())


def test_one_that_has_ended_for_want_of_work_is_followed_by_another(play: Play) -> None:
    learner = play("ends_once_done")
    pids = set()
    for _ in range(3):
        assert learner.run(ignore_progress, go_on).status == "skipped"
        pids.add(learner._process and learner._process.pid)
    assert len(pids) == 3


def test_one_process_serves_many_cycles(play: Play, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    learner = play("publishes")
    learner.run(ignore_progress, go_on)
    pid = learner.pid
    add(store, rated(["later"]))
    assert learner.run(ignore_progress, go_on).version == "v2"
    assert learner.pid == pid
    assert ("sona.stub", logging.WARNING, "a line of the learner's") in caplog.record_tuples
    learner.close()
    assert pid is not None
    assert not is_alive(pid), "not even a zombie"


def test_a_learner_that_can_not_be_imported_is_told(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = play("publishes")
    monkeypatch.setattr(learner_process, "BEGIN", "import no_such_module")
    with pytest.raises(LearnerError, match="ended with code 1; it said: ModuleNotFoundError: No module named 'no_such"):
        learner.run(ignore_progress, go_on)


def test_a_python_that_is_none_is_told_with_what_to_do(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(child, "executable", lambda: str(tmp_path / "none"))
    with pytest.raises(LearnerError, match=r"can't be started.*set_executable.*learner.mode to 'thread'"):
        play("publishes").run(ignore_progress, go_on)


def test_a_program_that_embeds_python_starts_a_python_and_not_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing.spawn

    assert executable() == sys.executable
    for module in (sys, multiprocessing.spawn):
        monkeypatch.setattr(module, "executable" if module is sys else "_python_exe", "/usr/bin/agent-host")
    assert Path(executable()).name == f"python3.{sys.version_info.minor}"
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/opt/other")  # as multiprocessing.set_executable does
    assert executable() == "/opt/other"


# ------------------------------------------------------------------------------------------------ misbehaving


@pytest.mark.parametrize(
    ("scenario", "error", "told"),
    [
        ("speaks_something_else", LearnerError, "no frame of sona's: b'HTTP/1.1"),
        ("answers_itself", LearnerError, "a Answer is nothing that a learner says"),
        ("commits_what_it_did_not_publish", CycleError, "no such files were published"),
        ("changes_its_draft", StoreCorruptError, "the learner wrote"),
        ("publishes_another_folder", InvalidInputError, "no folder of a version"),
        ("writes_other_state", LearnerError, "state 'model': not a cycle's to write"),
        ("fails_as_sona_does", ConfigError, "lora: rank 4"),
    ],
)
def test_what_a_learner_may_not_do_is_refused(
    play: Play, store: Store, scenario: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        play(scenario).run(ignore_progress, go_on)
    is_as_before(store)
    assert store.read_state("model") is None


def test_what_is_no_frame_ends_the_learner_and_not_the_host(play: Play) -> None:
    learner = play("speaks_something_else")
    with pytest.raises(LearnerError):
        learner.run(ignore_progress, go_on)
    assert learner.pid is None
    assert play("publishes").run(ignore_progress, go_on).version == "v1"


def test_a_second_commit_is_refused(play: Play, store: Store) -> None:
    assert play("commits_twice").run(ignore_progress, go_on).version == "v1"
    assert store.next_cycle() == 2


# ------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("scenario", ["is_deaf", "never_stops"])
def test_one_that_does_not_stop_is_killed(
    play: Play, store: Store, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    for module, name in ((attendance, "STOP_S"), (child, "CLOSE_S"), (child, "TERM_S")):
        monkeypatch.setattr(module, name, 0.2)
    learner = play(scenario)
    began = threading.Event()
    pids: list[int | None] = []

    def check() -> None:
        if began.is_set():
            raise CycleError("enough")

    def on_progress(_: Progress) -> None:
        pids.append(learner.pid)
        began.set()

    since = time.monotonic()
    with pytest.raises(CycleError, match="enough"):
        learner.run(on_progress, check)
    assert time.monotonic() - since < 10
    assert pids[0] is not None
    assert not is_alive(pids[0])
    is_as_before(store)


def test_nothing_is_published_once_the_cycle_is_to_end(play: Play, store: Store) -> None:
    learner = play("commits_once_stopped")
    pids: list[int | None] = []

    def stop(_: Progress) -> None:
        pids.append(learner.pid)
        raise RuntimeError("the host has had enough")

    with pytest.raises(RuntimeError, match="had enough"):
        learner.run(stop, go_on)
    is_as_before(store)
    assert pids == [learner.pid], "it came to its end, and waits for the next cycle"


def test_a_forked_child_of_the_host_does_not_keep_the_learner_alive(play: Play) -> None:
    learner = play("publishes")
    learner.run(ignore_progress, go_on)
    process, child = learner._process, os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        learner.close()  # whose end of the socket the child must not hold
        assert process is not None
        assert process._popen.returncode == 0, "it ended by itself, and no signal was needed"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
