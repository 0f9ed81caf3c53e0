"""Answers that depend on memory, and so are worth moving into the weights: what a person reviews.

A version in the making is none: that is a challenger (:mod:`sona.loops.challenger`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import msgspec
import numpy as np

from sona.checks import (
    Int32,
    TokensLike,
    check_count,
    check_id,
    check_number,
    check_one_of,
    check_text,
    check_time,
    pack_tokens,
    tuple_of,
)
from sona.errors import InvalidInputError, StateChangeError
from sona.types import Record

State = Literal["new", "approved", "rejected", "sent", "trained"]
STATES: tuple[State, ...] = get_args(State)

CHANGES: Mapping[State, tuple[State, ...]] = MappingProxyType(
    {
        "new": ("approved", "rejected"),
        "approved": ("new", "rejected", "sent", "trained"),  # trained: by a cycle of sona's own
        "rejected": ("new", "approved"),
        "sent": ("approved", "trained"),  # back: the training service gave the job up
        "trained": (),
    }
)
"""What each state may become. What is there already changes nothing, and is no error."""

LEARNED: tuple[State, ...] = ("sent", "trained")
"""States of what some training has accepted: it never becomes a candidate again."""
KEPT_REJECTED = 10
"""The newest so many rejected ones are kept."""

_set = msgspec.structs.force_setattr


def check_change(before: State, after: State, name: str) -> None:
    """Raise StateChangeError, naming the candidate, unless ``before`` may become ``after``."""
    check_one_of(after, STATES, "state")
    if after != before and after not in CHANGES[before]:
        allowed = " or ".join(CHANGES[before]) or "nothing else, as it is in the weights"
        raise StateChangeError(f"candidate {name}: it is {before}, which can't become {after}; it can become {allowed}")


def check_is(candidate: Candidate, states: Collection[State]) -> None:
    """Raise StateChangeError unless a candidate is in one of these states."""
    if candidate.state not in states:
        remedy = "; 'sona candidates confirm' says what came of it" if candidate.state == "sent" else ""
        raise StateChangeError(
            f"candidate {candidate.seq}: it is {candidate.state}; only {' or '.join(states)} ones are allowed{remedy}"
        )


class Key(NamedTuple):
    """What tells one response from all others."""

    trajectory_id: str
    at_ns: int
    """When the response was given, in nanoseconds since 1970."""


class Mattered(Record, kw_only=True):
    """A memory that an answer depended on."""

    key: str
    """The memory's."""
    nats: float
    """By so much it made the answer likelier."""

    def __post_init__(self) -> None:
        check_text(self.key, "memory key")
        _set(self, "nats", check_number(self.nats, "memory nats"))


class Change(Record, kw_only=True):
    """That a candidate came into a state."""

    state: State
    at_ns: int
    """When, in nanoseconds since 1970."""
    by: str
    """Who did it: a person, ``cycle 7``, a training service."""
    note: str = ""

    def __post_init__(self) -> None:
        check_one_of(self.state, STATES, "state")
        check_time(self.at_ns, "at_ns")
        check_text(self.by, "by")
        check_text(self.note, "note", empty=True)


