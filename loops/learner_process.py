"""The process that learns, as its host has it: started when a cycle needs one, attended to while the cycle runs.

It belongs to no event loop, since cycles may be asked for from several, one after another: whoever attends to it does
so in a thread of its own, and waits there for what the socket brings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from sona import forked
from sona.errors import LearnerError, StoreError
from sona.loops.attendance import LOOK_S, Attendance, Host, clean, tell_log
from sona.loops.child import ChildProcess
from sona.loops.frames import EndOfMessagesError
from sona.loops.messages import KINDS, Begun, Logged, RunCycle
from sona.ports import Report
from sona.types import CycleReport

log = logging.getLogger("sona.learner")

REMEDY = ", or set learner.mode to 'thread'"
BEGIN = "import sys; sys.path[:] = sys.argv[2:]; from sona.loops.learner import main; main(int(sys.argv[1]))"


class LearnerProcess:
    """Runs one host's cycles, one at a time, in a process that it starts when there is none."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process: ChildProcess | None = None
        forked.watch(self)

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none just now."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    def run(self, report: Report, check: Callable[[], None]) -> CycleReport:
        """One cycle, in the process.

        Args:
            report: told of the progress; what it raises ends the cycle.
            check: called now and then; what it raises ends the cycle.

        Returns:
            What was done. A cycle that is committed has been done, whatever became of the process then.

        Raises:
            LearnerError: the process could not be started, has died, or could not be understood; nothing has changed.
            SonaError: as :func:`sona.loops.cycle.run_cycle`; nothing has changed.
        """
        process = self._begun(check)
        cycle = Attendance(self._host, process.channel, report)
        try:
            return cycle.attend(check)
        except EndOfMessagesError as end:
            self._end()
            if cycle.committed is not None:
                log.warning("the learner died once cycle %d was committed", cycle.committed.cycle)
                return cycle.committed
            raise LearnerError(f"the process that learns {process.cause(str(end))}; nothing has changed") from None
        finally:
            if not cycle.ended:
                self._end()
            if cycle.committed is None:
                self._clean()

    def close(self) -> None:
        """End the process, if there is one."""
        self._end()

    def forked(self) -> None:
        """In a forked child."""
        if self._process is not None:
            self._process.forked()
        self._process = None

    def _begun(self, check: Callable[[], None]) -> ChildProcess:
        """The process, once it has begun a cycle. One that has just ended, for want of work, is followed by another."""
        process = self._process
        try:
            if process is not None and process.alive:
                with suppress(EndOfMessagesError):
                    return _greeted(process, check)
            self._end()
            process = self._process = ChildProcess(BEGIN, KINDS, self._host.config.learner.threads, remedy=REMEDY)
            with suppress(OSError):  # it has died already, which is told below
                process.channel.send(self._host.setup())
            return _greeted(process, check)
        except EndOfMessagesError as end:
            self._end()
            assert process is not None
            raise LearnerError(f"the process that learns {process.cause(str(end))}; nothing has changed") from None
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _clean(self) -> None:
        """Remove what a cycle that failed has left."""
        try:
            clean(self._host)
        except StoreError:
            log.exception("the draft of a failed cycle could not be removed; the next cycle does")


def _greeted(process: ChildProcess, check: Callable[[], None]) -> ChildProcess:
    """The process, once it has begun a cycle; EndOfMessagesError where it has ended instead."""
    try:
        process.channel.send(RunCycle())
    except OSError:
        raise EndOfMessagesError from None
    while True:
        check()
        match process.channel.receive(LOOK_S):
            case Begun():
                return process
            case Logged() as line:
                tell_log(line)
            case None:
                pass
            case other:
                raise LearnerError(f"a {type(other).__name__} came before the cycle had begun")
