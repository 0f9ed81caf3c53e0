"""The records: what comes in, what the bank and the cycle make of it.

All are frozen :class:`msgspec.Struct` types, checked when they are built and again when they are read back, so that no
damaged or foreign record passes as a good one. Vectors are raw little-endian float32 bytes and token ids raw
little-endian int32 bytes (lists of Python numbers cost 6-35 times as much to encode); ``vector()`` and ``*_array()``
give numpy views without a copy.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, dataclass_transform

import msgspec
import numpy as np

from sona.checks import (
    Float32,
    Int32,
    TokensLike,
    VectorLike,
    check_finite,
    check_id,
    check_quality,
    check_text,
    check_time,
    pack_tokens,
    pack_vector,
    tuple_of,
)
from sona.errors import InvalidInputError

SCHEMA = 1
"""Version of the records that this code writes; a reader refuses a higher one. The fields' default stays 1 for good:
defaults are not written, so a record without a version is of the first."""

Outcome = Literal["completed", "failed", "abandoned"]
CycleStatus = Literal["published", "rejected", "skipped"]
BASE_VERSION = "v0"
"""The first version of every store: the untouched base model, with an empty bank."""
ROLES = ("system", "developer", "user", "assistant", "tool")


def new_id() -> str:
    """A time-ordered random id: UUID version 7 (RFC 9562 §5.7), as 32 hex digits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"


_set = msgspec.structs.force_setattr


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # type checkers don't inherit ``frozen``
class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all records share: frozen, unknown fields refused. (``kw_only`` is not inherited, so each says it again.)"""


class ToolCall(Record, kw_only=True):
    """One call that an assistant's message makes."""

    name: str
    """The tool's name."""
    arguments: str = "{}"
    """Its arguments as JSON text, as the model wrote it."""

    def __post_init__(self) -> None:
        check_id(self.name, "tool call name")
        check_text(self.arguments, "tool call arguments", empty=True)


class Message(Record, kw_only=True):
    """One message of a conversation."""

    role: str
    """One of ``system``, ``developer``, ``user``, ``assistant``, ``tool``."""
    content: str = ""
    """Its text; may be empty only where ``tool_calls`` are given, or for a tool's empty result."""
    name: str | None = None
    """Who speaks, where the role alone does not say it (a tool's name)."""
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidInputError(f"message role: {self.role!r}; one of {', '.join(ROLES)} is allowed")
        _set(self, "tool_calls", tuple_of(self.tool_calls, ToolCall, "tool_calls"))
        check_text(self.content, f"{self.role} message", empty=bool(self.tool_calls) or self.role == "tool")
        if self.name is not None:
            check_id(self.name, "message name")


class Step(Record, kw_only=True):
    """One action inside a trajectory."""

    name: str
    """What was done, such as ``tool:lookup`` or ``route:fast``."""
    reward: float | None = None
    """The step's own reward, any finite number, if one is known."""
    latency_s: float | None = None
    """How long it took, in seconds."""
    content: str = ""
    """What it was given or gave back, as text."""
    at_ns: int = msgspec.field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""

    def __post_init__(self) -> None:
        check_id(self.name, "step name")
        check_finite(self.reward, "step reward")
        check_finite(self.latency_s, "step latency_s")
        if self.latency_s is not None and self.latency_s < 0:
            raise InvalidInputError(f"step latency_s: {self.latency_s}; 0 or more seconds are allowed")
        check_text(self.content, "step content", empty=True)
        check_time(self.at_ns, "step at_ns")


