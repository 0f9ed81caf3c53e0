"""The records: what comes in, what the bank and the cycle make of it, and what is answered.

All are frozen :class:`msgspec.Struct` types, checked when they are built and again when they are read back, so that no
damaged or foreign record passes as a good one. Vectors are raw little-endian float32 bytes and token ids raw
little-endian int32 bytes (lists of Python numbers cost 6-35 times as much to encode); ``vector()`` and ``*_array()``
give numpy views without a copy.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from sona.checks import (
    Float32,
    Int32,
    TokensLike,
    VectorLike,
    check_count,
    check_id,
    check_kind,
    check_mapping,
    check_number,
    check_one_of,
    check_quality,
    check_text,
    check_time,
    did_you_mean,
    largest_token,
    pack_tokens_and_largest,
    pack_vector,
    shown,
    tuple_of,
)
from sona.errors import InvalidInputError
from sona.message import MESSAGE_KEYS, ROLES, TEXT_PARTS, Message, ToolCall, to_messages
from sona.record import NO_TEXTS, SCHEMA, Record, Texts, check_schema, new_id
from sona.reply import FINISHES, Attestation, FinishReason, Reply, Token

__all__ = [
    "BASE_VERSION",
    "COSINES",
    "FINISHES",
    "MESSAGE_KEYS",
    "OUTCOMES",
    "ROLES",
    "ROUTE_KEYS",
    "SCHEMA",
    "STATUSES",
    "TEXT_PARTS",
    "Attestation",
    "CycleReport",
    "CycleStatus",
    "Feedback",
    "FinishReason",
    "Funnel",
    "GateCheck",
    "GateDecision",
    "Message",
    "Outcome",
    "Progress",
    "Record",
    "Reply",
    "Step",
    "Token",
    "ToolCall",
    "Trajectory",
    "Version",
    "new_id",
    "no_trajectory",
    "to_messages",
]

Outcome = Literal["completed", "failed", "abandoned"]
CycleStatus = Literal["published", "rejected", "skipped"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
STATUSES: tuple[CycleStatus, ...] = get_args(CycleStatus)
BASE_VERSION = "v0"
"""The first version of every store: the untouched base model, with an empty bank."""
ROUTE_KEYS = ("model", "plan", "prompt", "route", "agent")
"""Metadata that say which way a trajectory took: ``{"model": "small"}`` is the route ``model:small``."""
MAX_FLOAT = sys.float_info.max
COSINES = (-1.001, 1.001)  # of float32 vectors: rounding may lead out of [-1, 1]


_set = msgspec.structs.force_setattr


class Step(Record, kw_only=True):
    """One action inside a trajectory."""

    name: str
    """What was done, such as ``tool:lookup`` or ``route:fast``. A name of the form ``kind:name`` is a route, of which
    the bank says how well it went with each kind of query."""
    reward: float | None = None
    """The step's own reward, if one is known: from -1e9 to 1e9, so that sums stay finite."""
    latency_s: float | None = None
    """How long it took, in seconds, up to 1e9."""
    content: str = ""
    """What it was given or gave back, as text."""
    at_ns: int = msgspec.field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""

    def __post_init__(self) -> None:
        check_id(self.name, "step name")
        if (reward := self.reward) is not None and (checked := check_number(reward, "step reward")) is not reward:
            _set(self, "reward", checked)
        if self.latency_s is not None:
            _set(self, "latency_s", check_number(self.latency_s, "step latency_s", 0.0))
        check_text(self.content, "step content", empty=True)
        check_time(self.at_ns, "step at_ns")


