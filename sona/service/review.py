"""``/review`` and ``/candidates``: which answers may be learned, decided by a person."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache, partial
from importlib.resources import files
from typing import Annotated, Literal

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sona.errors import ConfigError, SendError
from sona.review_filter import parse_filter
from sona.reviewed import Page, Sent, Shown
from sona.service.bearer import password_of
from sona.service.body import decode, read_body
from sona.service.hub import Hub
from sona.service.problems import ProblemError

BY = "review over HTTP"
"""Who is noted as having changed a state."""
TOKEN_HERE = '<meta name="token" content="">'
MOST = 10_000
"""Candidates that one request changes."""


class ChangeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of these are brought into a state, or none."""

    ids: list[Annotated[int, msgspec.Meta(ge=1, le=2**53)]]
    state: Literal["new", "approved", "rejected"]
    note: str = ""


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """As they are then."""

    candidates: list[Shown]


class ConfirmRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of all of these, which were sent to a training service."""

    ids: list[Annotated[int, msgspec.Meta(ge=1, le=2**53)]]
    trained: bool
    """True: they are in the weights. False: the service gave them up, or never had them: they are approved again."""
    note: str = ""


class ThresholdRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From how many nats on a response is a candidate."""

    nats: float


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """The one in force, within its bounds."""

    nats: float


class AlternatesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether new candidates get an answer without memories."""

    wanted: bool


class Alternates(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force."""

    wanted: bool


async def page(hub: Hub, request: Request) -> Response:
    """The page for review. It holds no data, but the token, where a browser showed it as a password."""
    text, policy = _page()
    shown = password_of(request.headers.get("authorization", "").encode("latin-1")).decode("latin-1")
    text = text.replace(TOKEN_HERE, TOKEN_HERE.replace('""', f'"{html.escape(shown)}"'), 1)
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": "same-origin",
    }
    return Response(text, headers=headers, media_type="text/html")


async def candidates(hub: Hub, request: Request) -> Page:
    """What there is to review, and why it is empty."""
    wanted = parse_filter(request.query_params.get("filter", ""))
    page = await anyio.to_thread.run_sync(hub.engine.candidates.page)
    return msgspec.structs.replace(page, candidates=wanted.of(page.candidates))


async def candidate(hub: Hub, request: Request) -> Shown:
    """One candidate, whatever its state."""
    return await anyio.to_thread.run_sync(hub.engine.candidates.get, _id(request))


async def approve(hub: Hub, request: Request) -> Shown:
    """Let one be trained on."""
    return (await _change(hub, [_id(request)], "approved", ""))[0]


async def reject(hub: Hub, request: Request) -> Shown:
    """Turn one down."""
    return (await _change(hub, [_id(request)], "rejected", ""))[0]


async def change(hub: Hub, request: Request) -> Changed:
    """Bring many into a state, or none."""
    asked = decode(await read_body(request, hub.limits), ChangeRequest)
    _check_number(asked.ids)
    return Changed(candidates=await _change(hub, asked.ids, asked.state, asked.note))


async def confirm(hub: Hub, request: Request) -> Changed:
    """Say what came of answers that were sent, where the training service did not."""
    asked = decode(await read_body(request, hub.limits), ConfirmRequest)
    _check_number(asked.ids)
    work = partial(hub.engine.candidates.confirm, asked.ids, trained=asked.trained, by=BY, note=asked.note)
    return Changed(candidates=await anyio.to_thread.run_sync(work))


async def threshold(hub: Hub, request: Request) -> Threshold:
    """Set the threshold, for what comes and for what is shown."""
    asked = decode(await read_body(request, hub.limits), ThresholdRequest)
    return Threshold(nats=await anyio.to_thread.run_sync(hub.engine.candidates.set_threshold, asked.nats))


async def alternates(hub: Hub, request: Request) -> Alternates:
    """Switch answers without memories on or off."""
    asked = decode(await read_body(request, hub.limits), AlternatesRequest)
    await anyio.to_thread.run_sync(hub.engine.candidates.set_alternates, asked.wanted)
    return Alternates(wanted=asked.wanted)


async def send(hub: Hub, request: Request) -> Sent:
    """Send all that is approved to the training service that the settings name; 504: it may have taken it."""
    try:
        return await anyio.to_thread.run_sync(hub.engine.candidates.send)
    except ConfigError as error:
        raise ProblemError(409, str(error), code="no_training_service") from None
    except SendError as error:
        if error.outcome == "unknown":
            raise ProblemError(504, str(error), code="not_confirmed") from None
        raise ProblemError(502, str(error), code="not_sent") from None


async def _change(hub: Hub, ids: list[int], state: Literal["new", "approved", "rejected"], note: str) -> list[Shown]:
    work = partial(hub.engine.candidates.change, ids, state, note, by=BY)
    return await anyio.to_thread.run_sync(work)


def _check_number(ids: list[int]) -> None:
    if len(ids) > MOST:
        raise ProblemError(400, f"ids: {len(ids)}; at most {MOST} are allowed", code="too_many", param="ids")


def _id(request: Request) -> int:
    text = request.path_params["id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ProblemError(404, "no such id", code="not_found")
    return int(text)


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets its own script and style run, and nothing else."""
    text = (files("sona.service") / "review.html").read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str, tag: str) -> str:
    """As a content security policy names an element's content."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}"
