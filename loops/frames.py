"""Messages between two processes over a socket, in frames whose size is bounded.

A frame is a header and a payload: two bytes that mark it, the kind of the message, a flag that says whether more of the
message follows, and the payload's length (little-endian uint32). The payloads of a message, put together, are the
MessagePack of one record; nothing is unpickled. Whatever is no such frame is a LearnerError; an end in the middle of
one is the sender's death.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

import msgspec

from sona.errors import LearnerError
from sona.types import Record

HEADER = struct.Struct("<2sBBI")
MARK = b"sL"
MOST_FRAME = 1 << 20
"""Bytes of a frame's payload."""
MOST_MESSAGE = 1 << 30
"""... and of a message. The claims of 20,000 trajectories of 4096 tokens take 330 MB."""
WHOLE, MORE = 0, 1


class EndOfMessagesError(Exception):
    """The other side has closed the socket, or died; in the middle of a message, where it says so."""


class Channel:
    """One end of the socket. Any thread sends; one receives."""

    def __init__(self, end: socket.socket, kinds: Sequence[type[Record]]) -> None:
        """``kinds``: every message that may cross, in the same order on both sides."""
        self._socket, self._kinds = end, kinds
        self._numbers = {kind: number for number, kind in enumerate(kinds)}
        self._sending = threading.Lock()
        self._received = bytearray()
        self._parts: list[bytes] = []  # of the message under way, whose frames are of one kind
        self._kind, self._size = 0, 0
        self._poll = select.poll()  # unlike select(), it takes any descriptor
        self._poll.register(end, select.POLLIN)

    def send(self, message: Record) -> None:
        """Send one message; waits while the other side does not read.

        Raises:
            LearnerError: the message is beyond the bound.
            OSError: nobody is there to read it.
        """
        payload = msgspec.msgpack.encode(message)
        if len(payload) > MOST_MESSAGE:
            raise LearnerError(
                f"a message {type(message).__name__} of {len(payload)} bytes; {MOST_MESSAGE} are allowed: "
                "lower cycle.max_trajectories"
            )
        with self._sending:
            for frame in frames(self._numbers[type(message)], payload):
                self._socket.sendall(frame)

    def receive(self, timeout_s: float | None = None) -> Record | None:
        """The next message; None where none has come in time.

        Raises:
            EndOfMessagesError: nor will there be one.
            LearnerError: what came is no message.
        """
        while (message := self._next()) is None:
            if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            try:
                data = self._socket.recv(MOST_FRAME)
            except ConnectionError:  # it was killed with something unread
                data = b""
            if not data:
                torn = self._received or self._parts
                raise EndOfMessagesError("in the middle of a message" if torn else "")
            self._received += data
        return message

    def _next(self) -> Record | None:
        """The first message of what has come; None where it is not whole yet."""
        while len(self._received) >= HEADER.size:
            mark, kind, flag, length = HEADER.unpack_from(self._received)
            if mark != MARK or kind >= len(self._kinds) or flag > MORE or length > MOST_FRAME:
                raise LearnerError(f"no frame of sona's: {bytes(self._received[:16])!r}")
            if kind != self._kind and self._parts:
                raise LearnerError(f"a frame of kind {kind} in a message of kind {self._kind}")
            if self._size + length > MOST_MESSAGE:
                raise LearnerError(f"a message of over {MOST_MESSAGE} bytes")
            end = HEADER.size + length
            if len(self._received) < end:
                return None
            self._parts.append(bytes(self._received[HEADER.size : end]))
            self._kind, self._size = kind, self._size + length
            del self._received[:end]
            if flag == WHOLE:
                payload, self._parts, self._size = b"".join(self._parts), [], 0
                return self._decoded(kind, payload)
        return None

    def _decoded(self, number: int, payload: bytes) -> Record:
        kind = self._kinds[number]
        try:
            return msgspec.msgpack.decode(payload, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise LearnerError(f"no {kind.__name__}: {error}") from None

    def close(self) -> None:
        """Let go of the socket; the other side reads its end."""
        self._socket.close()


def frames(kind: int, payload: bytes) -> Iterator[bytes]:
    """The frames of one message."""
    for begin in range(0, max(len(payload), 1), MOST_FRAME):
        part = payload[begin : begin + MOST_FRAME]
        flag = MORE if begin + MOST_FRAME < len(payload) else WHOLE
        yield HEADER.pack(MARK, kind, flag, len(part)) + part
