"""Memories within a conversation: where they stand, what it is without them, and with more of them.

A memory is a text that a host puts into a prompt, and that was no part of the question. The model reads it; what a
question is like, which adapter answers it, and what two questions have in common is asked of the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sona.checks import check_count, check_id, check_text, shown
from sona.errors import InvalidInputError
from sona.types import Message, Record, Trajectory

RESERVED = "sona."
"""How keys of a trajectory's metadata begin that are ours."""
METADATA_KEY = f"{RESERVED}memories"
"""Under it a trajectory's metadata says where its memories lie: the JSON of :func:`spans_as_text`."""
SYSTEM_ROLES = ("system", "developer")
MOST_SPANS = 1000
"""In one conversation."""


class MemorySpan(Record):
    """Where a memory lies in a conversation."""

    key: str
    """The memory's own name."""
    message: int
    """Which message, from 0; no assistant's."""
    start: int
    end: int
    """Characters of its content, the last not included."""

    def __post_init__(self) -> None:
        check_id(self.key, "memory key")
        check_count(self.message, "memory message")
        check_count(self.start, "memory start")
        check_count(self.end, "memory end")


def find_spans(messages: Sequence[Message], memories: Mapping[str, str]) -> tuple[MemorySpan, ...]:
    """Where the texts of ``memories`` (key to text) stand, word for word, in what is not the assistant's: wherever
    they do. A key whose text is nowhere has no span; where two texts share characters, the longer one has them.

    Raises:
        InvalidInputError: a memory without a text, or over :data:`MOST_SPANS` of them.
    """
    taken: list[list[MemorySpan]] = [[] for _ in messages]  # of each message, by their beginnings
    for key, text in sorted(memories.items(), key=lambda item: -len(item[1])):
        check_text(text, f"memory {shown(key)}")
        for place, message in enumerate(messages):
            if message.role != "assistant":
                _take(taken[place], MemorySpan(key, place, 0, len(text)), text, message.content)
    return tuple(span for spans in taken for span in spans)


def _take(taken: list[MemorySpan], like: MemorySpan, text: str, content: str) -> None:
    """Put in where the text stands, and nothing that is taken does."""
    start = content.find(text)
    while start >= 0:
        end = start + len(text)
        after = bisect_left(taken, end, key=lambda span: span.start)  # the first that begins behind it
        if after and taken[after - 1].end > start:
            start = content.find(text, taken[after - 1].end)
            continue
        taken.insert(after, MemorySpan(like.key, like.message, start, end))
        if len(taken) > MOST_SPANS:
            raise InvalidInputError(
                f"memory {shown(like.key)}: more than {MOST_SPANS} memories stand in message {like.message}; a text "
                "that says more stands there less often"
            )
        start = content.find(text, end)


def with_memories(messages: Sequence[Message], memories: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation as a model is to read it: texts that stand nowhere in it yet are put at the end of the system's
    message that it begins with, or into one of their own, a blank line between them.

    Raises:
        InvalidInputError: a memory without a text, or a key that is no name.
    """
    for key, text in memories.items():
        check_id(key, "memory key")
        check_text(text, f"memory {shown(key)}")
    there = {span.key for span in find_spans(messages, memories)}
    texts = [text for key, text in memories.items() if key not in there]
    if not texts:
        return tuple(messages)
    if messages and messages[0].role in SYSTEM_ROLES:
        first = messages[0]
        return msgspec.structs.replace(first, content="\n\n".join([first.content, *texts])), *messages[1:]
    return Message(role="system", content="\n\n".join(texts)), *messages


def without_memories(messages: Sequence[Message], spans: Sequence[MemorySpan]) -> tuple[Message, ...]:
    """The conversation without what lies in ``spans``, and the white space before each, or where it begins a message
    the white space after it; a message of which only white space remains goes with it, unless it is a tool's, or all
    would.
    """
    kept: list[Message] = []
    by_message: dict[int, list[MemorySpan]] = {}
    for span in spans:
        by_message.setdefault(span.message, []).append(span)
    for place, message in enumerate(messages):
        own = _within(message.content, by_message.get(place, ()))
        content = message.content
        for span in reversed(own):
            content = _joined(content[: span.start].rstrip(), content[span.end :])
        if own and not content.strip() and message.role != "tool":
            continue
        kept.append(msgspec.structs.replace(message, content=content) if own else message)
    return tuple(kept) or tuple(messages)


def _within(content: str, spans: Sequence[MemorySpan]) -> list[MemorySpan]:
    """Those that lie in a text and in none before them; whoever wrote the others meant another text."""
    found: list[MemorySpan] = []
    for span in sorted(spans, key=lambda span: span.start):
        if (found[-1].end if found else 0) <= span.start < span.end <= len(content):
            found.append(span)
    return found


def _joined(before: str, after: str) -> str:
    return before + after if before else after.lstrip()


class Shown(NamedTuple):
    """A conversation with memories, as a model reads it."""

    messages: tuple[Message, ...]
    spans: tuple[MemorySpan, ...]
    question: tuple[Message, ...]
    """The same without them."""

    @property
    def metadata(self) -> dict[str, str]:
        """What a trajectory says of it."""
        return {METADATA_KEY: spans_as_text(self.spans)} if self.spans else {}


def show(messages: Sequence[Message], memories: Mapping[str, str] | None) -> Shown:
    """``messages`` with ``memories`` (key to text), which stand in them or are put in: see :func:`with_memories`.

    Raises:
        InvalidInputError: as there; or they are no mapping.
    """
    if memories is not None and not isinstance(memories, Mapping):
        raise InvalidInputError(
            f"memories: a {type(memories).__name__}; texts by names of yours are allowed, such as {{'note': 'The ...'}}"
        )
    if not memories:
        return Shown(tuple(messages), (), tuple(messages))
    whole = with_memories(messages, memories)
    spans = find_spans(whole, memories)
    return Shown(whole, spans, without_memories(whole, spans))


def spans_as_text(spans: Sequence[MemorySpan]) -> str:
    """For a trajectory's metadata, under :data:`METADATA_KEY`."""
    return msgspec.json.encode(list(spans)).decode()


def spans_of(trajectory: Trajectory) -> tuple[MemorySpan, ...]:
    """Where a recorded trajectory says that its memories lie; () where it says nothing.

    Raises:
        InvalidInputError: what it says is no list of spans.
    """
    text: Any = trajectory.metadata.get(METADATA_KEY)
    if text is None:
        return ()
    try:
        return tuple(msgspec.json.decode(text, type=list[MemorySpan]))
    except (msgspec.DecodeError, InvalidInputError) as error:
        raise InvalidInputError(
            f"trajectory {trajectory.id!r}: metadata[{METADATA_KEY!r}] is no list of memory spans: {error}"
        ) from error


def question_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """Its messages without its memories; all of them where what it says of these can't be read."""
    try:
        spans = spans_of(trajectory)
    except InvalidInputError:  # a host's own use of that key
        return trajectory.messages
    return without_memories(trajectory.messages, spans) if spans else trajectory.messages
