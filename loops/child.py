"""A process of its own for what must not hold up the host: spawned, spoken to over a socket, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sona.errors import LearnerError
from sona.loops.frames import Channel
from sona.types import Record

CLOSE_S = 2.0
"""A process has so long to end once its socket is closed; then it is told to by a signal."""
TERM_S = 2.0
"""... and then by SIGKILL."""
SEND_S = 30.0
"""A child that does not read for so long is taken for dead."""
TAIL = 40
"""Lines of its output that are kept, to say what it died of."""


class ChildProcess:
    """One process, from its start to its end."""

    def __init__(self, begin: str, kinds: Sequence[type[Record]], threads: int, *, remedy: str = "") -> None:
        """``begin`` is Python that finds its end of the socket, a descriptor, in ``sys.argv[1]`` and the host's
        ``sys.path`` behind it.

        Args:
            begin: what it runs.
            kinds: the messages that may cross.
            threads: OpenMP's there; 0 leaves the host's setting.
            remedy: what else to do where it can't be started.

        Raises:
            LearnerError: it can't be started.
        """
        ours, theirs = socket.socketpair()
        try:
            paths = [os.path.abspath(path) for path in sys.path]  # "" is the folder that the host works in
            self._popen = subprocess.Popen(
                [executable(), "-P", "-c", begin, str(theirs.fileno()), *paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(threads),
                process_group=0,  # a Ctrl-C at the terminal is the host's to answer
            )
        except (OSError, LearnerError) as error:
            ours.close()
            raise LearnerError(
                f"a process to learn in can't be started ({error}); see that {executable()!r} is a Python, or name "
                f"another one by multiprocessing.set_executable{remedy}"
            ) from error
        finally:
            theirs.close()
        ours.settimeout(SEND_S)
        self._end = ours
        self.channel = Channel(ours, kinds)
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
