"""Bodies of requests: read within bounds, and turned into records that are checked."""

from __future__ import annotations

from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import Request
from starlette.types import Receive

from sona.config import ServiceConfig
from sona.service.problems import ProblemError
from sona.wording import wrong

T = TypeVar("T")
PASS_OVER, PASS_OVER_S = 8, 2.0
"""Of a body that is too large so many times the limit are read and forgotten, for at most so many seconds."""
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


class ClientGoneError(Exception):
    """Who asked has hung up."""


async def read_body(request: Request, limits: ServiceConfig) -> bytes:
    """The whole body.

    Raises:
        ProblemError: 413 too large, 415 no JSON, 408 too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProblemError(415, "content-type: application/json is allowed", code="unsupported_media_type")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_body_bytes:
        await _pass_over(request.receive, limits)
        raise _too_large(limits)
    with anyio.move_on_after(limits.body_timeout_s):
        return await _collect(request.receive, limits)
    why = f"body: not whole after {limits.body_timeout_s:g} s"
    raise ProblemError(408, why, code="timeout", headers={"connection": "close"})


async def _collect(receive: Receive, limits: ServiceConfig) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            del body
            await _pass_over(receive, limits)
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


async def _pass_over(receive: Receive, limits: ServiceConfig) -> None:
    """Read on for a while, and keep nothing: a connection that is closed with bytes unread is reset, and its client
    may never see the answer that says why.
    """
    size = 0
    with anyio.move_on_after(PASS_OVER_S):
        while size < PASS_OVER * limits.max_body_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def _too_large(limits: ServiceConfig) -> ProblemError:
    # Closed, for what is still on its way would be read as the next request.
    return ProblemError(
        413,
        f"body: at most {limits.max_body_bytes} bytes are allowed",
        code="body_too_large",
        headers={"connection": "close"},
    )


def decode(body: bytes, kind: type[T]) -> T:
    """``body`` as a record.

    Raises:
        ProblemError: 400, with the field that is wrong; or what the record itself raises.
    """
    try:
        found: T = decoder_of(kind).decode(body)
        return found
    except msgspec.ValidationError as error:
        what = wrong(error, kind)
        path = what.path[:200]
        raise ProblemError(400, f"{path or 'body'}: {what.why}", code=what.code, param=path or None) from None
    except msgspec.DecodeError as error:
        raise ProblemError(400, f"body: no JSON that can be read: {error}", code="invalid_json") from None
    except UnicodeDecodeError:
        raise ProblemError(400, "body: not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise ProblemError(400, "body: nested too deeply", code="invalid_json") from None


def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of a kind of record, made once."""
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    return _decoders[kind]
