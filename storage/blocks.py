"""What changed between two states of a piece of memory: whole blocks, as exclusive or, compressed.

Of numbers that moved a little, sign, exponent and the first bits of the mantissa are the same, so their exclusive or
begins with zeros, in the same byte of each number. Sorted by these places (all first bytes, then all second ones) it
compresses better: steps of AdamW on float32 weights to .65 of their size rather than .73, bfloat16 to .24, not .30.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.errors import StoreCorruptError
from sona.storage.compression import compress, decompress

BLOCK = 4096
"""Bytes that are kept or left out together."""
SPAN = 1024 * BLOCK
"""Bytes that are compared and compressed at once, which bounds the memory that it takes."""

_Bytes = npt.NDArray[np.uint8]


def encode(old: bytes | None, new: bytes, width: int) -> tuple[bytes, int]:
    """What makes ``new`` of ``old``, and how many blocks of it differ; nothing and 0 where they are equal.

    Args:
        old: as long as ``new``, or None for zeros.
        new: at most a span.
        width: bytes of a number, of which ``new`` is a multiple.
    """
    changes = np.frombuffer(new, np.uint8)
    if old is not None:
        changes = changes ^ np.frombuffer(old, np.uint8)
    if not len(changes):
        return b"", 0
    changed = np.bitwise_or.reduceat(changes, np.arange(0, len(changes), BLOCK)) != 0  # (blocks,)
    count = int(changed.sum())
    if not count:
        return b"", 0
    picked = changes if count == len(changed) else changes[_mask(changed, len(changes))]
    planes = picked.reshape(-1, width).T  # (width, numbers)
    return compress(np.packbits(changed).tobytes() + planes.tobytes()), count


def decode(frame: bytes, old: bytes | None, size: int, width: int) -> bytes:
    """The ``new`` of ``size`` bytes that :func:`encode` was given.

    Raises:
        StoreCorruptError: the frame is damaged, or of other sizes.
    """
    if not frame:
        return bytes(size) if old is None else old
    blocks = -(-size // BLOCK)
    head = -(-blocks // 8)
    data = np.frombuffer(decompress(frame, head + size), np.uint8)
    changed = np.unpackbits(data[:head]).astype(bool)[:blocks]
    is_all = len(changed) == blocks and bool(changed.all())  # as dense updates do: then no byte is picked by itself
    mask = slice(None) if is_all else _mask(changed, size)
    new: _Bytes = np.zeros(size, np.uint8) if old is None else np.frombuffer(old, np.uint8).copy()
    planes = data[head:]
    if len(changed) != blocks or len(new[mask]) != len(planes) or len(planes) % width:
        raise StoreCorruptError(f"changed blocks: {len(planes)} bytes, not those of the blocks that are named")
    new[mask] ^= planes.reshape(width, -1).T.reshape(-1)
    return new.tobytes()


def _mask(changed: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    return np.repeat(changed, BLOCK)[:size]
