"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import anyio
import msgspec
from starlette.types import Send

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would hold it all back
}


class ReaderStalledError(Exception):
    """A reader takes nothing any more."""


class EventWriter:
    """Writes one stream, within a ``with`` block.

    Raises:
        ReaderStalledError: at the end of the block, which is cancelled, as the reader has taken nothing for
            ``timeout_s`` (by default it may take its time).
    """

    def __init__(self, send: Send, timeout_s: float = math.inf) -> None:
        self._send, self._timeout_s = send, timeout_s
        self._held = bytearray()
        self._patience = anyio.CancelScope()
        self.begun = False

    def __enter__(self) -> Self:
        self._patience.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        caught = self._patience.__exit__(kind, error, trace)
        if self._patience.cancelled_caught:
            raise ReaderStalledError
        return caught

    async def begin(self, headers: Mapping[str, str] | None = None) -> None:
        """Status and headers."""
        self.begun = True
        given = [(name.encode(), value.encode()) for name, value in {**HEADERS, **(headers or {})}.items()]
        await self._put({"type": "http.response.start", "status": 200, "headers": given})

    def hold(self, value: object, event: str | None = None) -> None:
        """One event, its data a record as JSON or a text; written with what follows."""
        text = value.encode() if isinstance(value, str) else msgspec.json.encode(value)  # JSON holds no line breaks
        if event is not None:
            self._held += b"event: " + event.encode() + b"\n"
        self._held += b"data: " + text + b"\n\n"

    async def data(self, value: object, event: str | None = None) -> None:
        """One event, as for :meth:`hold`, after those that are held."""
        self.hold(value, event)
        await self.flush()

    async def comment(self, text: str) -> None:
        """What readers skip."""
        self._held += b": " + text.encode() + b"\n\n"
        await self.flush()

    async def flush(self) -> None:
        """Write what is held."""
        if self._held:
            await self._body(more=True)

    async def end(self) -> None:
        """Nothing more than what is held."""
        await self._body(more=False)

    async def _body(self, *, more: bool) -> None:
        body = bytes(self._held)
        self._held.clear()
        await self._put({"type": "http.response.body", "body": body, "more_body": more})

    async def _put(self, message: dict[str, object]) -> None:
        # One scope for the stream, its deadline set for each message: one for each costs more than the message.
        self._patience.deadline = anyio.current_time() + self._timeout_s
        await self._send(message)
        self._patience.deadline = math.inf
