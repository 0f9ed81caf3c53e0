"""The candidates of a store that ``sona serve`` has open, over its HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import msgspec
from httpx import BaseTransport as Transport

from sona.candidate import State
from sona.errors import (
    ConfigError,
    RemoteRefusedError,
    RemoteUnclearError,
    ReviewError,
    SendError,
    SonaError,
    StateChangeError,
    UnknownIdError,
    UnreachableError,
)
from sona.http_client import HttpClient, Secret
from sona.reviewed import Page, Sent, Shown

TIMEOUT_S, SEND_TIMEOUT_S = 10.0, 630.0  # what was lost may be sent again first, and each may take 300
MAX_BYTES = 256 * 1024 * 1024
"""Of an answer: a page of texts, however long its contexts are."""
T = TypeVar("T")

_ERRORS: dict[int, Callable[[str], SonaError]] = {
    404: UnknownIdError,
    409: StateChangeError,
    502: SendError,
    504: partial(SendError, outcome="unknown"),
}


class _Changed(msgspec.Struct, frozen=True):
    candidates: list[Shown]


class _Nats(msgspec.Struct, frozen=True):
    nats: float


class HttpReviewer:
    """A :class:`sona.reviewed.Reviewer` that asks a server. Redirects are refused, and proxies of the environment not
    used, so that the token goes to the server that was named; an answer is bounded in time and size.
    """

    def __init__(
        self, url: str, secret: Secret | None = None, *, max_bytes: int = MAX_BYTES, transport: Transport | None = None
    ) -> None:
        """
        Args:
            url: as :func:`sona.http_client.check_url` takes it.
            secret: shown with each request; None: none is.
            max_bytes: a longer answer is not taken.
            transport: for tests.

        Raises:
            ConfigError: ``url`` is no http or https address, or holds a password.
        """
        self.name = url
        """What a person knows it by."""
        self._is_known = secret is not None
        self._ask_within = partial(
            HttpClient, url, secret, tries=1, max_bytes=max_bytes, transport=transport
        )  # once: a person sees what it says, and asks again
        try:
            self._client = self._ask_within(timeout_s=TIMEOUT_S)
        except ConfigError as error:
            raise ConfigError(f"--{error}") from None  # it begins with "url:"

    def page(self) -> Page:
        """What there is now."""
        return self._get("/candidates", Page)

    def get(self, id: int) -> Shown:
        """One candidate; UnknownIdError where there is none of this number."""
        return self._get(f"/candidates/{id}", Shown)

    def change(self, ids: Sequence[int], state: State, note: str = "") -> list[Shown]:
        """Bring all into a state, or none; StateChangeError, UnknownIdError, ReviewError."""
        body = {"ids": list(ids), "state": state, "note": note}
        return self._post("/candidates/change", _Changed, body).candidates

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold; returns it within its bounds."""
        return self._post("/candidates/threshold", _Nats, {"nats": nats}).nats

    def set_alternates(self, wanted: bool) -> None:
        """Switch alternates on or off."""
        self._post("/candidates/alternates", dict[str, Any], {"wanted": wanted})

    def send(self) -> Sent:
        """Have the server send what is approved; SendError."""
        with closing(self._ask_within(timeout_s=SEND_TIMEOUT_S)) as client:
            return self._told(lambda: client.post_json("/candidates/send", None, Sent))

    def confirm(self, ids: Sequence[int], *, trained: bool, note: str = "") -> list[Shown]:
        """Say what came of sent ones; StateChangeError, UnknownIdError, ReviewError."""
        body = {"ids": list(ids), "trained": trained, "note": note}
        return self._post("/candidates/confirm", _Changed, body).candidates

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _get(self, path: str, kind: type[T]) -> T:
        return self._told(lambda: self._client.get_json(path, kind))

    def _post(self, path: str, kind: type[T], body: object) -> T:
        return self._told(lambda: self._client.post_json(path, body, kind))

    def _told(self, ask: Callable[[], T]) -> T:
        """What comes of a request, and its errors as a person knows them."""
        try:
            return ask()
        except RemoteRefusedError as error:
            if error.status == 401:
                raise ReviewError(self._unknown()) from None
            said = error.said or f"it answered {error.status}"
            raise _ERRORS.get(error.status, ReviewError)(f"{self.name}: {said}") from None
        except RemoteUnclearError as error:
            raise ReviewError(f"{self.name}: its answer is none of sona's ({error}); see that --url is right") from None
        except UnreachableError as error:
            raise ReviewError(f"{error}; see that 'sona serve' runs there") from None

    def _unknown(self) -> str:
        if self._is_known:
            return f"{self.name} does not take the token; give its file with --token-file"
        return (
            f"{self.name} asks for a token; give its file with --token-file (the store's own is shown to a server on "
            "this machine alone)"
        )
