"""JSON over HTTP, to a server that a setting names: bounded in time, in size and in how often it is tried."""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import httpx
import msgspec

from sona.checks import shown
from sona.errors import ConfigError, RemoteError, RemoteRefusedError, RemoteUnclearError, UnreachableError

log = logging.getLogger("sona.http")

TRIES = 4
BACKOFF_S = 0.25  # doubled with each try, and moved by chance, so that many clients don't come back at once
MOST_WAIT_S = 60.0
"""A server that asks to wait longer (``Retry-After``) is taken for one that refuses."""
CONNECT_S = 5.0
MAX_BYTES = 64 * 1024 * 1024
SAID_BYTES = 64 * 1024  # of what comes with an error status so much is read
SAID = 500  # characters of it that are told

T = TypeVar("T")


class Secret:
    """A token that goes into a header and nowhere else: its repr and its text don't show it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(...)"

    def header(self) -> dict[str, str]:
        """As a request shows it."""
        return {"Authorization": f"Bearer {self._text}"}


def read_secret(env: str = "", file: str = "") -> Secret | None:
    """The token in the environment variable ``env``, or else in ``file``; None where neither is named.

    Raises:
        ConfigError: it is not there, or is no single line of printable ASCII. It says where, and never what.
    """
    if env:
        where, text = f"environment variable {env}", os.environ.get(env, "")
    elif file:
        where = f"token file {file!r}"
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{where} can't be read: {why}") from None
    else:
        return None
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{where} holds no token; one line of printable ASCII characters without spaces is allowed")
    return Secret(text)


def check_url(url: str) -> str:
    """``url`` without a slash at its end.

    Raises:
        ConfigError: it is no plain http or https address. What may be a password in it is not told.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise ConfigError(f"url: {shown(url)} is none; http://host:port is allowed") from None
    if parsed.userinfo or "@" in url:
        raise ConfigError("url: it holds a name or a password; give a token by an environment variable or a file")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(f"url: {shown(url)}; http://host:port or https://host:port is allowed, perhaps with a path")
    return url.rstrip("/")


def is_on_this_machine(url: str) -> bool:
    """Whether ``url`` names this machine by its loopback; what names it otherwise, or is no address, does not."""
    try:
        host = httpx.URL(url).host  # as the client itself takes it apart
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