class Trajectory(Record, kw_only=True):
    """One handled query. It needs a prompt (``messages`` or ``prompt_ids``) or an ``embedding``; all that is given is
    checked.

    Raises:
        InvalidInputError: any field outside what its description allows.
    """

    id: str = msgspec.field(default_factory=new_id)
    """The caller's id, or a UUID 7."""
    source: str = "default"
    """Who sent it: agent, tenant or user."""
    created_ns: int = msgspec.field(default_factory=time.time_ns)
    """When the query came, in nanoseconds since 1970."""
    messages: tuple[Message, ...] = ()
    """The prompt as a conversation, without the response."""
    response: str = ""
    """The answer's text."""
    prompt_ids: bytes | None = None
    """The prompt as the model's token ids, int32 bytes; give an array or a list, it is packed."""
    response_ids: bytes | None = None
    """The answer as token ids, with its end token if the model wrote one."""
    embedding: bytes | None = None
    """The query's embedding, float32 bytes; give an array or a list, it is packed."""
    steps: tuple[Step, ...] = ()
    outcome: Outcome = "completed"
    version: str | None = None
    """The version of the model that answered, if sona served it."""
    recalled: tuple[str, ...] = ()
    """Ids of the patterns that were recalled for it."""
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    """Anything else worth keeping, text to text."""
    schema: int = 1

    if TYPE_CHECKING:  # arrays and lists are packed on construction, which the synthesised __init__ could not say

        def __init__(  # noqa: PLR0913 - one for each field
            self,
            *,
            id: str = ...,
            source: str = ...,
            created_ns: int = ...,
            messages: str | Sequence[Message | Mapping[str, Any]] = ...,
            response: str = ...,
            prompt_ids: TokensLike | None = ...,
            response_ids: TokensLike | None = ...,
            embedding: VectorLike | None = ...,
            steps: Sequence[Step] = ...,
            outcome: Outcome = ...,
            version: str | None = ...,
            recalled: Sequence[str] = ...,
            metadata: Mapping[str, str] = ...,
            schema: int = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        check_id(self.id, "trajectory id")
        check_id(self.source, "source")
        check_time(self.created_ns, "created_ns")
        if type(self.schema) is not int or not 1 <= self.schema <= SCHEMA:
            raise InvalidInputError(f"schema: {self.schema!r}; this sona reads 1 to {SCHEMA}, so update it")
        _set(self, "messages", to_messages(self.messages))
        check_text(self.response, "response", empty=True)
        for name in ("prompt_ids", "response_ids"):
            if (ids := getattr(self, name)) is not None:
                _set(self, name, pack_tokens(ids, name))
        if self.embedding is not None:
            _set(self, "embedding", pack_vector(self.embedding))
        _set(self, "steps", tuple_of(self.steps, Step, "steps"))
        if self.outcome not in ("completed", "failed", "abandoned"):
            raise InvalidInputError(f"outcome: {self.outcome!r}; completed, failed or abandoned is allowed")
        _set(self, "recalled", tuple_of(self.recalled, str, "recalled"))
        for name in self.recalled:
            check_id(name, "recalled pattern id")
        if self.version is not None:
            check_id(self.version, "version")
        self._check_metadata()
        self._check_whole()

    def _check_metadata(self) -> None:
        if not isinstance(self.metadata, Mapping):
            raise InvalidInputError(f"metadata: {type(self.metadata).__name__}; a mapping of text to text is allowed")
        _set(self, "metadata", dict(self.metadata))  # the host may go on changing its own
        for key, value in self.metadata.items():
            check_id(key, "metadata key")
            check_text(value, f"metadata[{key!r}]", empty=True)

    def _check_whole(self) -> None:
        """What no field can tell alone."""
        if not self.messages and self.prompt_ids is None and self.embedding is None:
            raise InvalidInputError("trajectory: no prompt; give messages, prompt_ids or an embedding")
        answered = bool(self.response.strip()) or self.response_ids is not None
        prompted = bool(self.messages) or self.prompt_ids is not None
        if prompted and not answered and self.outcome == "completed":
            raise InvalidInputError("response: empty; give the answer's text or token ids, or outcome='failed'")

    def vector(self) -> Float32 | None:
        """The embedding, float32 (width,), a read-only view; None where there is none."""
        return None if self.embedding is None else np.frombuffer(self.embedding, dtype="<f4")

    def prompt_array(self) -> Int32 | None:
        """The prompt's token ids, int32 (tokens,), a read-only view; None where there are none."""
        return None if self.prompt_ids is None else np.frombuffer(self.prompt_ids, dtype="<i4")

    def response_array(self) -> Int32 | None:
        """The answer's token ids, int32 (tokens,), a read-only view; None where there are none."""
        return None if self.response_ids is None else np.frombuffer(self.response_ids, dtype="<i4")


def to_messages(value: object) -> tuple[Message, ...]:
    """A conversation from messages or plain ``{"role": ..., "content": ...}`` mappings; a text is one user message.

    Raises:
        InvalidInputError: an unknown role or key, an empty text, or no conversation at all.
    """
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInputError(f"messages: {type(value).__name__}; a text or a list of messages is allowed")
    return tuple(_to_message(item, index) for index, item in enumerate(value))


def _to_message(item: object, index: int) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise InvalidInputError(f"messages[{index}]: {type(item).__name__}; a Message or a mapping is allowed")
    fields = {key: value for key, value in item.items() if value is not None}
    calls = fields.pop("tool_calls", ())
    try:
        return msgspec.convert({**fields, "tool_calls": [_flat_call(call) for call in calls]}, Message)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidInputError(f"messages[{index}]: {error}") from None


def _flat_call(call: object) -> object:
    """OpenAI nests a call's name and arguments under ``function``; we keep the two."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if isinstance(call, Mapping):
        return {key: call[key] for key in ("name", "arguments") if key in call}
    return call


class Feedback(Record, kw_only=True):
    """A quality for a trajectory, given with it or any time later."""

    trajectory_id: str
    quality: float
    """From 0 (useless) to 1 (right)."""
    id: str = msgspec.field(default_factory=new_id)
    """The same id sent twice counts once."""
    giver: str = "host"
    """Who gave it: a person, a judge, a test."""
    at_ns: int = msgspec.field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""
    comment: str = ""
    schema: int = 1

    def __post_init__(self) -> None:
        check_id(self.trajectory_id, "trajectory_id")
        check_id(self.id, "feedback id")
        check_id(self.giver, "giver")
        _set(self, "quality", check_quality(self.quality))
        check_time(self.at_ns, "at_ns")
        check_text(self.comment, "comment", empty=True)
        if type(self.schema) is not int or not 1 <= self.schema <= SCHEMA:
            raise InvalidInputError(f"schema: {self.schema!r}; this sona reads 1 to {SCHEMA}, so update it")


class Exemplar(Record, kw_only=True):
    """A trajectory that stands for its pattern."""

    trajectory_id: str
    quality: float
    similarity: float
    """Cosine to the pattern's centroid."""
    prompt: str
    """The beginning of the query."""
    response: str
    """The beginning of the answer."""


class Pattern(Record, kw_only=True):
    """A cluster of trajectories. Its id stays the same from cycle to cycle."""

    id: str
    centroid: bytes
    """float32 bytes, unit norm, in the bank's centred space."""
    count: int
    """Trajectories in it so far."""
    quality_count: int
    """How many of them have a quality."""
    quality_mean: float
    """Mean quality of these; 0.5 where none has one."""
    quality_m2: float
    """Sum of squared differences from the mean (Welford 1962), for the variance and for merging."""
    spread: float
    """Mean cosine of its members to the centroid."""
    exemplars: tuple[Exemplar, ...] = ()
    born_cycle: int = 0
    touched_cycle: int = 0

    def __post_init__(self) -> None:
        check_id(self.id, "pattern id")
        pack_vector(self.centroid, "centroid")
        check_quality(self.quality_mean, "quality_mean")
        for name in ("quality_m2", "spread"):
            check_finite(getattr(self, name), name)
        if not 0 <= self.quality_count <= self.count:
            raise InvalidInputError(f"pattern counts: {self.quality_count} of {self.count}; neither may be negative")

    @property
    def quality_std(self) -> float:
        """Standard deviation of the quality (n - 1 in the denominator); 0 below two values."""
        return math.sqrt(max(self.quality_m2, 0.0) / (self.quality_count - 1)) if self.quality_count > 1 else 0.0

    def vector(self) -> Float32:
        """The centroid, float32 (width,), a read-only view."""
        return np.frombuffer(self.centroid, dtype="<f4")


class Recall(Record, kw_only=True):
    """One pattern that is near to a query."""

    pattern: Pattern
    similarity: float
    """Cosine of the query to the centroid, in the bank's centred space."""


class GateCheck(Record, kw_only=True):
    """One thing that the gate measured."""

    name: str
    value: float
    bound: float
    """The value passes when it is at least this."""
    passed: bool
    detail: str = ""


class GateDecision(Record, kw_only=True):
    """Why a candidate was admitted or not."""

    passed: bool
    checks: tuple[GateCheck, ...] = ()

    @property
    def reason(self) -> str:
        """One line: the checks that failed, or all that passed."""
        chosen = [check for check in self.checks if not check.passed] or list(self.checks)
        return "; ".join(f"{check.name} {check.value:.4g} (needs {check.bound:.4g})" for check in chosen)


class Funnel(Record, kw_only=True):
    """How many trajectories came into a cycle, and where each of them went."""

    collected: int
    """New to this cycle: with a quality, never claimed before."""
    trained: int
    held_out: int
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    """Reason to count. ``collected == trained + held_out + sum(left_out.values())``."""
    waiting_for_feedback: int = 0
    """In the store without a quality, so not collected yet."""


class CycleReport(Record, kw_only=True):
    """What one run of the background loop did."""

    cycle: int
    status: CycleStatus
    reason: str
    """One line for a person."""
    funnel: Funnel
    parent: str
    """The version that it started from."""
    version: str | None = None
    """The version that it published."""
    gate: GateDecision | None = None
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    """Measured in this cycle; the key names the unit. What was not measured is absent."""
    started_ns: int = 0
    finished_ns: int = 0
    schema: int = 1


class Version(Record, kw_only=True):
    """One immutable commit of the learned state."""

    id: str
    parent: str | None
    """None for the first one, which is the untouched base model."""
    cycle: int
    """The cycle that made it; 0 for the first one."""
    created_ns: int
    digest: str
    """SHA-256 over the names and contents of its files; empty for the first version, which has none."""
    trajectories: int = 0
    """How many were trained on in the cycle that made it."""
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """The whole configuration in force, seeds included."""
    schema: int = 1


class Progress(Record, kw_only=True):
    """Where a long piece of work stands."""

    stage: str
    """What is being done, such as ``train``."""
    done: int
    total: int
    note: str = ""


class Reply(Record, kw_only=True):
    """What the served model answered."""

    text: str
    token_ids: tuple[int, ...]
    """The answer's tokens, with the end token if the model wrote one."""
    prompt_ids: tuple[int, ...]
    version: str
    """The version whose adapter made it."""
    finish_reason: Literal["stop", "length"]
