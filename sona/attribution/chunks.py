"""A long context as several: each the fixed beginning, and a stretch of the conversation that ends with a response.

The borders are those of the full context, whatever is dropped: a variant's chunk holds the same responses as the
whole's. A memory in the conversation is seen by the responses of its own chunk alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sona.attribution.context import CONVERSATION, Context, Drop
from sona.attribution.tokens import Codec, Encoded, encode
from sona.errors import InvalidInputError


@dataclass(frozen=True)
class Chunk:
    """Some of a context's segments, as a context."""

    context: Context
    indices: tuple[int, ...]
    """Of each segment its place in the full context."""

    @property
    def responses(self) -> tuple[int, ...]:
        """Which segments of the full context are responses here."""
        return tuple(self.indices[index] for index in self.context.responses)

    def encode(self, codec: Codec, drop: Drop) -> Encoded:
        """As :func:`sona.attribution.tokens.encode`; ``drop``, responses and memories by their indices in the full
        context.
        """
        found = encode(self.context, codec, self._own(drop))
        responses = {self.indices[index]: tokens for index, tokens in found.responses.items()}
        memories = {self.indices[index]: tokens for index, tokens in found.memories.items()}
        return Encoded(found.ids, responses, memories, found.head)

    def holds(self, drop: Drop) -> bool:
        """Whether there is something of it to drop here."""
        return len(self.context.kept(self._own(drop))) < len(self.indices)

    def _own(self, drop: Drop) -> Drop:
        """The drop, of the full context, with this one's indices."""
        own = {index: place for place, index in enumerate(self.indices)}
        return Drop(
            keys=drop.keys, indices=tuple(own[index] for index in drop.indices if index in own), memories=drop.memories
        )


def chunks_of(context: Context, whole: Encoded, chunk_tokens: int) -> tuple[Chunk, ...]:
    """The context in chunks of about ``chunk_tokens``: more only where a single turn is longer.

    Args:
        context: the full one.
        whole: it as tokens, nothing dropped.
        chunk_tokens: at least 1.
    """
    if chunk_tokens < 1:
        raise InvalidInputError(f"chunk_tokens: {chunk_tokens}; at least 1 is allowed")
    if len(whole.ids) <= chunk_tokens:
        return (Chunk(context, tuple(range(len(context.segments)))),)
    head = [index for index, place in enumerate(context.places) if place < CONVERSATION]
    chunks, first = [], len(head)
    for last in _cuts(whole, chunk_tokens):
        indices = (*head, *range(first, last + 1))
        chunks.append(Chunk(Context(tuple(context.segments[index] for index in indices)), indices))
        first = last + 1
    return tuple(chunks)


def _cuts(whole: Encoded, chunk_tokens: int) -> Iterator[int]:
    """The response that ends each chunk; what follows the last of all is in none, for it changes no response."""
    begin, last = whole.head, None
    for index in sorted(whole.responses):
        end = whole.responses[index][1]
        if last is not None and whole.head + end - begin > chunk_tokens:
            yield last
            begin = whole.responses[last][1]
        last = index
    if last is not None:
        yield last
