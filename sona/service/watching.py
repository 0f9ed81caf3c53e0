"""``/events``, ``/metrics`` and ``/healthz``: for whoever looks after the server."""

from __future__ import annotations

from contextlib import closing
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import sona
from sona.event_stream import EventStream
from sona.events import Event
from sona.service.beside import beside
from sona.service.hub import Hub
from sona.service.metrics import CONTENT_TYPE
from sona.service.problems import stopping
from sona.service.sse import EventWriter


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is."""

    status: Literal["ok", "degraded"]
    """``degraded``: it answers, and nothing can be stored just now."""
    storing: bool
    version: str
    """The version in force."""
    sona: str
    """The version of the software."""


async def health(hub: Hub, request: Request) -> Health:
    """Open to anyone."""
    if hub.stopping.is_set():
        raise stopping()
    storing = hub.engine.degraded is None
    return Health(
        status="ok" if storing else "degraded",
        storing=storing,
        version=hub.engine.model.version,
        sona=sona.__version__,
    )


async def metrics(hub: Hub, request: Request) -> Response:
    """As Prometheus reads them."""
    text = await anyio.to_thread.run_sync(hub.metrics.text)
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def events(hub: Hub, request: Request) -> Response:
    """What happens from now on, without texts."""
    return EventFeed(hub)


class EventFeed(Response):
    """The engine's events as they happen.

    A reader that is slow misses the oldest, and is told how many by an event ``missed``.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell, until the reader hangs up or the server stops."""
        with (
            self._hub.listening.one(),
            closing(self._hub.engine.events()) as stream,
            anyio.CancelScope() as reading,
        ):

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                reading.cancel()

            async def until_stopped() -> None:
                await self._hub.stopping.wait()
                stream.close()
                await anyio.sleep(self._hub.limits.shutdown_s)  # for one who is slow to take what there is
                reading.cancel()

            async with beside(until_gone, until_stopped):
                await self._tell(EventWriter(send), stream)

    async def _tell(self, writer: EventWriter, stream: EventStream) -> None:
        await writer.begin()
        await writer.comment("events of sona")  # so that a reader sees at once that it is connected
        while True:
            event: Event | None = None
            try:
                with anyio.move_on_after(self._hub.limits.heartbeat_s):
                    event = await anext(stream)
            except StopAsyncIteration:
                break
            if event is None:
                await writer.comment("still here")
            else:
                await writer.data(event, event=str(type(event).__struct_config__.tag))
        await writer.end()
