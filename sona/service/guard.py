"""What every request passes first, and every response last."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sona.errors import SonaError
from sona.service.bearer import BearerToken, password_of
from sona.service.body import ClientGoneError
from sona.service.hub import Hub
from sona.service.problems import ProblemError, hidden, problem_of, stopping
from sona.types import new_id

log = logging.getLogger("sona.service")
ROUTE = "sona.route"
"""The key in the scope under which an endpoint says what it is."""
OPEN = "/healthz"
NO_TOKEN = "a bearer token is needed: Authorization: Bearer ..., with the token of the server's token file"
WRONG_TOKEN = (
    "this is not the server's token: show the one of its token file (service.token in its store, unless it was given "
    "another with --token-file) as Authorization: Bearer ..."
)
CANDIDATES = "/candidates"
"""What lies below it changes candidates, but for what is only read."""
PAGE = "/review"
"""A browser can't be told to show a bearer token, so it may show the token as a password (RFC 7617): here alone, since
a browser would then show it for any page that asks in its user's name."""
SINGLE = (b"authorization", b"content-type", b"content-length", b"host", b"origin", b"x-request-id", b"x-sona-source")
"""Headers of which two would leave open which counts."""
LOCAL = ("localhost", "127.0.0.1", "::1")
CLIENT_GONE = 499
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Guard:
    """Gives each request an id, lets in who may come in, and turns whatever goes wrong into one shape.

    Args:
        app: what it guards.
        hub: what is counted in.
        token: what clients show; None lets anyone in.
        reviewer: what alone lets a client change candidates, and read them; None: whoever may ask may do that too.
        names: hosts that a request may be for where there is no token: a web page that was made to believe that its
            own name is this machine's (DNS rebinding) asks for another. Empty: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        hub: Hub,
        token: BearerToken | None,
        names: Sequence[str] = LOCAL,
        reviewer: BearerToken | None = None,
    ) -> None:
        self._app, self._hub, self._token, self._reviewer = app, hub, token, reviewer
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; what is none of HTTP is refused."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        await _Passage(self._hub, scope, send).run(self, receive)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, and have it answered. Raises ProblemError, and whatever else goes wrong."""
        self._admit(scope)
        if scope["path"] == OPEN:
            await self._app(scope, receive, send)
            return
        with self._hub.requests.one():
            await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in SINGLE:
                raise ProblemError(400, f"{name.decode()}: given twice", code="duplicate_header")
            headers.setdefault(name, value)
        if scope["path"] == OPEN:
            return
        self._hub.rate.spend((scope.get("client") or ("",))[0])
        if self._token is None:
            self._check_where_from(headers)
        self._check_token(scope["method"], scope["path"], headers.get(b"authorization"))
        if self._hub.stopping.is_set():
            raise stopping()

    def _check_token(self, method: str, path: str, shown: bytes | None) -> None:
        is_page = path == PAGE
        is_review = is_page or path == CANDIDATES or path.startswith(f"{CANDIDATES}/")
        is_change = is_review and method not in ("GET", "HEAD")
        client = self._token is not None and _shows(self._token, shown, is_page)
        reviewer = self._reviewer is not None and is_review and _shows(self._reviewer, shown, is_page)
        if self._reviewer is not None and is_change and client and not reviewer:
            raise ProblemError(
                403, "changing candidates takes the reviewer's token, not the server's", code="no_reviewer"
            )
        if client or reviewer or (self._token is None and (self._reviewer is None or not (is_change or is_page))):
            return
        raise ProblemError(
            401,
            NO_TOKEN if not shown else WRONG_TOKEN,
            code="invalid_api_key",
            headers={"www-authenticate": 'Basic realm="sona", charset="UTF-8"' if is_page else "Bearer"},
        )

    def _check_where_from(self, headers: Mapping[bytes, bytes]) -> None:
        """Without a token, a page that a browser shows must not ask in its user's name."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self._names and _hostname(f"//{host}") not in self._names:
            raise ProblemError(421, "this server does not go by that name; see --host", code="misdirected_request")
        origin = headers.get(b"origin")
        if origin is not None and _netloc(origin.decode("latin-1")) != host:
            raise ProblemError(403, "web pages of other origins are not let in", code="forbidden_origin")


def _shows(token: BearerToken, shown: bytes | None, as_password: bool) -> bool:
    """Whether a header shows the token; as a password only where a browser may."""
    return token.matches(shown) or (as_password and token.matches(b"Bearer " + password_of(shown)))


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _netloc(url: str) -> str | None:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


class _Passage:
    """One request on its way."""

    def __init__(self, hub: Hub, scope: Scope, send: Send) -> None:
        self._hub, self._scope, self._out = hub, scope, send
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self._id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id()
        self._status = 0

    async def run(self, guard: Guard, receive: Receive) -> None:
        began = time.monotonic()
        self._hub.metrics.in_progress.inc()
        try:
            await self._handle(guard, receive)
        finally:
            self._hub.metrics.in_progress.dec()
            method = self._scope["method"] if self._scope.get(ROUTE) else "any"  # a client can make up methods
            route = self._scope.get(ROUTE, "unmatched")
            status = str(self._status or CLIENT_GONE)
            self._hub.metrics.requests.labels(route, method, status).observe(time.monotonic() - began)

    async def _handle(self, guard: Guard, receive: Receive) -> None:
        try:
            await guard.handle(self._scope, receive, self._send)
        except ClientGoneError:
            return
        except Exception as error:
            problem = self._problem(error)
            if self._status:
                log.error("request %s failed after its response had begun", self._id, exc_info=error)
                return
            await problem.response()(self._scope, receive, self._send)

    def _problem(self, error: Exception) -> ProblemError:
        if isinstance(error, ProblemError):
            return error
        if isinstance(error, HTTPException):
            return _of_routing(error)
        found = problem_of(error) if isinstance(error, SonaError) else None
        if found is None or found.status >= 500:
            log.error("request %s failed", self._id, exc_info=error)
        return found or hidden()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            headers["x-content-type-options"] = "nosniff"
        await self._out(message)


def _of_routing(error: HTTPException) -> ProblemError:
    codes = {
        404: ("no such path; GET /openapi.json lists them", "not_found"),
        405: ("method not allowed", "method_not_allowed"),
    }
    message, code = codes.get(error.status_code, ("refused", "refused"))
    return ProblemError(error.status_code, message, code=code, headers=error.headers)
