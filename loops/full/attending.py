"""The process that trains, as its host has it: one question at a time, and what it died of."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sona.errors import LearnerError, StoreError
from sona.loops.attendance import LOOK_S, tell_log
from sona.loops.child import ChildProcess
from sona.loops.frames import EndOfMessagesError
from sona.loops.full.messages import (
    KINDS,
    CheckpointFailed,
    CheckpointSaved,
    JobDone,
    JobFailed,
    Loaded,
    RunJob,
    SaveCheckpoint,
    Stepped,
    TrainerFailed,
    TrainerSetup,
)
from sona.loops.learner_ports import raised
from sona.loops.messages import Logged
from sona.training import CheckpointMade, JobResult
from sona.types import Record

log = logging.getLogger("sona.training")

BEGIN = "import sys; sys.path[:] = sys.argv[2:]; from sona.loops.full.trainer import main; main(int(sys.argv[1]))"

Check = Callable[[], None]
"""Called now and then while the trainer works; what it raises gives it up."""


class Trainer:
    """One process, with the weights in it."""

    def __init__(self, setup: TrainerSetup, threads: int, check: Check) -> None:
        """Start it; :meth:`load` waits until it is ready.

        Raises:
            LearnerError: it can't be started.
        """
        self._setup, self._check = setup, check
        self._process = ChildProcess(BEGIN, KINDS, threads)

    @property
    def pid(self) -> int | None:
        """Of the process; None where it has ended."""
        return self._process.pid if self._process.alive else None

    def load(self) -> int:
        """Have it load the newest checkpoint; returns its number, 0 for the base.

        Raises:
            LearnerError: it died, or could not be understood.
            SonaError: why it can't.
        """
        match self._asked(self._setup):
            case Loaded(checkpoint=number):
                return number
            case other:
                raise _misunderstood(other)

    def run(self, number: int, on_step: Callable[[int], None]) -> JobResult | JobFailed:
        """Have it train a job; raises as :meth:`load`."""
        match self._asked(RunJob(number=number), on_step):
            case JobDone(result=result):
                return result
            case JobFailed() as failed:
                return failed
            case other:
                raise _misunderstood(other)

    def save(self) -> CheckpointMade:
        """Have it write a checkpoint.

        Raises:
            StoreError: it can't be written; the trainer goes on.
            LearnerError, SonaError: as :meth:`load`.
        """
        match self._asked(SaveCheckpoint()):
            case CheckpointSaved(made=made):
                return made
            case CheckpointFailed(error=name, text=text):
                error = raised(name, text)
                raise error if isinstance(error, StoreError) else StoreError(str(error))
            case other:
                raise _misunderstood(other)

    def end(self) -> None:
        """Close the socket, which ends it in the middle of anything."""
        self._process.end()

    def forked(self) -> None:
        """In a forked child."""
        self._process.forked()

    def _asked(self, message: Record, on_step: Callable[[int], None] = lambda done: None) -> Record:
        """Its answer."""
        try:
            self._send(message)
            while True:
                self._check()
                match self._process.channel.receive(LOOK_S):
                    case None:
                        pass
                    case Logged() as told:
                        tell_log(told)
                    case Stepped(done=done):
                        on_step(done)
                    case TrainerFailed(error=name, text=text, trace=trace):
                        raise _unforeseen(name, trace) if trace else raised(name, text)
                    case answer:
                        return answer
        except EndOfMessagesError as end:
            self.end()
            raise LearnerError(f"the process that trains {self._process.cause(str(end))}") from None

    def _send(self, message: Record) -> None:
        try:
            self._process.channel.send(message)
        except OSError:
            raise EndOfMessagesError from None


def _unforeseen(name: str, trace: str) -> LearnerError:
    log.error("the process that trains failed:\n%s", trace)
    return LearnerError(f"the process that trains failed with {name}; the log has its trace")


def _misunderstood(answer: Record) -> LearnerError:
    return LearnerError(f"the process that trains answered with {type(answer).__name__}")
