"""What a model was shown: segments in order, some of which are memories that may be left out.

system ▶ identity (with memories) ▶ journal ▶ conversation: user, assistant, tool (with memories)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import msgspec

from sona.checks import check_count, check_id, check_one_of, check_text, check_time, shown, tuple_of
from sona.errors import InvalidInputError
from sona.types import ROLES, Record, ToolCall

Kind = Literal["system", "identity", "journal", "memory", "user", "assistant", "tool"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PLACES = {"system": 0, "identity": 1, "journal": 2, "user": 3, "assistant": 3, "tool": 3}
CONVERSATION = 3
MAY_BE_EMPTY = ("assistant", "tool")  # an answer that only calls tools, a tool's empty result


class Segment(Record):
    """A stretch of what a model was shown.

    Raises:
        InvalidInputError: any field outside what its description allows.
    """

    kind: str
    """One of ``system``, ``identity``, ``journal``, ``memory``, ``user``, ``assistant``, ``tool``."""
    text: str = ""
    """May be empty only for an ``assistant`` and a ``tool``."""
    key: str | None = None
    """A memory's own name; of nothing else."""
    at_ns: int | None = None
    """When it was said, in nanoseconds since 1970; None: not known."""
    role: str = ""
    """Of the message that it begins, where that is another than the kind's own (a memory at the start of a user's
    message, a system message amid the conversation). A system message that names it stands alone."""
    glue: str | None = None
    """What stands between it and the segment before it in the same message; None: it begins a message. System,
    identity, journal and their memories that name no role become one system message, a blank line between them; a
    memory in the conversation goes into the user's or tool's message after it, else into that before it."""
    name: str | None = None
    """Who speaks, where the role alone does not say it."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The id of the call that a tool's segment answers."""

    def __post_init__(self) -> None:
        check_one_of(self.kind, KINDS, "segment kind")
        check_text(self.text, f"{self.kind} segment", empty=self.kind in MAY_BE_EMPTY or self.glue is not None)
        self._check_key()
        if self.at_ns is not None:
            check_time(self.at_ns, "segment at_ns")
        if self.role:
            check_one_of(self.role, ROLES, "segment role")
        if self.glue is not None:
            check_text(self.glue, "segment glue", empty=True)
            if self.kind == "assistant":
                raise InvalidInputError("segment glue: an assistant's segment is a whole message; leave glue out")
        msgspec.structs.force_setattr(self, "tool_calls", tuple_of(self.tool_calls, ToolCall, "tool_calls"))

    def _check_key(self) -> None:
        if (self.key is None) == (self.kind == "memory"):
            raise InvalidInputError(
                f"segment key: {shown(self.key)} of a {self.kind}; every memory has a key, and nothing else has one"
            )
        if self.key is not None:
            check_id(self.key, "segment key")


class Drop(Record, kw_only=True):
    """What to leave out of a context."""

    keys: tuple[str, ...] = ()
    """Memories, wherever they stand; a key that is not there drops nothing."""
    indices: tuple[int, ...] = ()
    """Segments of identity or conversation, by their place in the context from 0."""
    memories: bool = False
    """All of them."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "keys", tuple_of(self.keys, str, "drop keys"))
        msgspec.structs.force_setattr(self, "indices", tuple_of(self.indices, int, "drop indices"))


NOTHING = Drop()
ALL_MEMORIES = Drop(memories=True)


@dataclass(frozen=True)
class Context:
    """Segments in the order that a model reads them.

    A memory lies in identity where no journal or conversation has begun before it, else in the conversation. The same
    memory may surface several times: with the same key and the same text.

    Raises:
        InvalidInputError: no segment, a wrong order, or one key for two texts.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple_of(self.segments, Segment, "segments"))
        if not self.segments:
            raise InvalidInputError("context: no segments; give at least one")
        self._check_keys()
        for _ in self._places():
            pass

    def _check_keys(self) -> None:
        texts: dict[str, str] = {}
        for segment in self.segments:
            if segment.key is not None and texts.setdefault(segment.key, segment.text) != segment.text:
                raise InvalidInputError(
                    f"context: two memories with other texts have the key {shown(segment.key)}; give each its own"
                )

    def _places(self) -> Iterator[int]:
        reached = 0
        for index, segment in enumerate(self.segments):
            place = self._place_of_memory(segment, reached) if segment.kind == "memory" else PLACES[segment.kind]
            if place < reached:
                raise InvalidInputError(
                    f"context: segment {index} is a {segment.kind} after a {self.segments[index - 1].kind}; the order "
                    "is system, identity, journal, conversation"
                )
            if segment.glue is not None and (not index or self.segments[index - 1].kind == "assistant"):
                raise InvalidInputError(
                    f"context: segment {index} has glue but no message to go into; an assistant's takes nothing more"
                )
            reached = place
            yield place

    @staticmethod
    def _place_of_memory(segment: Segment, reached: int) -> int:
        in_identity = reached <= PLACES["identity"] and segment.role in ("", "system", "developer")
        return PLACES["identity"] if in_identity else CONVERSATION

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Of each segment: 0 system, 1 identity, 2 journal, 3 conversation."""
        return tuple(self._places())

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The memories' keys, each once, in the order in which they first surface."""
        return tuple(dict.fromkeys(segment.key for segment in self.segments if segment.key is not None))

    @cached_property
    def responses(self) -> tuple[int, ...]:
        """Which segments are the assistant's."""
        return tuple(index for index, segment in enumerate(self.segments) if segment.kind == "assistant")

    def first_of(self, key: str) -> int | None:
        """The segment with which a memory first surfaces; None: it is not there."""
        return next((index for index, segment in enumerate(self.segments) if segment.key == key), None)

    def kept(self, drop: Drop = NOTHING) -> tuple[int, ...]:
        """The segments that remain, by their indices; system and journal always do.

        Raises:
            InvalidInputError: an index of ``drop`` is outside the context, or of its system or journal.
        """
        for index in drop.indices:
            check_count(index, "drop index", len(self.segments) - 1)
            if self.segments[index].kind in ("system", "journal"):
                raise InvalidInputError(
                    f"drop index: {index} is of the {self.segments[index].kind}; only identity and conversation can go"
                )
        gone = set(drop.indices)
        for index, segment in enumerate(self.segments):
            if segment.key is not None and (drop.memories or segment.key in drop.keys):
                gone.add(index)
        return tuple(index for index in range(len(self.segments)) if index not in gone)