class HttpClient:
    """Asks one server; safe to call from several threads.

    What can't be reached, and what answers 5xx or 429, is asked again after a while, a few times; a server that is slow
    is not: it has the request already. Redirects are refused, proxies and netrc files of the environment not used, so
    that a token goes to the server that was named and to no other.
    """

    def __init__(
        self,
        url: str,
        secret: Secret | None = None,
        *,
        timeout_s: float = 30.0,
        tries: int = TRIES,
        backoff_s: float = BACKOFF_S,
        max_bytes: int = MAX_BYTES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: as :func:`check_url` takes it; what is asked is a path below it.
            secret: shown with each request.
            timeout_s: for one try, from its begin to the end of its answer.
            tries: how often a request is sent at most, from 1.
            backoff_s: before the second; twice as long before each that follows.
            max_bytes: a longer answer is not taken.
            transport: for tests; None: a socket.
        """
        self.url = check_url(url)
        self._timeout_s, self._tries, self._backoff_s, self._max_bytes = timeout_s, tries, backoff_s, max_bytes
        self._closed = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._client = httpx.Client(
            headers=secret.header() if secret else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
            verify=ssl.create_default_context(),  # the system's certificates, or those that SSL_CERT_FILE names
        )

    def __repr__(self) -> str:
        return f"HttpClient({self.url!r})"

    def get(self, path: str) -> bytes:
        """What the server answers to a GET of ``path``, which begins with a slash.

        Raises:
            UnreachableError: no answer; or the client was closed.
            RemoteRefusedError: another status than 2xx.
            RemoteUnclearError: the answer is too long.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> bytes:
        """... to a POST of ``body`` as JSON. Raises as :meth:`get`; where the connection broke, the server may have
        done what it was asked, once or several times.
        """
        return self._ask("POST", path, msgspec.json.encode(body))

    def get_json(self, path: str, kind: type[T]) -> T:
        """As :meth:`get`, decoded as JSON into ``kind``; RemoteUnclearError too where it is none."""
        return self._decoded(path, self.get(path), kind)

    def post_json(self, path: str, body: object, kind: type[T]) -> T:
        """As :meth:`post`, decoded as JSON into ``kind``; RemoteUnclearError too where it is none."""
        return self._decoded(path, self.post(path, body), kind)

    def close(self) -> None:
        """End it, and with it what is under way in other threads: that raises UnreachableError at once."""
        self._closed.set()
        for one in list(self._sockets):
            _wake(one)
        self._client.close()

    def _decoded(self, path: str, raw: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RemoteUnclearError(
                f"{self.url}{path} answered what can't be understood ({error}); see that the kind of the server and "
                "its version are right"
            ) from None

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        for attempt in range(1, self._tries + 1):
            try:
                return self._send(method, path, body)
            except RemoteError as error:
                wait_s = self._wait_s(error, attempt)
                if wait_s is None:
                    raise
                log.debug("%s; asked again in %.1f s", error, wait_s)
                if self._closed.wait(wait_s):
                    raise self._unreachable(path, "the client was closed") from None
        raise AssertionError("unreachable: the last try raises")

    def _wait_s(self, error: RemoteError, attempt: int) -> float | None:
        """How long to wait before the next try; None: there is none."""
        if attempt >= self._tries or self._closed.is_set() or not error.again:
            return None
        asked = error.retry_after_s if isinstance(error, RemoteRefusedError) else None
        if asked is not None:
            return asked if asked <= MOST_WAIT_S else None
        return float(self._backoff_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))

    def _send(self, method: str, path: str, body: bytes | None) -> bytes:
        deadline_s = time.monotonic() + self._timeout_s
        with self._told(path):
            request = self._client.build_request(
                method,
                self.url + path,
                content=body,
                headers={"Content-Type": "application/json"} if body is not None else {},
                extensions={"trace": self._remember},
            )
            response = self._client.send(request, stream=True)
            try:
                good = response.is_success
                raw = self._read(path, response, deadline_s, self._max_bytes if good else SAID_BYTES, cut=not good)
            finally:
                response.close()
        if good:
            return raw
        raise RemoteRefusedError(
            f"{self.url}{path}: refused with status {response.status_code}{_words(response, raw)}",
            status=response.status_code,
            said=_said(raw),
            retry_after_s=_retry_after_s(response.headers.get("retry-after")),
        )

    def _read(self, path: str, response: httpx.Response, deadline_s: float, limit: int, *, cut: bool) -> bytes:
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > limit:
                if cut:
                    break
                raise RemoteUnclearError(f"{self.url}{path} answered more than {limit} bytes, which is not taken")
            if time.monotonic() > deadline_s:
                raise httpx.ReadTimeout("its answer did not end", request=response.request)
        return b"".join(parts)[:limit]

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """What httpx raises as one of our errors."""
        try:
            if self._closed.is_set():
                raise self._unreachable(path, "the client was closed")
            yield
        except httpx.TimeoutException as error:
            waits_to_connect = isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout))
            why = f"no whole answer within {self._timeout_s:g} s"
            raise self._unreachable(path, why, again=waits_to_connect, was_connected=not waits_to_connect) from None
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and not self._closed.is_set():  # httpx's, once it is closed
                raise
            was_connected = not isinstance(error, (httpx.ConnectError, httpx.InvalidURL))
            told = str(error) or type(error).__name__
            raise self._unreachable(path, told, again=True, was_connected=was_connected) from None

    def _unreachable(self, path: str, why: str, *, again: bool = False, was_connected: bool = True) -> UnreachableError:
        if self._closed.is_set():
            why, again = "the client was closed", False
        error = UnreachableError(f"{self.url}{path} gave no answer: {why}")
        error.again, error.was_connected = again, was_connected
        return error

    def _remember(self, event: str, info: dict[str, Any]) -> None:
        """A trace of httpx: the sockets, so that :meth:`close` can wake who waits on them."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            made = info["return_value"].get_extra_info("socket")
            if made is not None:
                self._sockets.add(made)
                if self._closed.is_set():  # by who could not know of it
                    _wake(made)


def _wake(one: socket.socket) -> None:
    """Who waits for its bytes gets an end of file; closing it would leave him waiting."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _retry_after_s(header: str | None) -> float | None:
    """``Retry-After`` in seconds, which may be a number or a date; None where there is none that can be read."""
    if header is None:
        return None
    try:
        return max(0.0, float(int(header)))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _words(response: httpx.Response, raw: bytes) -> str:
    if response.is_redirect:
        return ", a redirect, which is not followed; name the server itself"
    said = _said(raw)
    return f": {said}" if said else ""


def _said(raw: bytes) -> str:
    """The server's own words, from the shapes that OpenAI, vLLM, SGLang and FastAPI give an error."""
    try:
        told = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        told = raw.decode("utf-8", "replace")
    for key in ("error", "error_message", "message", "detail"):
        if isinstance(told, dict) and told.get(key):
            told = told[key]
    text = told if isinstance(told, str) else msgspec.json.encode(told).decode()
    return " ".join(text.split())[:SAID]
