"""Lives that can be killed by the hundred.

Python takes longer to start than a life lasts here. So one process imports what they need, starts no thread, opens no
store, and forks each of them: ``python -m tests.crash.nursery MODULE``, where a life is a function of the module.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Self

from tests.crash.ledger import Teller
from tests.processes import ROOT


class Life:
    """One that was born, and what it told."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def go(self) -> None:
        """Let one that was held begin."""
        self._nursery.write("go")

    def wait_for(self, word: str) -> None:
        """Listen until it has told a line that begins with ``word``."""
        if word not in self._nursery.words:
            self._nursery.listen(until=lambda line: line.split(" ", 1)[0] == word, timeout_s=60.0)

    def kill(self, after_s: float, *, once: str | None = None) -> bool:
        """Kill it that long after now, or after it has told a line that begins with ``once``. Returns whether it was
        still alive.
        """
        if once is not None:
            self.wait_for(once)
        self._nursery.listen(timeout_s=after_s)
        if self._nursery.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)  # the pid is nobody else's until the next is born
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for its end: 0, or minus the signal that ended it."""
        code = self._nursery.wait()
        if code > 0:
            raise AssertionError(f"a life failed by itself with {code}; its traceback stands above")
        return code


class Nursery:
    """The process that forks; one life at a time."""

    def __init__(self, module: str = "tests.crash.lives") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.crash.nursery", module],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._rest = b""
        self._tell: Callable[[str], None] = print
        self.words: set[str] = set()
        """With which the lines that the life has told so far began; the first may come before its pid does."""
        self.exit_code: int | None = None
        """Of the life; None while it lives."""

    def bear(self, life: str, *args: object, tell: Callable[[str], None], held: bool = False) -> Life:
        """Begin a life; each line that it tells is handed to ``tell``. One that is held waits for :meth:`Life.go`."""
        self._tell, self.exit_code, self._pid = tell, None, 0
        self.words.clear()
        self.write(json.dumps([life, held, *args]))
        self.listen(until=lambda _: self._pid > 0, timeout_s=60.0)
        return Life(self, self._pid)

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def listen(self, *, timeout_s: float, until: Callable[[str], bool] = lambda _: False) -> None:
        """Hand lines on until one is as wanted, the life has ended, or the time is over."""
        assert self._process.stdout is not None
        stdout, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while self.exit_code is None:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                if self._hears(line.decode(), until):
                    return
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                return
            if not (data := os.read(stdout, 1 << 16)):
                raise AssertionError("the nursery has died")
            self._rest += data

    def _hears(self, line: str, until: Callable[[str], bool]) -> bool:
        """Whether to stop listening."""
        if line.startswith("pid "):
            self._pid = int(line.split()[1])
        elif line.startswith("dead "):
            self.exit_code = int(line.split()[1])
            return True
        elif line:
            self.words.add(line.split(" ", 1)[0])
            self._tell(line)
        return until(line)

    def wait(self) -> int:
        """The exit code of the life."""
        self.listen(timeout_s=120.0)
        if self.exit_code is None:
            raise AssertionError("a life did not end in 120 s")
        return self.exit_code

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _live(module: ModuleType, life: str, held: bool, *args: object) -> None:
    """In the child; it ends here, and waits for no thread."""
    code = 1
    try:
        if held:
            os.read(0, 3)
        getattr(module, life)(Teller(1), *args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _exit_code(pid: int) -> int:
    """Wait for the end of a child, and leave it a zombie: a kill that comes too late must hit nobody else."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _main() -> None:
    logging.disable()  # what a life would tell a person would drown what it tells the suite
    module = importlib.import_module(sys.argv[1])
    with open(0, "rb", buffering=0) as lines:  # nothing is read ahead: the next line may be the child's
        pid = 0
        for line in lines:
            if pid:
                os.waitpid(pid, 0)
            if (pid := os.fork()) == 0:
                _live(module, *json.loads(line))
            os.write(1, f"pid {pid}\n".encode())
            os.write(1, f"\ndead {_exit_code(pid)}\n".encode())


if __name__ == "__main__":
    _main()
