"""Zstandard, behind two functions: Python has it from 3.14 on, as ``compression.zstd``."""

from __future__ import annotations

import zstandard

from sona.errors import StoreCorruptError

LEVEL = 1
"""On differences of weights, sorted by byte place, levels 3 to 9 saved at most 1 % more, 3 to 7 times as slowly."""


def compress(data: bytes) -> bytes:
    """``data`` as one frame that tells its size."""
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)


def decompress(frame: bytes, most: int) -> bytes:
    """What :func:`compress` was given.

    Raises:
        StoreCorruptError: it is no such frame, or tells of more than ``most`` bytes, for which no memory is taken.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= most:
            raise StoreCorruptError(f"a compressed block of {size} bytes; at most {most} are in one, so it is damaged")
        data: bytes = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreCorruptError(f"a compressed block is damaged: {error}") from error
    return data
