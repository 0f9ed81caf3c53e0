"""Contexts from plain conversations and from recorded trajectories, in which memories are marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sona.attribution.context import Context, Segment
from sona.checks import shown
from sona.errors import InvalidInputError
from sona.memory_spans import SYSTEM_ROLES, MemorySpan, find_spans, spans_of
from sona.types import Message, Trajectory, to_messages


def from_messages(
    messages: str | Sequence[Message | Mapping[str, Any]],
    memories: Mapping[str, str] | Sequence[MemorySpan] = (),
    *,
    times_ns: Sequence[int | None] = (),
) -> Context:
    """A context of a conversation.

    Args:
        messages: as :func:`sona.types.to_messages` takes them. Those of the system at the start are system segments;
            what follows a memory in them counts as identity.
        memories: where they lie, or key to text, to be found word for word.
        times_ns: of each message, if known.

    Raises:
        InvalidInputError: no message, a span outside the text, in an assistant's message or across another, or one
            key for two texts.
    """
    given = to_messages(messages)
    spans = find_spans(given, memories) if isinstance(memories, Mapping) else tuple(memories)
    times = [*times_ns, *[None] * len(given)]
    opening, segments = True, list[Segment]()
    for place, message in enumerate(given):
        opening = opening and message.role in SYSTEM_ROLES
        own = sorted((span for span in spans if span.message == place), key=lambda span: span.start)
        _check_spans(own, message)
        after_memory = any(segment.kind != "system" for segment in segments)
        segments += _cut(message, own, times[place], opening=opening, after_memory=after_memory)
    if lost := [span for span in spans if span.message >= len(given)]:
        raise InvalidInputError(f"memory {shown(lost[0].key)}: message {lost[0].message} of {len(given)}")
    return Context(tuple(segments))


def _check_spans(spans: Sequence[MemorySpan], message: Message) -> None:
    reached = 0
    for span in spans:
        if message.role == "assistant":
            raise InvalidInputError(f"memory {shown(span.key)}: in an assistant's message; mark it where it was given")
        if not reached <= span.start < span.end <= len(message.content):
            raise InvalidInputError(
                f"memory {shown(span.key)}: characters {span.start} to {span.end} of message {span.message}; from "
                f"{reached} to {len(message.content)} are allowed, at least one, and none of another memory"
            )
        reached = span.end


def _cut(
    message: Message, spans: Sequence[MemorySpan], at_ns: int | None, *, opening: bool, after_memory: bool
) -> Iterator[Segment]:
    """The message as segments; the first begins it, the others continue it. White space around a memory is what stands
    between it and its neighbours, so that it goes with the memory.
    """
    kind = ("identity" if after_memory else "system") if opening else message.role
    if kind in SYSTEM_ROLES and not opening:
        kind = "user"  # amid the conversation: what the host said
    extra: dict[str, Any] = {"name": message.name, "tool_calls": message.tool_calls}
    extra["tool_call_id"] = message.tool_call_id
    begins, reached = True, 0
    texts = [(span, message.content[span.start : span.end]) for span in spans]
    if spans and message.role == "tool" and spans[0].start == 0:
        yield Segment("tool", "", at_ns=at_ns, role="tool", **extra)  # it stays, empty, when the memory goes
        begins = False
    for span, text in texts:
        between = message.content[reached : span.start]
        said = between.rstrip() if between.strip() or not begins else between
        glue = between[len(said) :]
        if said:
            yield _piece(kind, said, message, at_ns, begins, extra)
            begins = False
        role, before = (message.role, None) if begins else ("", glue)
        yield Segment("memory", text, key=span.key, at_ns=at_ns, role=role, glue=before)
        begins, reached = False, span.end
        kind = "identity" if kind == "system" else kind
    if reached < len(message.content) or begins:
        yield _piece(kind, message.content[reached:], message, at_ns, begins, extra)


def _piece(
    kind: str, text: str, message: Message, at_ns: int | None, begins: bool, extra: Mapping[str, Any]
) -> Segment:
    if not begins:
        said = text.lstrip() or text
        return Segment(kind, said, at_ns=at_ns, glue=text[: len(text) - len(said)])
    return Segment(kind, text, at_ns=at_ns, role=message.role, **extra)


def from_trajectory(
    trajectory: Trajectory, memories: Mapping[str, str] | Sequence[MemorySpan] | None = None
) -> Context:
    """A context of a recorded trajectory: its messages, then its response.

    Args:
        trajectory: with messages and a response.
        memories: as for :func:`from_messages`. None: where its metadata says
            (:func:`sona.memory_spans.spans_of`). A trajectory that names in ``recalled`` what was recalled does not
            say what its text was: give the texts by their ids.

    Raises:
        InvalidInputError: it has no messages (token ids alone do not tell whose they are), or no response, or says
            nothing readable of its memories.
    """
    if not trajectory.messages:
        raise InvalidInputError(f"trajectory {trajectory.id!r}: no messages; a context is made of messages")
    if not trajectory.response:
        raise InvalidInputError(f"trajectory {trajectory.id!r}: no response; there is nothing to score")
    spans = spans_of(trajectory) if memories is None else memories
    whole = (*trajectory.messages, Message(role="assistant", content=trajectory.response))
    return from_messages(whole, spans, times_ns=[*[None] * len(trajectory.messages), trajectory.created_ns])