class Candidate(Record, kw_only=True):
    """One response, with what it depended on.

    Raises:
        InvalidInputError: a field outside what its description allows.
    """

    trajectory_id: str
    at_ns: int
    """When the response was given, in nanoseconds since 1970; above 0, as it is half of the key."""
    divergence: float
    """Signed nats: log p(response | context) - log p(response | context without memories), summed over its tokens."""
    tokens: int
    """Of the response."""
    entry: int = 0
    """The response's place among the conversation's entries, from 0."""
    source: str = "default"
    """Who sent the trajectory."""
    response: str = ""
    """Its text."""
    context_tail: str = ""
    """The end of the context as text, for whoever reviews it."""
    context_ids: bytes = b""
    """The context with its memories, up to the opened answer, int32 bytes; give a list or array, it is packed."""
    bare_ids: bytes = b""
    """The same without memories: what is trained on by default."""
    continuation_ids: bytes = b""
    """The response as token ids, with its end token."""
    alternate: str | None = None
    """What the model answers without memories; None where nobody asked, or it failed."""
    mattered: tuple[Mattered, ...] = ()
    """The memories that mattered, heaviest first."""
    seq: int = 0
    """Its number in the store, from 1; 0 before it is stored."""
    state: State = "new"
    changes: tuple[Change, ...] = ()
    """How it came into its state, oldest first."""
    tries: int = 0
    """Cycles that trained on it, and whose version the gate turned down."""
    cycle: int = 0
    """The cycle that moved it into the weights; 0: none of sona's own did."""
    skill: str = ""
    """The skill that it was learned into there."""

    if TYPE_CHECKING:  # arrays and lists are packed on construction, which the synthesised __init__ could not say

        def __init__(  # noqa: PLR0913 - one for each field
            self,
            *,
            trajectory_id: str,
            at_ns: int,
            divergence: float,
            tokens: int,
            entry: int = ...,
            source: str = ...,
            response: str = ...,
            context_tail: str = ...,
            context_ids: TokensLike = ...,
            bare_ids: TokensLike = ...,
            continuation_ids: TokensLike = ...,
            alternate: str | None = ...,
            mattered: Sequence[Mattered] = ...,
            seq: int = ...,
            state: State = ...,
            changes: Sequence[Change] = ...,
            tries: int = ...,
            cycle: int = ...,
            skill: str = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        check_id(self.trajectory_id, "trajectory_id")
        check_id(self.source, "source")
        check_time(self.at_ns, "at_ns")
        if self.at_ns == 0:
            raise InvalidInputError("at_ns: 0; a response without a time has no key, so it can't be a candidate")
        _set(self, "divergence", check_number(self.divergence, "divergence") + 0.0)  # SQLite keeps no sign of a zero
        for name in ("tokens", "entry", "seq", "tries", "cycle"):
            check_count(getattr(self, name), name)
        for name in ("response", "context_tail", "skill"):
            check_text(getattr(self, name), name, empty=True)
        if self.alternate is not None:
            check_text(self.alternate, "alternate", empty=True)
        for name in ("context_ids", "bare_ids", "continuation_ids"):
            if len(ids := getattr(self, name)):  # nothing is left of a forgotten one
                _set(self, name, pack_tokens(ids, name))
            else:
                _set(self, name, b"")
        check_one_of(self.state, STATES, "state")
        _set(self, "mattered", tuple_of(self.mattered, Mattered, "mattered"))
        _set(self, "changes", tuple_of(self.changes, Change, "changes"))

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return Key(self.trajectory_id, self.at_ns)

    @property
    def nats_a_token(self) -> float:
        """The divergence over the response's tokens."""
        return self.divergence / max(self.tokens, 1)

    def ids(self, name: Literal["context_ids", "bare_ids", "continuation_ids"]) -> Int32:
        """Token ids, int32 (tokens,), a read-only view."""
        return np.frombuffer(getattr(self, name), dtype="<i4")

    def forgotten(self) -> Candidate:
        """Its key, state and figures alone: what is left once its trajectory is deleted."""
        empty = {"response": "", "context_tail": "", "context_ids": b"", "bare_ids": b"", "continuation_ids": b""}
        return msgspec.structs.replace(self, **empty, alternate=None, mattered=())


class Settled(Record, kw_only=True):
    """What a cycle did with an approved candidate."""

    seq: int
    state: State
    """``trained``; ``rejected``, where it can't be trained on; ``new``, for a person to look at again; ``approved``,
    where the gate turned the version down and another cycle tries."""
    note: str = ""
    skill: str = ""
    """The skill that it was learned into."""


class MemoryWeight(Record, kw_only=True):
    """What a memory was worth so far."""

    key: str
    """The memory's."""
    weight: float
    """Exponentially weighted mean of its scores, in nats."""
    last_scored_ns: int
    """When it was scored last, in nanoseconds since 1970."""
    times: int = 1
    """How often it was scored."""
    source: str = "default"
    """Whose memory it is: two sources may use one key."""

    def __post_init__(self) -> None:
        check_id(self.key, "memory key")
        check_id(self.source, "source")
        _set(self, "weight", check_number(self.weight, "weight") + 0.0)
        check_time(self.last_scored_ns, "last_scored_ns")
        check_count(self.times, "times")
