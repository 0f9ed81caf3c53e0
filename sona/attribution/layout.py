"""How a context's segments become the messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sona.attribution.context import CONVERSATION, MAY_BE_EMPTY, NOTHING, Context, Drop, Segment
from sona.types import Message

BLANK_LINE = "\n\n"
TAKES_MEMORIES = ("user", "tool")


@dataclass(frozen=True)
class Part:
    """A segment inside a message."""

    index: int
    """Its place in the context."""
    glue: str
    """What stands before it, unless it is the message's first."""
    start: int = 0
    end: int = 0
    """Where its text lies in the message's content, in characters."""


@dataclass(frozen=True)
class Laid:
    """One message, and what it is made of."""

    message: Message
    parts: tuple[Part, ...]


def lay_out(context: Context, drop: Drop = NOTHING) -> tuple[Laid, ...]:
    """The messages of what remains after ``drop``. How segments share messages follows from the full context, so that
    what is dropped moves nothing else; a message of which nothing is left, or only white space, is gone.
    """
    kept = set(context.kept(drop))
    laid = []
    for group in _groups(context):
        parts = [part for part in group if part.index in kept]
        if parts == group or any(_says(context.segments[part.index]) for part in parts):
            laid.append(_joined(context, group, parts))
    return tuple(laid)


def _says(segment: Segment) -> bool:
    return bool(segment.text.strip()) or segment.kind in MAY_BE_EMPTY


def _groups(context: Context) -> list[list[Part]]:
    """The parts of each message of the full context."""
    groups: list[list[Part]] = []
    loose: list[Part] = []  # memories that wait for the message after them
    for index, segment in enumerate(context.segments):
        if _is_loose(context, index):
            loose.append(Part(index, BLANK_LINE))
            continue
        if loose and not _continues(context, index) and segment.kind in TAKES_MEMORIES:
            groups.append([*loose, Part(index, BLANK_LINE)])
        else:
            _settle(context, groups, loose)
            if _continues(context, index):
                groups[-1].append(Part(index, BLANK_LINE if segment.glue is None else segment.glue))
            else:
                groups.append([Part(index, "")])
        loose = []
    _settle(context, groups, loose)
    return groups


def _is_loose(context: Context, index: int) -> bool:
    segment = context.segments[index]
    in_conversation = context.places[index] == CONVERSATION
    return segment.kind == "memory" and in_conversation and segment.glue is None and not segment.role


def _continues(context: Context, index: int) -> bool:
    """Whether it goes into the message of the segment before it."""
    segment = context.segments[index]
    if segment.glue is not None:
        return index > 0
    return index > 0 and context.places[index] < CONVERSATION and not segment.role


def _settle(context: Context, groups: list[list[Part]], loose: list[Part]) -> None:
    """Memories with no message after them that takes them go to the end of that before them, or alone."""
    if not loose:
        return
    if groups and _role(context.segments, groups[-1], context) in TAKES_MEMORIES:
        groups[-1].extend(loose)
    else:
        groups.append(list(loose))


def _role(segments: Sequence[Segment], group: Sequence[Part], context: Context) -> str:
    if named := segments[group[0].index].role:
        return named
    for part in group:
        kind = segments[part.index].kind
        if kind != "memory":
            return kind if context.places[part.index] == CONVERSATION else "system"
    return "user" if context.places[group[0].index] == CONVERSATION else "system"


def _joined(context: Context, group: Sequence[Part], parts: Sequence[Part]) -> Laid:
    content, placed = "", list[Part]()
    for part in parts:
        content += part.glue if placed else ""
        start = len(content)
        content += context.segments[part.index].text
        placed.append(replace(part, start=start, end=len(content)))
    role = _role(context.segments, group, context)
    speaker = next((s for p in group if (s := context.segments[p.index]).kind != "memory"), None)
    message = Message(
        role=role,
        content=content,
        name=speaker.name if speaker else None,
        tool_calls=speaker.tool_calls if speaker else (),
        tool_call_id=speaker.tool_call_id if speaker else None,
    )
    return Laid(message, tuple(placed))
