"""Learners that do as a scenario says, in a process of their own; none of them needs a tensor library."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from msgspec.structs import replace

from sona.loops.frames import HEADER, MARK, Channel, EndOfMessagesError
from sona.loops.messages import (
    KINDS,
    Answer,
    Begun,
    Clean,
    Commit,
    Done,
    Failed,
    Logged,
    Progressed,
    Publish,
    Refused,
    RunCycle,
    Setup,
    Stop,
    WriteState,
)
from sona.ports import Claim
from sona.storage.store import Store
from sona.storage.versions import Versions, digest_of_draft
from sona.types import CycleReport, Progress, Record, Version
from tests.storage.records import report


class Learner:
    """Plays one scenario; run by ``python -c BEGIN``, see :func:`begin`."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.channel = Channel(self.socket, KINDS)
        setup = self.channel.receive()
        assert isinstance(setup, Setup)
        self.setup = setup

    def play(self, scenario: str) -> None:
        while True:
            try:
                command = self.channel.receive()
            except EndOfMessagesError:
                return
            assert isinstance(command, RunCycle)
            self.channel.send(Begun())
            getattr(self, scenario)()

    def ask(self, message: Record) -> Record:
        self.channel.send(message)
        answer = self.channel.receive()
        assert answer is not None
        return answer

    def say(self, answer: Record) -> None:
        """End the cycle with an answer of the host's as its error."""
        assert isinstance(answer, Refused), answer
        self.channel.send(Failed(error=answer.error, text=answer.text))

    def skips(self) -> CycleReport:
        with Store.open(self.setup.store, read_only=True) as store:
            done = report(store.next_cycle(), status="skipped", parent=store.current().id)
        self.channel.send(Done(report=done))
        return done

    # ------------------------------------------------------------------------------------------------ dying

    def is_killed(self) -> None:
        self.channel.send(Progressed(progress=Progress(stage="train", done=1, total=2)))
        os.kill(os.getpid(), signal.SIGKILL)

    def is_killed_in_a_message(self) -> None:
        self.socket.sendall(HEADER.pack(MARK, KINDS.index(Publish), 0, 100) + b"torn")
        os.kill(os.getpid(), signal.SIGKILL)

    def says_why_it_ends(self) -> None:
        print("RuntimeError: the heap is broken")
        sys.exit(3)

    def dies_of_a_signal(self) -> None:
        import faulthandler

        faulthandler.enable()
        os.kill(os.getpid(), signal.SIGSEGV)

    def commits_and_dies(self) -> None:
        self.publish()
        os.kill(os.getpid(), signal.SIGKILL)  # the answer is not looked at

    def dies_before_it_commits(self) -> None:
        self.publish(commit=False)
        os.kill(os.getpid(), signal.SIGKILL)

    def ends_once_done(self) -> None:
        self.skips()
        sys.exit(0)

    def begins_to_die(self) -> None:
        self.channel.send(Failed(error="MemoryError", text="no room", trace="Traceback of the learner's"))
        sys.exit(1)

    # ------------------------------------------------------------------------------------------------ misbehaving

    def speaks_something_else(self) -> None:
        self.socket.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        time.sleep(60)

    def is_deaf(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.channel.send(Progressed(progress=Progress(stage="deaf", done=0, total=1)))
        time.sleep(60)

    def never_stops(self) -> None:
        while True:
            self.channel.send(Progressed(progress=Progress(stage="train", done=0, total=1)))
            time.sleep(0.01)

    def commits_once_stopped(self) -> None:
        with Store.open(self.setup.store, read_only=True) as store:
            draft = Versions(store.path).draft()
            with draft as folder:
                (folder / "version.json").write_text("{}")
                self.channel.send(Progressed(progress=Progress(stage="publish", done=0, total=1)))
                stop = self.channel.receive()
                assert isinstance(stop, Stop), stop
                self.say(self.ask(Publish(draft=folder.name, version="v1", digest=digest_of_draft(folder))))

    def answers_itself(self) -> None:
        self.channel.send(Answer())
        time.sleep(60)

    def commits_what_it_did_not_publish(self) -> None:
        version = Version(id="v1", parent="v0", cycle=1, created_ns=1, digest="ab" * 32)
        done = report(1, status="published", version="v1")
        self.say(self.ask(Commit(report=done, claims=(), version=version)))

    def commits_twice(self) -> None:
        committed = self.publish()
        assert isinstance(self.ask(Commit(report=committed, claims=(), version=None)), Refused)
        self.channel.send(Done(report=committed))

    def changes_its_draft(self) -> None:
        with Versions(self.setup.store).draft() as folder:
            (folder / "version.json").write_text("{}")
            digest = digest_of_draft(folder)
            (folder / "version.json").write_text("[]")
            self.say(self.ask(Publish(draft=folder.name, version="v1", digest=digest)))

    def publishes_another_folder(self) -> None:
        victim = Path(self.setup.store) / "victim"
        victim.mkdir()
        for name in ("../victim", ".draft-/../../victim", str(victim), "v0"):
            answer = self.ask(Publish(draft=name, version="v1", digest=""))
            assert isinstance(answer, Refused), name
        assert victim.is_dir()
        self.say(answer)

    def writes_other_state(self) -> None:
        self.say(self.ask(WriteState(name="model", value=b"mine")))

    # ------------------------------------------------------------------------------------------------ behaving

    def publishes(self) -> None:
        done = self.publish()
        assert self.ask(WriteState(name="cycle/seen", value=b"7")) == Answer()
        with Store.open(self.setup.store, read_only=True) as store:
            assert store.read_state("cycle/seen") == b"7", "what was answered for is seen by the next read"
        self.channel.send(Logged(logger="sona.stub", level=30, text="a line of the learner's"))
        self.channel.send(Done(report=done))

    def fails_as_sona_does(self) -> None:
        self.channel.send(Failed(error="ConfigError", text="lora: rank 4"))

    def publish(self, *, commit: bool = True) -> CycleReport:
        assert self.ask(Clean()) == Answer()
        with Store.open(self.setup.store, read_only=True) as store:
            number, parent = store.next_cycle(), store.current().id
            rows = store.collect(1000).rows
            claims = tuple(Claim(seq=row.seq, role="train", feedback_seq=row.feedback_seq) for row in rows)
        with Versions(self.setup.store).draft() as folder:
            version = Version(id=f"v{number}", parent=parent, cycle=number, created_ns=1, digest="")
            (folder / "version.json").write_text("{}")
            digest = digest_of_draft(folder)
            assert self.ask(Publish(draft=folder.name, version=version.id, digest=digest)) == Answer()
        done = report(number, status="published", parent=parent, version=version.id)
        message = Commit(report=done, claims=claims, version=replace(version, digest=digest))
        if commit:
            assert self.ask(message) == Answer()
        return done


def begin(scenario: str) -> str:
    """What a Python runs to play it."""
    return (
        "import sys; sys.path[:] = sys.argv[2:]; from tests.loops.stub_learner import Learner; "
        f"Learner(int(sys.argv[1])).play({scenario!r})"
    )
