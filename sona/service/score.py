"""``POST /score``: how likely the served model finds stretches of a text, token ids in and sums out."""

from __future__ import annotations

from typing import Annotated

import anyio
import msgspec
import numpy as np
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sona.service.body import decode, read_body
from sona.service.hub import BASE_NAME, Hub
from sona.service.problems import ProblemError
from sona.service.requests import TokenIds

Range = tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=2)]]


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token ids, and the stretches of them to score."""

    prompt: TokenIds
    """The whole text."""
    score_ranges: Annotated[list[Range], Meta(min_length=1, max_length=4096)]
    """From the first token of each stretch to the one behind its last, counted from 0. Nothing foretells the first
    token of all, so no stretch begins with it. They may overlap. What stands before the earliest of them is the prompt
    that a router is shown."""
    model: str = BASE_NAME
    logprobs: Annotated[int, Meta(ge=0, le=1)] | None = None
    """Taken and ignored."""
    priority: int | None = None
    """Taken and ignored: the order is that of arrival."""


class RangeScore(msgspec.Struct, frozen=True, kw_only=True):
    """Of one stretch."""

    total_logprob: float
    """The sum over its tokens of log p(token | all before it), in nats, at temperature 1."""
    tokens: int


class ScoreResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The stretches' scores, in their order."""

    scores: list[RangeScore]
    version: str
    """The version that was asked, fast weights left out."""
    digest: str
    adapter: str | None
    """The version's adapter that took part; null: the untouched base."""


class Scoring(Response):
    """Reads what is to be scored and scores it, until the client hangs up."""

    def __init__(self, hub: Hub, request: Request) -> None:
        self._hub, self._request = hub, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._hub.answering.one():
            asked = await ask_score(self._hub, self._request)
            async with self._hub.work(receive):
                told = await self._score(asked)
                headers = {"x-sona-version": told.version, "x-sona-digest": told.digest}
                body = msgspec.json.encode(told)
                with anyio.move_on_after(self._hub.limits.write_timeout_s):
                    await Response(body, 200, headers, "application/json")(scope, receive, send)

    async def _score(self, asked: ScoreRequest) -> ScoreResponse:
        ranges = asked.score_ranges
        places = sorted({place for first, end in ranges for place in range(first, end)})
        ids = np.asarray(asked.prompt, dtype=np.int32)
        found = await self._hub.answers.score(ids, places, prompt_tokens=places[0])
        at = dict(zip(places, found.log_probs.astype(np.float64).tolist(), strict=True))
        return ScoreResponse(
            scores=[
                RangeScore(total_logprob=sum(at[place] for place in range(first, end)), tokens=end - first)
                for first, end in ranges
            ],
            version=found.version,
            digest=self._hub.digest(found.version),
            adapter=found.adapter,
        )


async def score(hub: Hub, request: Request) -> Response:
    """The total log-probability of each stretch."""
    return Scoring(hub, request)


async def ask_score(hub: Hub, request: Request) -> ScoreRequest:
    """What is to be scored."""
    asked = decode(await read_body(request, hub.limits), ScoreRequest)
    hub.check_model(asked.model)
    length, most = len(asked.prompt), hub.engine.model.max_tokens
    if length > most:
        raise ProblemError(
            400, f"prompt: {length} tokens; at most {most} are allowed", param="prompt", code="context_length_exceeded"
        )
    for place, (first, end) in enumerate(asked.score_ranges):
        if not first < end <= length:
            raise ProblemError(
                400,
                f"score_ranges[{place}]: [{first}, {end}]; first < end <= {length} is allowed",
                param=f"score_ranges[{place}]",
                code="invalid_value",
            )
    return asked