class Trajectory(Record, kw_only=True, dict=True):  # for `largest_token`, which no row holds
    """One handled query. It needs a prompt (``messages`` or ``prompt_ids``) or an ``embedding``; with a prompt it needs
    an answer too (``response`` or ``response_ids``), or ``outcome="failed"`` or ``"abandoned"``. All that is given is
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
    """What was done on the way. The bank tells apart how well it went by the names of the form ``kind:name``: up to 16
    of a trajectory, of up to 80 characters, such as ``tool:lookup``, ``model:small``, ``plan:ask-first``."""
    outcome: Outcome = "completed"
    version: str | None = None
    """The version of the model that answered, if sona served it."""
    recalled: tuple[str, ...] = ()
    """Ids of the patterns and lessons that were recalled for it: its quality then shows what they are worth."""
    metadata: dict[str, str] = NO_TEXTS
    """Anything else worth keeping, text to text; it can't be changed any more. What stands under ``model``, ``plan``,
    ``prompt``, ``route`` or ``agent`` is a route as the names of steps are, ``model:<value>``: give a prompt's name
    there, not its text."""
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
        check_schema(self.schema)
        # Set is only what changes: hosts count the microseconds, and each costs as much as a check.
        if (messages := to_messages(self.messages)) is not self.messages:
            _set(self, "messages", messages)
        check_text(self.response, "response", empty=True)
        largest = -1
        for name in ("prompt_ids", "response_ids"):
            if (ids := getattr(self, name)) is not None:
                packed, top = pack_tokens_and_largest(ids, name)
                _set(self, name, packed)
                largest = max(largest, top)
        self.__dict__["largest_token"] = largest  # found there without a call into code that no cache holds (ADR 6)
        if self.embedding is not None:
            _set(self, "embedding", pack_vector(self.embedding))
        try:
            if (steps := tuple_of(self.steps, Step, "steps")) is not self.steps:
                _set(self, "steps", steps)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error}; sona.Step(**fields) makes one") from None
        check_one_of(self.outcome, OUTCOMES, "outcome")
        if (recalled := tuple_of(self.recalled, str, "recalled")) is not self.recalled:
            _set(self, "recalled", recalled)
        for name in self.recalled:
            check_id(name, "recalled id")
        if self.version is not None:
            check_id(self.version, "version")
        self._check_metadata()
        self._check_whole()

    def _check_metadata(self) -> None:
        if self.metadata is NO_TEXTS:
            return
        if type(self.metadata) is not dict and not isinstance(self.metadata, Mapping):
            raise InvalidInputError(f"metadata: {type(self.metadata).__name__}; a mapping of text to text is allowed")
        _set(
            self, "metadata", Texts(self.metadata) if self.metadata else NO_TEXTS
        )  # the host may go on changing its own
        for key, value in self.metadata.items():
            check_id(key, "metadata key")
            check_text(value, f"metadata[{key!r}]", empty=True)

    def _check_whole(self) -> None:
        """What no field can tell alone."""
        if not self.messages and self.prompt_ids is None and self.embedding is None:
            raise InvalidInputError("trajectory: no prompt; give messages, prompt_ids or an embedding")
        if self.outcome != "completed" or self.response_ids is not None or self.response.strip():
            return
        if self.messages or self.prompt_ids is not None:
            raise InvalidInputError("response: empty; give the answer's text or token ids, or outcome='failed'")

    @cached_property
    def largest_token(self) -> int:
        """The largest of its token ids, as found when they were checked; -1 where it has none."""
        # Of a copy by copy.copy, which leaves it behind.
        return max((largest_token(ids) for ids in (self.prompt_ids, self.response_ids) if ids), default=-1)

    def is_again(self, other: Trajectory) -> bool:
        """Whether ``other`` says the same. When is not asked: whoever builds it once more can't repeat the clock."""
        return self == other or _timeless(self) == _timeless(other)

    def vector(self) -> Float32 | None:
        """The embedding, float32 (width,), a read-only view; None where there is none."""
        return None if self.embedding is None else np.frombuffer(self.embedding, dtype="<f4")

    def prompt_array(self) -> Int32 | None:
        """The prompt's token ids, int32 (tokens,), a read-only view; None where there are none."""
        return None if self.prompt_ids is None else np.frombuffer(self.prompt_ids, dtype="<i4")

    def response_array(self) -> Int32 | None:
        """The answer's token ids, int32 (tokens,), a read-only view; None where there are none."""
        return None if self.response_ids is None else np.frombuffer(self.response_ids, dtype="<i4")


def _timeless(trajectory: Trajectory) -> Trajectory:
    steps = [msgspec.structs.replace(step, at_ns=0) for step in trajectory.steps]
    return msgspec.structs.replace(trajectory, created_ns=0, steps=steps)


def no_trajectory(value: object) -> InvalidInputError:
    """The error for something that was given in place of a trajectory; of a mapping it names the keys to mend."""
    what = f"trajectory: a {type(value).__name__}; a sona.Trajectory is allowed"
    if isinstance(value, Trajectory):
        return InvalidInputError(f"{what}, and no subclass: a store could not tell one; put more under its metadata")
    if not isinstance(value, Mapping):
        return InvalidInputError(what)
    hints = [_key_hint(key) for key in value if key not in Trajectory.__struct_fields__]
    return InvalidInputError("; ".join([f"{what}, made of the same by sona.Trajectory(**fields)", *hints]))


def _key_hint(key: object) -> str:
    if key == "quality":
        return "'quality' goes to record(..., quality=)"
    return f"{shown(key)} is no field of it{did_you_mean(key, Trajectory.__struct_fields__)}"


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
        check_schema(self.schema)


