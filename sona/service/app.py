"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sona.service.bearer import BearerToken
from sona.service.guard import LOCAL, ROUTE, Guard
from sona.service.hub import Hub
from sona.service.openapi import openapi
from sona.service.routes import ENDPOINTS, Endpoint, Handler


def make_app(
    hub: Hub, token: BearerToken | None, names: Sequence[str] = LOCAL, reviewer: BearerToken | None = None
) -> ASGIApp:
    """Everything that the service answers, for one open engine.

    Args:
        hub: of the engine.
        token: what clients must show on all paths but ``/healthz``; None lets anyone in.
        names: see :class:`Guard`.
        reviewer: see :class:`Guard`.
    """
    text = msgspec.json.encode(openapi(ENDPOINTS))

    async def describe(_: Hub, request: Request) -> Response:
        """This description."""
        return Response(text, media_type="application/json")

    described = Endpoint("GET", "/openapi.json", describe)
    router = Router([_route(hub, one) for one in (*ENDPOINTS, described)], redirect_slashes=False)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that it raises what it does not find, for the guard to tell
        await router(scope, receive, send)

    return Guard(dispatch, hub, token, names, reviewer)


def _route(hub: Hub, one: Endpoint) -> Route:
    return Route(one.path, _endpoint(hub, one.path, one.handler), methods=[one.method])


def _endpoint(hub: Hub, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        request.scope[ROUTE] = path
        found = await handler(hub, request)
        return (
            found
            if isinstance(found, Response)
            else Response(msgspec.json.encode(found), media_type="application/json")
        )

    return endpoint
