"""Where the tensors lie in a safetensors file.

The format (github.com/huggingface/safetensors, "Format"): the length of the header in 8 bytes, little-endian; the
header, a JSON object of ``dtype``, ``shape`` and ``data_offsets`` by name, and texts under ``__metadata__``; the
tensors, end to end without a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from sona.errors import InvalidInputError

Read = Callable[[int, int], bytes]
"""Gives the bytes of a file from one place to another."""

_LENGTH_BYTES = 8
_WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
"""Bytes of a number. Of types that are not listed, such as those of less than a byte, the size is not checked."""


class Stretch(NamedTuple):
    """One tensor's bytes in a file."""

    name: str
    begin: int
    end: int
    """From the file's start."""
    width: int
    """Bytes of a number; 1 where they are not known."""


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def stretches(read: Read, size: int) -> tuple[bytes, list[Stretch]]:
    """The header of a file of ``size`` bytes, with its length before it, and the tensors in the order that they lie in.

    Raises:
        InvalidInputError: it is no safetensors file: cut short, a header that is none, tensors that overlap, leave a
            gap or are of another size than their shape.
    """
    length = int.from_bytes(read(0, min(_LENGTH_BYTES, size)), "little")
    start = _LENGTH_BYTES + length
    if size < start:
        raise InvalidInputError(f"safetensors: {size} bytes, too short for a header of {length}; it is cut, or no such")
    header = read(0, start)
    entries = _entries(header[_LENGTH_BYTES:])
    found = [_stretch(name, entry, start) for name, entry in entries.items()]
    found.sort(key=lambda one: (one.begin, one.end, one.name))
    at = start
    for one in found:
        if one.begin != at or one.end < at:
            raise InvalidInputError(f"safetensors: {one.name!r} lies at {one.begin} to {one.end}; {at} was to come")
        at = one.end
    if at != size:
        raise InvalidInputError(f"safetensors: {size} bytes, its tensors end at {at}; it is cut, or something follows")
    return header, found


def metadata_of(header: bytes) -> dict[str, str]:
    """The texts under ``__metadata__``, of a header as :func:`stretches` gives it; none where there are none.

    Raises:
        InvalidInputError: it is no such header.
    """
    try:
        raw = msgspec.json.decode(header[_LENGTH_BYTES:], type=dict[str, msgspec.Raw])
        return msgspec.json.decode(raw["__metadata__"], type=dict[str, str]) if "__metadata__" in raw else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"safetensors: its header is none: {error}") from error


def _entries(header: bytes) -> dict[str, _Entry]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"safetensors: its header is none: {error}") from error


def _stretch(name: str, entry: _Entry, start: int) -> Stretch:
    begin, end = entry.data_offsets
    width = _WIDTHS.get(entry.dtype)
    if width is not None and end - begin != width * math.prod(entry.shape):
        raise InvalidInputError(f"safetensors: {name!r} is {entry.dtype} {entry.shape} in {end - begin} bytes")
    return Stretch(name, start + begin, start + end, width or 1)
