"""The candidates of a store that ``sona serve`` has open, over its HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import httpx
import msgspec

from sona.candidate import State
from sona.errors import ConfigError, ReviewError, SendError, SonaError, StateChangeError, UnknownIdError
from sona.reviewed import Page, Sent, Shown

TIMEOUT_S, SEND_TIMEOUT_S = 10.0, 330.0
MOST_BYTES = 256 * 1024 * 1024
T = TypeVar("T")

_ERRORS: dict[int, type[SonaError]] = {404: UnknownIdError, 409: StateChangeError, 502: SendError}


class _Changed(msgspec.Struct, frozen=True):
    candidates: list[Shown]


class _Nats(msgspec.Struct, frozen=True):
    nats: float


class _Detail(msgspec.Struct, frozen=True):
    message: str


class _Problem(msgspec.Struct, frozen=True):
    error: _Detail


class HttpReviewer:
    """A :class:`sona.reviewed.Reviewer` that asks a server. Redirects are refused, and proxies of the environment not
    used, so that the token goes to the server that was named.
    """

    def __init__(self, url: str, token: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        """``token`` is shown with each request; None: none is. ``transport`` is for tests.

        Raises:
            ConfigError: ``url`` is no http or https address, or holds a password.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise ConfigError("--url: it is no address; http://127.0.0.1:8000 is allowed") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise ConfigError("--url: an address such as http://127.0.0.1:8000, without a password, is allowed")
        self.name = url
        """What a person knows it by."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, transport=transport
        )

    def page(self) -> Page:
        """What there is now."""
        return self._ask("GET", "/candidates", Page)

    def get(self, id: int) -> Shown:
        """One candidate; UnknownIdError where there is none of this number."""
        return self._ask("GET", f"/candidates/{id}", Shown)

    def change(self, ids: Sequence[int], state: State, note: str = "") -> list[Shown]:
        """Bring all into a state, or none; StateChangeError, UnknownIdError, ReviewError."""
        body = {"ids": list(ids), "state": state, "note": note}
        return self._ask("POST", "/candidates/change", _Changed, body).candidates

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold; returns it within its bounds."""
        return self._ask("POST", "/candidates/threshold", _Nats, {"nats": nats}).nats

    def set_alternates(self, wanted: bool) -> None:
        """Switch alternates on or off."""
        self._ask("POST", "/candidates/alternates", dict[str, Any], {"wanted": wanted})

    def send(self) -> Sent:
        """Have the server send what is approved; SendError."""
        return self._ask("POST", "/candidates/send", Sent, timeout_s=SEND_TIMEOUT_S)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _ask(self, method: str, path: str, kind: type[T], body: object = None, timeout_s: float = TIMEOUT_S) -> T:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            answer = self._client.request(method, path, content=content, headers=headers, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ReviewError(
                f"{self.name}: {type(error).__name__}: {error}; see that 'sona serve' runs there"
            ) from None
        if answer.status_code == 401:
            raise ReviewError(f"{self.name} does not take the token; give its file with --token-file")
        if answer.status_code != 200:
            raise _ERRORS.get(answer.status_code, ReviewError)(f"{self.name}: {_message(answer)}")
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as error:
            raise ReviewError(f"{self.name}: its answer is none of sona's ({error}); see that --url is right") from None


def _message(answer: httpx.Response) -> str:
    try:
        return msgspec.json.decode(answer.content, type=_Problem).error.message
    except msgspec.DecodeError:
        return f"it answered {answer.status_code}"
