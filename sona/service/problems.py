"""What goes wrong with a request, in the one shape that a client sees: OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from sona.errors import (
    ClosedError,
    ConflictError,
    CycleError,
    InvalidInputError,
    ModelTooLargeError,
    SonaError,
    StateChangeError,
    StoreError,
    TrainingError,
    UnknownIdError,
    UnknownTokenError,
)

RETRY_S = 1
"""What ``Retry-After`` says."""


class Detail(msgspec.Struct, frozen=True, kw_only=True, rename={"kind": "type"}):
    """What went wrong."""

    message: str
    """For a person."""
    kind: str
    """``invalid_request_error``, ``rate_limit_error`` or ``server_error``."""
    param: str | None
    """The field that it is about."""
    code: str | None
    """For a program."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 and above."""

    error: Detail


class ProblemError(Exception):
    """Raised anywhere while a request is handled; becomes the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(
            ErrorBody(Detail(message=self.message, kind=self.kind, param=self.param, code=self.code))
        )

    @property
    def kind(self) -> str:
        """What clients sort errors by, next to the status."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def response(self) -> Response:
        """As the whole answer to a request."""
        return Response(self.body(), self.status, self.headers, "application/json")


def too_many(message: str, retry_s: float = RETRY_S) -> ProblemError:
    """429."""
    headers = {"retry-after": str(max(1, round(retry_s)))}
    return ProblemError(429, message, code="rate_limit_exceeded", headers=headers)


def unavailable(message: str, code: str) -> ProblemError:
    """503, to be tried again."""
    return ProblemError(503, message, code=code, headers={"retry-after": str(RETRY_S)})


def stopping() -> ProblemError:
    """503 of a server that was told to stop."""
    return unavailable("the server is stopping", "stopping")


def hidden() -> ProblemError:
    """500, which tells a client nothing of the inside; the log does, under the request's id."""
    return ProblemError(
        500, "something went wrong here; the server's log says what, under this request's id", code="internal"
    )


TOLD: tuple[tuple[type[SonaError], int, str], ...] = (
    (ConflictError, 409, "conflict"),
    (StateChangeError, 409, "conflict"),
    (UnknownTokenError, 422, "unknown_token"),
    (InvalidInputError, 400, "invalid_value"),
    (CycleError, 409, "conflict"),
    (ModelTooLargeError, 422, "model_too_large"),
    (TrainingError, 409, "training_refused"),
)
"""Errors whose messages name no path: they go through as they are, and say what is allowed. The first that fits."""


def problem_of(error: SonaError) -> ProblemError | None:
    """What a client may know of an error of the engine; None: nothing but that there was one."""
    for kind, status, code in TOLD:
        if isinstance(error, kind):
            return ProblemError(status, str(error), code=code)
    if isinstance(error, UnknownIdError):
        return ProblemError(404, "no such id", code="not_found")
    if isinstance(error, ClosedError):
        return stopping()
    if isinstance(error, StoreError):
        return unavailable("nothing can be stored at the moment; try again", "store_unavailable")
    return None
