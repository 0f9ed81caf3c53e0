"""What records take in memory, told without making anything: what waits, and what is open, is bounded by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from sys import getsizeof

from sona.types import Feedback, Message, Step, Trajectory

# What the objects of a record take beside their texts and bytes (test_size_of_is_about_what_a_record_takes).
RECORD_BYTES = 500
PART_BYTES = 350
LARGE_BYTES = 4096
INT_BYTES = 36  # of an int in a list


def size_of(record: Trajectory | Feedback, payload: bytes | bytearray | None = None) -> int:
    """About the bytes that ``record`` takes in memory; told at once where its stored form is at hand.

    Of one whose stored form takes up to 4 kB, texts are taken for ASCII: with an emoji they take up to 12 kB more.
    """
    parts = 0
    if isinstance(record, Trajectory):
        parts = len(record.messages) + len(record.steps) + len(record.metadata) + len(record.recalled)
    size = RECORD_BYTES + PART_BYTES * parts
    if payload is None:
        return size + _content_bytes(record)
    # Hosts count the microseconds: all texts of a small record would take .15 of one, where record() takes 5.
    if len(payload) > LARGE_BYTES:
        size += _beyond_all(record)
    return size + len(payload)


def _beyond_all(record: Trajectory | Feedback) -> int:
    """What its texts take beside their UTF-8: one emoji makes each character of a text four bytes."""
    return sum(getsizeof(text) - len(text) for text in _texts(record) if not text.isascii())


def _texts(record: Trajectory | Feedback) -> Iterator[str]:
    """The texts of any length."""
    if isinstance(record, Feedback):
        yield record.comment
        return
    yield record.response
    for message in record.messages:
        yield message.content
        for call in message.tool_calls:
            yield call.arguments
    for step in record.steps:
        yield step.content
    yield from record.metadata.values()


def size_of_answer(text: str, *ids: bytes | Sequence[int] | None) -> int:
    """What an answer and its token ids take, packed or in lists of ints."""
    size = getsizeof(text)
    for one in ids:
        if one is not None:
            size += len(one) if isinstance(one, bytes) else INT_BYTES * len(one)
    return size


def size_of_messages(messages: Sequence[Message]) -> int:
    """What a conversation takes."""
    return sum(PART_BYTES + _message_bytes(message) for message in messages)


def size_of_step(step: Step) -> int:
    """What one step adds to :func:`size_of` its trajectory."""
    return PART_BYTES + getsizeof(step.content)


def size_of_ids(ids: Sequence[str]) -> int:
    """What the ids of what was recalled add to :func:`size_of` a trajectory."""
    return sum(PART_BYTES + getsizeof(one) for one in ids)


def _content_bytes(record: Trajectory | Feedback) -> int:
    size = sum(map(getsizeof, _texts(record)))
    if isinstance(record, Trajectory):
        size += sum(len(packed) for packed in (record.embedding, record.prompt_ids, record.response_ids) if packed)
        size += PART_BYTES * sum(len(message.tool_calls) for message in record.messages)
    return size


def _message_bytes(message: Message) -> int:
    size = getsizeof(message.content)
    for call in message.tool_calls:
        size += PART_BYTES + getsizeof(call.arguments)
    return size