class GateCheck(Record, kw_only=True):
    """One thing that the gate measured."""

    name: str
    value: float
    """What was measured; infinite or NaN where nothing could be."""
    bound: float
    """The value passes when it is at least this."""
    passed: bool
    detail: str = ""

    def __post_init__(self) -> None:
        check_id(self.name, "check name")
        _set(self, "value", _measured(self.value, "check value"))
        _set(self, "bound", check_number(self.bound, "check bound"))
        check_kind(self.passed, bool, "passed")
        check_text(self.detail, "detail", empty=True)
        if self.passed and not self.value >= self.bound:
            raise InvalidInputError(f"passed: {self.name} at {self.value}; at least {self.bound} passes")

    @property
    def needed(self) -> str:
        """What the value has to be, in words."""
        is_above = self.value == self.bound and not self.passed  # of a check that wants more than its bound
        return f"{'above' if is_above else 'at least'} {self.bound:.4g}"


class GateDecision(Record, kw_only=True):
    """Why a challenger was admitted or not."""

    passed: bool
    checks: tuple[GateCheck, ...] = ()

    def __post_init__(self) -> None:
        check_kind(self.passed, bool, "passed")
        _set(self, "checks", tuple_of(self.checks, GateCheck, "checks"))
        # The other way round is allowed: a gate that is switched off lets everything pass.
        if not self.passed and all(check.passed for check in self.checks):
            raise InvalidInputError("passed: False, but no check failed; name the one that did")

    @property
    def reason(self) -> str:
        """One line: the checks that failed, or all that passed."""
        chosen = [check for check in self.checks if not check.passed] or list(self.checks)
        return "; ".join(f"{check.name} {check.value:.4g} ({check.needed})" for check in chosen)


class Funnel(Record, kw_only=True):
    """How many trajectories came into a cycle, and where each of them went."""

    collected: int
    """New to this cycle: with a quality, and claimed by no cycle, or left out by one before their latest feedback."""
    trained: int
    held_out: int
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    """Reason to count. ``collected == trained + held_out + sum(left_out.values())``."""
    waiting_for_feedback: int = 0
    """In the store without a quality, so not collected yet."""

    def __post_init__(self) -> None:
        for name in ("collected", "trained", "held_out", "waiting_for_feedback"):
            check_count(getattr(self, name), name)
        check_mapping(self.left_out, "left_out")
        for reason, count in self.left_out.items():
            check_count(count, f"left_out[{reason!r}]")
        _set(self, "left_out", dict(self.left_out))
        gone = self.trained + self.held_out + sum(self.left_out.values())
        if self.collected != gone:
            raise InvalidInputError(
                f"collected: {self.collected}, but {gone} were trained on, held out or left out; give each its place"
            )


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

    def __post_init__(self) -> None:
        check_count(self.cycle, "cycle")
        check_one_of(self.status, STATUSES, "status")
        check_text(self.reason, "reason", empty=True)
        check_kind(self.funnel, Funnel, "funnel")
        check_id(self.parent, "parent")
        if self.version is not None:
            check_id(self.version, "version")
        if self.gate is not None:
            check_kind(self.gate, GateDecision, "gate")
        _set(self, "metrics", _metrics(self.metrics))
        check_time(self.started_ns, "started_ns")
        check_time(self.finished_ns, "finished_ns")
        check_schema(self.schema)


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

    def __post_init__(self) -> None:
        check_id(self.id, "version id")
        if self.parent is not None:
            check_id(self.parent, "parent")
        check_count(self.cycle, "cycle")
        check_time(self.created_ns, "created_ns")
        check_kind(self.digest, str, "digest")
        if not _HEX.fullmatch(self.digest):
            raise InvalidInputError(f"digest: {shown(self.digest)}; up to 64 hex digits are allowed")
        check_count(self.trajectories, "trajectories")
        _set(self, "metrics", _metrics(self.metrics))
        check_mapping(self.settings, "settings")
        check_schema(self.schema)


_HEX = re.compile("[0-9a-f]{0,64}")


def _metrics(value: Mapping[str, float]) -> dict[str, float]:
    """``value`` with its numbers as floats."""
    check_mapping(value, "metrics")
    return {key: _measured(number, f"metrics[{key!r}]") for key, number in value.items()}


def _measured(value: object, name: str) -> float:
    """``value`` as a float; a measurement may also have come out as NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return float(value)
    return check_number(value, name, -MAX_FLOAT, MAX_FLOAT)


class Progress(Record, kw_only=True):
    """Where a long piece of work stands."""

    stage: str
    """What is being done, such as ``train``."""
    done: int
    total: int
    note: str = ""

    def __post_init__(self) -> None:
        check_text(self.stage, "stage")
        check_count(self.total, "total")
        check_count(self.done, "done", self.total)
        check_text(self.note, "note", empty=True)
