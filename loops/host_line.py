"""A spawned process and its host, as the process has them: what the host says, what it is told, giving way to it."""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sona.errors import StoreLockedError
from sona.loops.frames import Channel, EndOfMessagesError
from sona.loops.messages import Logged, Stop
from sona.storage.lock import WriterLock
from sona.types import Record

L = TypeVar("L", bound=WriterLock)

LOOK_S = 2.0
"""So often it looks whether its host still lives, should the end of the socket not tell."""
PREDECESSOR_S = 10.0
"""A process whose host was killed has so long to end."""
FIRST_TO_GO = 500
"""Added to its score with the kernel that is out of memory: the host is to go on."""


class HostLine:
    """What the host says, heard in a thread of its own, and what it is told. The end of the socket ends the process."""

    def __init__(self, descriptor: int, kinds: Sequence[type[Record]]) -> None:
        """``descriptor``: of the socket; ``kinds``: of the messages that may cross."""
        faulthandler.enable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the host's to answer
        self._channel, self._host = Channel(socket.socket(fileno=descriptor), kinds), os.getppid()
        self._inbox = queue.SimpleQueue[Record]()
        self.stopped = threading.Event()
        """Whether what is under way is to end."""
        threading.Thread(target=self._hear, name="sona-host", daemon=True).start()

    def _hear(self) -> None:
        try:
            while True:
                message = self._channel.receive(LOOK_S)
                if isinstance(message, Stop):
                    self.stopped.set()
                elif message is not None:
                    self._inbox.put(message)
                elif os.getppid() != self._host:
                    os._exit(0)
        except EndOfMessagesError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def next(self, timeout_s: float | None) -> Record | None:
        """The next message but a Stop; None where none came in time."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def tell(self, message: Record) -> None:
        """Tell the host; nothing comes back."""
        try:
            self._channel.send(message)
        except OSError:  # it has died
            os._exit(0)

    def log_here(self) -> None:
        """From now on what is logged here is logged there."""
        log = logging.getLogger("sona")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(_HostLog(self))


class _HostLog(logging.Handler):
    """What is logged here, logged there."""

    def __init__(self, line: HostLine) -> None:
        super().__init__(logging.INFO)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.tell(Logged(logger=record.name, level=record.levelno, text=self.format(record)))


def give_way(nice: int) -> None:
    """To the host, in processor time and in memory."""
    os.nice(nice)
    with suppress(OSError):  # there is no such file, or it may not be written
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO), encoding="ascii")


def locked(take: Callable[[], L], patience_s: float) -> L:
    """The lock, once the process whose host was killed has ended; StoreLockedError where it does not in time."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return take()
        except StoreLockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
