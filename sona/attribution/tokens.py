"""A context as token ids, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sona.attribution.context import CONVERSATION, NOTHING, Context, Drop
from sona.attribution.layout import lay_out
from sona.attribution.regions import CharRange, locate
from sona.attribution.scorer import Passage, Range
from sona.checks import Int32
from sona.errors import ModelError
from sona.ports import Spelled
from sona.types import Message


class Codec(Protocol):
    """The model's chat template and tokenizer. Safe to call from several threads."""

    def render_closed(self, messages: Sequence[Message]) -> str:
        """The conversation as the text that the model reads, no answer opened at its end."""

    def spell_out(self, text: str, said: Sequence[CharRange]) -> Spelled:
        """A rendered conversation as tokens; in the characters of ``said`` a special token's text is only text."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A context, or what is left of it, as the model reads it."""

    ids: Int32
    """int32 (tokens,)"""
    responses: Mapping[int, Range]
    """Tokens of each response, without its thinking, by its segment's index; one without such tokens is not there."""
    memories: Mapping[int, Range]
    """Tokens of each memory, by its segment's index."""
    head: int
    """Tokens up to the end of system, identity and journal."""

    def chosen(self, responses: Collection[int] | None = None) -> list[int]:
        """Those of these responses (None: of all) that are there, in order."""
        return sorted(index for index in self.responses if responses is None or index in responses)

    def passage(self, responses: Collection[int] | None = None) -> Passage:
        """These responses to be scored (None: all), as far as they are there; nothing after the last one is needed."""
        ranges = tuple(self.responses[index] for index in self.chosen(responses))
        return Passage(self.ids[: ranges[-1][1] if ranges else 0], ranges)


def encode(context: Context, codec: Codec, drop: Drop = NOTHING) -> Encoded:
    """Token ids of what remains after ``drop``, rendered anew: what the model would truly have read.

    Raises:
        ModelError: the template refuses what remains, or hides where a response lies.
        InvalidInputError: see :meth:`Context.kept`.
    """
    laid = lay_out(context, drop)
    if not laid:
        return Encoded(np.zeros(0, dtype=np.int32), {}, {}, 0)
    rendered = locate(laid, codec.render_closed)
    spelled = codec.spell_out(rendered.text, rendered.said)
    responses, memories, head = dict[int, Range](), dict[int, Range](), 0
    for index, chars in rendered.segments.items():
        if (found := tokens_of(spelled, chars)) is None:
            continue
        if context.segments[index].kind == "assistant":
            responses[index] = found
        elif context.segments[index].kind == "memory":
            memories[index] = found
        if context.places[index] < CONVERSATION:
            head = max(head, found[1])
    _check_apart(responses)
    return Encoded(spelled.ids, responses, memories, head)


def tokens_of(spelled: Spelled, chars: CharRange) -> Range | None:
    """The tokens that stand, at least in part, for these characters; None: there are none."""
    start, end = chars
    touching = np.flatnonzero((spelled.ends > start) & (spelled.starts < end) & (spelled.ends > spelled.starts))
    if not len(touching) or touching[-1] < 1:
        return None
    return max(1, int(touching[0])), int(touching[-1]) + 1  # nothing foretells token 0


def _check_apart(responses: Mapping[int, Range]) -> None:
    reached = 0
    for index in sorted(responses):
        start, end = responses[index]
        if start < reached:
            raise ModelError(
                f"the model's chat template puts the response of segment {index} into the one before it; its contexts "
                "can't be scored"
            )
        reached = end
