"""Where each segment lies in a rendered conversation.

Chat templates trim, cut and move what they are given, so a segment's place can't be worked out, nor may it be looked
for by its text, which may stand anywhere. Instead marks that no text contains are put at its borders, the template
renders that too, and the marks are taken out again. Where a template treats marked text otherwise than unmarked, which
shows in the comparison with the plain rendering, a stand-in takes one message's place at a time, and what differs from
the plain rendering is that message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sona.attribution.layout import Laid
from sona.errors import ModelError
from sona.types import Message

CharRange = tuple[int, int]
Render = Callable[[tuple[Message, ...]], str]
OPENS_THINKING, CLOSES_THINKING = "<think>", "</think>"
MARKS = tuple(chr(code) for code in range(0xE100, 0xE140))  # private use: Unicode gives them no meaning
STAND_IN = "\u241e\u2424\u241e"  # symbols: nothing that a template would make upper case or trim


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    segments: Mapping[int, CharRange]
    """Characters of each segment, by its index in the context; of a response without its thinking. One of which
    nothing is left is not there."""
    said: tuple[CharRange, ...]
    """Characters that were given as text, in order: only outside them does the template speak."""


def locate(laid: Sequence[Laid], render: Render) -> Rendered:
    """Render the messages and find every segment.

    Raises:
        ModelError: the template refuses the messages, or a response can't be found in what it makes of them.
    """
    messages = tuple(one.message for one in laid)
    text = render(messages)
    found = dict[int, CharRange]()
    by_stand_in = [place for place, one in enumerate(laid) if one.message.tool_calls]
    marked = _by_marks(laid, by_stand_in, text, render)
    if marked is None:
        by_stand_in = list(range(len(laid)))
    else:
        found |= marked
    for place in by_stand_in:
        found |= _by_stand_in(laid, place, text, render)
    said = _merged(chars for chars in found.values())
    kept = {}
    for one in laid:
        for part in one.parts:
            if part.index in found:
                start, end = found[part.index]
                if one.message.role == "assistant":
                    first, last = spoken(text[start:end])
                    start, end = start + first, start + last
                if start < end:
                    kept[part.index] = (start, end)
    return Rendered(text, kept, said)


def spoken(text: str) -> CharRange:
    """Which characters of an answer are no thinking, without white space around them."""
    start = text.rfind(CLOSES_THINKING) + len(CLOSES_THINKING) if CLOSES_THINKING in text else 0
    end = text.find(OPENS_THINKING, start)  # thinking that was cut off
    visible = text[start:] if end < 0 else text[start:end]
    start += len(visible) - len(visible.lstrip())
    return start, start + len(visible.strip())


def _merged(ranges: Iterator[CharRange]) -> tuple[CharRange, ...]:
    return tuple(sorted(chars for chars in ranges if chars[0] < chars[1]))


def _by_marks(laid: Sequence[Laid], left_out: Sequence[int], text: str, render: Render) -> dict[int, CharRange] | None:
    """All segments but those of the messages ``left_out``; None where the template treats marked text otherwise."""
    mark = next((mark for mark in MARKS if mark not in text), None)
    if mark is None:
        return None
    borders: list[tuple[int, str]] = []  # of each mark its segment, and what stands between it and the next
    messages = []
    for place, one in enumerate(laid):
        content = one.message.content
        if place in left_out or not content.strip():
            messages.append(one.message)
            continue
        marked, reached = "", 0
        for part in one.parts:
            start, end = _inner(content, part.start, part.end, one.message.role)
            if start < end:
                marked += content[reached:start] + mark + content[start:end] + mark
                borders.append((part.index, content[start:end]))
                reached = end
        messages.append(msgspec.structs.replace(one.message, content=marked + content[reached:]))
    pieces = render(tuple(messages)).split(mark)
    inside = pieces[1::2]
    if "".join(pieces) != text or inside != [piece for _, piece in borders]:
        return None
    found, reached = dict[int, CharRange](), 0
    for place, piece in enumerate(pieces):
        if place % 2:
            found[borders[place // 2][0]] = (reached, reached + len(piece))
        reached += len(piece)
    return found


def _inner(content: str, start: int, end: int, role: str) -> CharRange:
    """A segment's characters without the white space that a template may trim, and without thinking."""
    if role == "assistant":
        return spoken(content)
    visible = content[start:end]
    first = start + len(visible) - len(visible.lstrip())
    return first, first + len(visible.strip())


def _by_stand_in(laid: Sequence[Laid], place: int, text: str, render: Render) -> dict[int, CharRange]:
    """The segments of one message: what differs from the plain rendering when other words stand in its place."""
    one = laid[place]
    found = dict[int, CharRange]()
    for part in one.parts:
        content = one.message.content
        words = STAND_IN if one.message.tool_calls else content[: part.start] + STAND_IN + content[part.end :]
        other = msgspec.structs.replace(one.message, content=words, tool_calls=())
        messages = [laid[n].message if n != place else other for n in range(len(laid))]
        before, there, after = render(tuple(messages)).rpartition(STAND_IN)
        if not there:
            if one.message.role == "assistant":
                raise ModelError(
                    f"the model's chat template does not show the answer of message {place}; it can't be scored"
                )
            continue
        start, end = _common(text, before), len(text) - _common(text[::-1], after[::-1])
        found[part.index] = (start, max(start, end))  # the same characters before and behind: both would claim them
    return found


def _common(one: str, other: str) -> int:
    """How many first characters are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
