"""Every path of the service, each with what goes in and what comes out: the server and its OpenAPI text are made of
this one table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sona.reviewed import Page, Sent, Shown
from sona.service import answering, feedback, history, review, score, training, watching
from sona.service.hub import Hub
from sona.service.requests import ChatRequest, CompletionRequest
from sona.service.responses import ChatChunk, ChatCompletion, Completion

Handler = Callable[[Hub, Request], Awaitable[msgspec.Struct | Response]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    takes: tuple[Any, ...] = ()
    """The types that the body may have; none: no body."""
    gives: Any = None
    """The response's type as JSON; None: a text."""
    streams: Any = None
    """The type of a server-sent event's data, where the response may be a stream."""
    media: str = "application/json"
    """The response's."""
    query: tuple[tuple[str, str], ...] = ()
    """What may stand behind the path's ``?``: a name, and what it is for."""
    errors: tuple[int, ...] = ()
    """Statuses beside those that every endpoint may have."""


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        answering.chat,
        takes=(ChatRequest,),
        gives=ChatCompletion,
        streams=ChatChunk,
        errors=(400, 404, 408, 413, 415, 422, 503),
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        answering.completion,
        takes=(CompletionRequest,),
        gives=Completion,
        streams=Completion,
        errors=(400, 404, 408, 413, 415, 422, 503),
    ),
    Endpoint("GET", "/v1/models", history.models, gives=history.ModelList),
    Endpoint("GET", "/v1/models/{id}", history.model, gives=history.Model, errors=(404,)),
    Endpoint(
        "POST",
        "/v1/feedback",
        feedback.give,
        takes=tuple(feedback.SHAPES.values()),
        gives=feedback.FeedbackTaken,
        errors=(400, 404, 408, 409, 413, 415, 503),
    ),
    Endpoint(
        "POST",
        "/score",
        score.score,
        takes=(score.ScoreRequest,),
        gives=score.ScoreResponse,
        errors=(400, 404, 408, 413, 415, 422, 503),
    ),
    Endpoint(
        "POST",
        "/train",
        training.train,
        takes=(training.TrainRequest,),
        gives=training.JobAccepted,
        errors=(400, 408, 409, 413, 415, 422, 503),
    ),
    Endpoint("GET", "/train/status", training.status, gives=training.TrainStatus, errors=(409, 503)),
    Endpoint("POST", "/checkpoint", training.checkpoint, gives=training.CheckpointTaken, errors=(409, 503)),
    Endpoint("GET", "/versions", history.versions, gives=history.VersionList),
    Endpoint("POST", "/versions/{id}/rollback", history.rollback, gives=history.VersionInfo, errors=(404, 409)),
    Endpoint("POST", "/learn", history.learn, gives=history.LearnBegun, errors=(409,)),
    Endpoint("GET", "/review", review.page, media="text/html"),
    Endpoint(
        "GET",
        "/candidates",
        review.candidates,
        gives=Page,
        query=(("filter", "As a reviewer types it: source:agent memory:key state:new nats>2 words."),),
        errors=(400, 503),
    ),
    Endpoint("GET", "/candidates/{id}", review.candidate, gives=Shown, errors=(404, 503)),
    Endpoint("POST", "/candidates/{id}/approve", review.approve, gives=Shown, errors=(403, 404, 409, 503)),
    Endpoint("POST", "/candidates/{id}/reject", review.reject, gives=Shown, errors=(403, 404, 409, 503)),
    Endpoint(
        "POST",
        "/candidates/change",
        review.change,
        takes=(review.ChangeRequest,),
        gives=review.Changed,
        errors=(400, 403, 404, 408, 409, 413, 415, 503),
    ),
    Endpoint(
        "POST",
        "/candidates/threshold",
        review.threshold,
        takes=(review.ThresholdRequest,),
        gives=review.Threshold,
        errors=(400, 403, 408, 413, 415, 503),
    ),
    Endpoint(
        "POST",
        "/candidates/alternates",
        review.alternates,
        takes=(review.AlternatesRequest,),
        gives=review.Alternates,
        errors=(400, 403, 408, 413, 415, 503),
    ),
    Endpoint(
        "POST",
        "/candidates/confirm",
        review.confirm,
        takes=(review.ConfirmRequest,),
        gives=review.Changed,
        errors=(400, 403, 404, 408, 409, 413, 415, 503),
    ),
    Endpoint("POST", "/candidates/send", review.send, gives=Sent, errors=(403, 409, 502, 503, 504)),
    Endpoint("GET", "/events", watching.events, media="text/event-stream"),
    Endpoint("GET", "/metrics", watching.metrics, media="text/plain"),
    Endpoint("GET", "/healthz", watching.health, gives=watching.Health, errors=(503,)),
)
