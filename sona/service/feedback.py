"""``POST /v1/feedback``: how good an answer was, in our own words, LangSmith's or TensorZero's.

LangSmith: https://docs.langchain.com/langsmith/smith-api/feedback/create-feedback,
TensorZero: https://www.tensorzero.com/docs/gateway/api-reference/feedback.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request

from sona.errors import UnknownIdError
from sona.service.body import decode, read_body
from sona.service.hub import Hub
from sona.service.problems import ProblemError, unavailable
from sona.service.requests import unsupported
from sona.types import Feedback, new_id

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Quality = Annotated[float, Meta(ge=0.0, le=1.0)]
RESERVED = ("comment", "demonstration")
_DASHED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class OwnFeedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """sona's shape."""

    trajectory_id: Name
    """From the answer's header ``x-sona-trajectory`` or its body."""
    quality: Quality
    """From 0 (useless) to 1 (right)."""
    id: Name | None = None
    """Of this feedback: sent twice it counts once."""
    comment: str = ""
    giver: Name = "http"
    """Who gave it: a person, a judge, a test."""

    def feedback(self) -> Feedback:
        """As a record."""
        return Feedback(
            trajectory_id=self.trajectory_id,
            quality=self.quality,
            id=self.id or new_id(),
            giver=self.giver,
            comment=self.comment,
        )


class LangSmithFeedback(msgspec.Struct, frozen=True, kw_only=True):
    """LangSmith's shape; what it has beside these (corrections, sources) is not kept."""

    run_id: Name
    """The trajectory's id, with or without a UUID's dashes."""
    key: Name
    """What was judged; becomes the giver."""
    score: bool | float | None = None
    """From 0 to 1, or true or false."""
    value: Any = None
    """Ignored where there is a score; else a number or a truth value stands for it."""
    id: Name | None = None
    comment: str | None = None

    def feedback(self) -> Feedback:
        """As a record."""
        return Feedback(
            trajectory_id=self.run_id,
            quality=_quality(self.value if self.score is None else self.score, "score"),
            id=self.id or new_id(),
            giver=self.key,
            comment=self.comment or "",
        )


class TensorZeroFeedback(msgspec.Struct, frozen=True, kw_only=True):
    """TensorZero's shape, for one inference; tags are not kept."""

    inference_id: Name
    """The trajectory's id, with or without a UUID's dashes."""
    metric_name: Name
    """What was measured; becomes the giver. ``comment`` and ``demonstration`` have no quality, and are refused."""
    value: Any
    """From 0 to 1, or true or false."""
    dryrun: bool | None = None
    """Check it, and keep nothing."""

    def feedback(self) -> Feedback:
        """As a record."""
        if self.metric_name in RESERVED:
            raise unsupported("metric_name", f"{self.metric_name} has no quality; a number or a truth value is needed")
        return Feedback(trajectory_id=self.inference_id, quality=_quality(self.value, "value"), giver=self.metric_name)


Status = Literal["recorded", "held", "known", "dry run"]


class FeedbackTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a feedback. When this is sent it is on the disk, unless it is ``held``."""

    id: str
    """The feedback's."""
    feedback_id: str
    """The same."""
    trajectory_id: str
    status: Status
    """``known``: the same was given before, and counts once. ``held``: the host that runs this server has a trajectory
    of this id open, and it is recorded at that one's end. (Feedback for an answer of the server's own waits for it.)
    """


Shape = OwnFeedback | LangSmithFeedback | TensorZeroFeedback


class _Ids(msgspec.Struct, frozen=True):
    trajectory_id: Any = None
    run_id: Any = None
    inference_id: Any = None


SHAPES: dict[str, type[Shape]] = {
    "trajectory_id": OwnFeedback,
    "run_id": LangSmithFeedback,
    "inference_id": TensorZeroFeedback,
}


async def give(hub: Hub, request: Request) -> FeedbackTaken:
    """Record a feedback, once."""
    body = await read_body(request, hub.limits)
    ids = decode(body, _Ids)
    named = [name for name in SHAPES if getattr(ids, name) is not None]
    if len(named) != 1:
        raise ProblemError(
            400, f"one of {', '.join(SHAPES)} is needed, and one alone", param="trajectory_id", code="invalid_value"
        )
    shape = decode(body, SHAPES[named[0]])
    feedback = await _known_trajectory(hub, shape.feedback())
    if isinstance(shape, TensorZeroFeedback) and shape.dryrun:
        return _taken(feedback, "dry run")
    if _stored(hub, feedback):
        return _taken(feedback, "known")
    receipt = hub.engine.feedback(
        feedback.trajectory_id, feedback.quality, id=feedback.id, giver=feedback.giver, comment=feedback.comment
    )
    if receipt == "rejected":
        raise unavailable("too much waits for the disk; try again", "store_unavailable")
    if receipt == "held":  # no flush stores it
        return _taken(feedback, "held")
    await hub.engine.flush()
    if not _stored(hub, feedback):  # left out: the id is that of a feedback for another trajectory
        raise _conflict(feedback)
    return _taken(feedback, "recorded")


async def _known_trajectory(hub: Hub, feedback: Feedback) -> Feedback:
    """``feedback`` with the id of its trajectory as it lies in the store; ProblemError (404) where there is none.

    Ids that sona makes are UUIDs without dashes, and typed clients put them in.
    """
    given = feedback.trajectory_id
    names = [given, UUID(given).hex] if _DASHED.fullmatch(given) else [given]
    for name in names:
        await hub.ended(name)
    for flushed in (False, True):
        if flushed:
            await hub.engine.flush()
        for name in names:
            try:
                hub.engine.feedback_of(name)
            except UnknownIdError:
                continue
            return msgspec.structs.replace(feedback, trajectory_id=name)
    raise ProblemError(404, "no such trajectory", param="trajectory_id", code="not_found")


def _stored(hub: Hub, feedback: Feedback) -> bool:
    """Whether it lies in the store; ProblemError (409) where other content has its id."""
    for other in hub.engine.feedback_of(feedback.trajectory_id):
        if other.id == feedback.id:
            if msgspec.structs.replace(other, at_ns=feedback.at_ns) != feedback:
                raise _conflict(feedback)
            return True
    return False


def _conflict(feedback: Feedback) -> ProblemError:
    return ProblemError(409, f"feedback id {feedback.id!r} is taken by other content", param="id", code="conflict")


def _taken(feedback: Feedback, status: Status) -> FeedbackTaken:
    return FeedbackTaken(id=feedback.id, feedback_id=feedback.id, trajectory_id=feedback.trajectory_id, status=status)


def _quality(value: object, name: str) -> float:
    if isinstance(value, (bool, int, float)) and 0 <= value <= 1:
        return float(value)
    raise ProblemError(
        400, f"{name}: a number from 0 to 1, true or false is allowed; scale yours", param=name, code="invalid_value"
    )
