"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from collections.abc import Mapping

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
    """Writes one stream.

    Raises:
        ReaderStalledError: the reader has taken nothing for ``timeout_s`` (None: it may take its time).
    """

    def __init__(self, send: Send, timeout_s: float | None = None) -> None:
        self._send, self._timeout_s = send, timeout_s
        self.begun = False

    async def begin(self, headers: Mapping[str, str] | None = None) -> None:
        """Status and headers."""
        self.begun = True
        given = [(name.encode(), value.encode()) for name, value in {**HEADERS, **(headers or {})}.items()]
        await self._put({"type": "http.response.start", "status": 200, "headers": given})

    async def data(self, value: object, event: str | None = None) -> None:
        """One event, its data a record as JSON or a text."""
        text = value.encode() if isinstance(value, str) else msgspec.json.encode(value)  # JSON holds no line breaks
        name = b"" if event is None else b"event: " + event.encode() + b"\n"
        await self._body(name + b"data: " + text + b"\n\n")

    async def comment(self, text: str) -> None:
        """What readers skip."""
        await self._body(b": " + text.encode() + b"\n\n")

    async def end(self) -> None:
        """Nothing more."""
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, body: bytes) -> None:
        await self._put({"type": "http.response.body", "body": body, "more_body": True})

    async def _put(self, message: dict[str, object]) -> None:
        with anyio.move_on_after(self._timeout_s) as patience:
            await self._send(message)
        if patience.cancelled_caught:
            raise ReaderStalledError
