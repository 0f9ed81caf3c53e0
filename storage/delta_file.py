"""One checkpoint as a file: what changed since the one before, or all of it.

::

    "SONADLT1"
    frames            of the spans of each tensor, those that changed (blocks.py), one after the other
    manifest          msgpack, compressed
    its length        8 bytes, little-endian
    SHA-256           of all that is before it
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from sona.errors import StoreCorruptError
from sona.storage.blocks import SPAN, decode
from sona.storage.compression import compress, decompress
from sona.storage.draft import Draft

MAGIC = b"SONADLT1"
_LENGTH_BYTES, _DIGEST_BYTES = 8, 32
_TAIL = _LENGTH_BYTES + _DIGEST_BYTES
_MOST_MANIFEST = 1 << 28
_CHUNK = 1 << 20


class Part(msgspec.Struct, frozen=True):
    """One tensor of a checkpoint."""

    name: str
    size: int
    """Bytes."""
    width: int
    """Bytes of a number."""
    base: str | None
    """The tensor of the checkpoint before whose bytes it was made from, of the same size; None: from zeros."""
    sha256: bytes
    """Of its own bytes."""
    at: int
    """Where its first frame begins in the file."""
    frames: list[int]
    """The length of each span's frame; 0 where nothing changed."""


class Manifest(msgspec.Struct, frozen=True):
    """What a file holds."""

    number: int
    """Of the checkpoint, from 1."""
    parent: bytes
    """SHA-256 of the checkpoint before; empty where it is not needed."""
    sha256: bytes
    """Of the whole checkpoint, as the safetensors file that it was and will be."""
    header: bytes
    """The beginning of that file, up to its first tensor."""
    parts: list[Part]
    """The tensors, in the order that they lie in."""


class DeltaFile:
    """A file that was written, opened and found whole."""

    def __init__(self, path: Path) -> None:
        """Opens ``path`` and compares all of it with its digest.

        Raises:
            StoreCorruptError: a byte of it is not what was written.
            OSError: it can't be read.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.manifest = self._verified()
        except BaseException:
            os.close(self._fd)
            raise
        self._parts = {part.name: part for part in self.manifest.parts}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def part(self, name: str) -> Part | None:
        """The tensor of that name, if there is one."""
        return self._parts.get(name)

    def span(self, part: Part, place: int, base: bytes | None) -> bytes:
        """The bytes of the ``place``-th span of a part, made from those of its base.

        Raises:
            StoreCorruptError: they can't be made.
        """
        begin = part.at + sum(part.frames[:place])
        frame = self._read(begin, begin + part.frames[place])
        return decode(frame, base, span_size(part.size, place), part.width)

    def _verified(self) -> Manifest:
        size = os.fstat(self._fd).st_size
        if size < len(MAGIC) + _TAIL or self._read(0, len(MAGIC)) != MAGIC:
            raise self._damaged("it is cut short, or no checkpoint")
        sha256 = hashlib.sha256()
        for start in range(0, size - _DIGEST_BYTES, _CHUNK):
            sha256.update(self._read(start, min(start + _CHUNK, size - _DIGEST_BYTES)))
        if sha256.digest() != self._read(size - _DIGEST_BYTES, size):
            raise self._damaged("its digest is another one")
        end = size - _TAIL
        length = int.from_bytes(self._read(end, end + _LENGTH_BYTES), "little")
        if length > end - len(MAGIC):
            raise self._damaged(f"a manifest of {length} bytes")
        packed = decompress(self._read(end - length, end), _MOST_MANIFEST)
        try:
            manifest = msgspec.msgpack.decode(packed, type=Manifest)
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error
        if any(len(part.frames) != len(spans(part.size)) for part in manifest.parts):
            raise self._damaged("a tensor has more or fewer spans than its size")
        return manifest

    def _read(self, begin: int, end: int) -> bytes:
        data = b""
        while len(data) < end - begin:
            more = os.pread(self._fd, end - begin - len(data), begin + len(data))
            if not more:
                raise self._damaged(f"it ends before {end}")
            data += more
        return data

    def _damaged(self, what: str) -> StoreCorruptError:
        return StoreCorruptError(
            f"{self.path} is damaged: {what}; restore an earlier checkpoint, or copy the file from where it was sent"
        )


def span_size(size: int, place: int) -> int:
    """Bytes of the ``place``-th span of a tensor of ``size`` bytes."""
    return min(SPAN, size - place * SPAN)


def spans(size: int) -> range:
    """The places of the spans of a tensor of ``size`` bytes."""
    return range(-(-size // SPAN))


def finish(draft: Draft, manifest: Manifest) -> None:
    """Write the manifest behind the frames, and what follows it."""
    packed = compress(msgspec.msgpack.encode(manifest))
    draft.write(packed + len(packed).to_bytes(_LENGTH_BYTES, "little"))
    draft.write(draft.sha256.digest())
