"""The process that learns, as its host has it: started when a cycle needs one, attended to while the cycle runs.

It belongs to no event loop, since cycles may be asked for from several, one after another: whoever attends to it does
so in a thread of its own, and waits there for what the socket brings.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sona.config import Config
from sona.errors import LearnerError, StoreError
from sona.loops.attendance import LOOK_S, Attendance, Host, clean, tell_log
from sona.loops.frames import Channel, EndOfMessagesError
from sona.loops.messages import KINDS, Begun, Logged, RunCycle
from sona.ports import Report
from sona.storage import forked
from sona.types import CycleReport

log = logging.getLogger("sona.learner")

CLOSE_S = 2.0
"""A process has so long to end once its socket is closed; then it is told to by a signal."""
TERM_S = 2.0
"""... and then by SIGKILL."""
SEND_S = 30.0
"""A learner that does not read for so long is taken for dead."""
TAIL = 40
"""Lines of its output that are kept, to say what it died of."""
BEGIN = "import sys; sys.path[:] = sys.argv[2:]; from sona.loops.learner import main; main(int(sys.argv[1]))"


class _Process:
    """One process, from its start to its end."""

    def __init__(self, config: Config) -> None:
        """Raises LearnerError where it can't be started."""
        ours, theirs = socket.socketpair()
        try:
            paths = [os.path.abspath(path) for path in sys.path]  # "" is the folder that the host works in
            self._popen = subprocess.Popen(
                [executable(), "-P", "-c", BEGIN, str(theirs.fileno()), *paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(config.learner.threads),
                process_group=0,  # a Ctrl-C at the terminal is the host's to answer
            )
        except (OSError, LearnerError) as error:
            ours.close()
            raise LearnerError(
                f"a process to learn in can't be started ({error}); see that {executable()!r} is a Python, name "
                "another one by multiprocessing.set_executable, or set learner.mode to 'thread'"
            ) from error
        finally:
            theirs.close()
        ours.settimeout(SEND_S)
        self._end = ours
        self.channel = Channel(ours, KINDS)
        self.output = deque[str](maxlen=TAIL)
        self._reader = threading.Thread(target=self._read, name="sona-learner", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def _read(self) -> None:
        """What it prints, to its end; then no zombie stays behind."""
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                self.output.append(line.decode(errors="replace").rstrip())
        self._popen.wait()

    def end(self) -> None:
        """Close the socket, which ends it; where it has not ended in time, end it by signals."""
        self.channel.close()
        for number, wait_s in ((None, CLOSE_S), (signal.SIGTERM, TERM_S), (signal.SIGKILL, None)):
            if number is not None:
                self._popen.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(wait_s)
                break
        self._reader.join(CLOSE_S)

    def cause(self, when: str) -> str:
        """What it died of, once it has ended."""
        code = self._popen.wait()
        when = f" {when}" if when else ""
        if code == -signal.SIGKILL:
            return f"was killed{when} (SIGKILL: the system was out of memory, or somebody did it)"
        lines = [line for line in self.output if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal Python error")]  # before the stacks of all threads
        said = f"; it said: {[*fatal, *lines[-1:]][0]}" if lines else ""
        if code < 0:
            return f"was ended{when} by {signal.Signals(-code).name}{said}"
        return f"ended{when} with code {code}{said}"

    def forked(self) -> None:
        """In a forked child: it is the parent's, whose death the end of the socket must tell."""
        self._end.close()
        self._popen.returncode = 0  # or Popen would warn of a process that it leaves running


def executable() -> str:
    """A Python like the one that runs here, which in a program that embeds it is not that program.

    ``multiprocessing.set_executable`` names another one.
    """
    import multiprocessing.spawn

    named = os.fsdecode(multiprocessing.spawn.get_executable() or "")
    if Path(named).name.startswith(("python", "pypy")) or named != sys.executable:
        return named
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in (version, "python3", "python"):
        if (found := Path(sys.exec_prefix, "bin", name)).exists():
            return str(found)
    return named


def _environment(threads: int) -> dict[str, str]:
    """The host's own, but for what the libraries read once, when they are loaded."""
    return {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


class LearnerProcess:
    """Runs one host's cycles, one at a time, in a process that it starts when there is none."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process: _Process | None = None
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

    def _begun(self, check: Callable[[], None]) -> _Process:
        """The process, once it has begun a cycle. One that has just ended, for want of work, is followed by another."""
        process = self._process
        try:
            if process is not None and process.alive:
                with suppress(EndOfMessagesError):
                    return _greeted(process, check)
            self._end()
            process = self._process = _Process(self._host.config)
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


def _greeted(process: _Process, check: Callable[[], None]) -> _Process:
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
