"""Checkpoints of full weights as a chain of what changed, each a small file to send, and every few of them a whole one.

Tensors are compared by name and never by their place in the file, which a longer header moves. Where a tensor was
renamed, or none of its name and size was there, one with the same bytes is taken. What changed of it, in blocks of 4
KiB, is kept as exclusive or, compressed (``blocks.py``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sona.errors import InvalidInputError, StoreCorruptError, UnknownIdError
from sona.storage.blocks import BLOCK, SPAN, encode
from sona.storage.connection import store_error
from sona.storage.delta_file import MAGIC, DeltaFile, Manifest, Part, finish, spans
from sona.storage.draft import Draft, make_folder, remove_drafts
from sona.storage.tensors import Read, Stretch, metadata_of, stretches

_NAME = re.compile(r"(\d{8,})\.(snapshot|delta)")


@dataclass(frozen=True, slots=True)
class Saved:
    """What :meth:`Deltas.save` wrote."""

    number: int
    """Of the checkpoint, from 1."""
    path: Path
    """Its file, which never changes: to be sent where the chain is to be followed."""
    is_snapshot: bool
    """Whether it needs no earlier one."""
    sha256: str
    """Of the checkpoint, as a safetensors file."""
    checkpoint_bytes: int
    """The size of that."""
    written_bytes: int
    """The size of the file that was written."""
    blocks: int
    """All of the tensors' blocks."""
    changed_blocks: int
    """Those that differ from the tensor before, or for a new one from zeros."""


@dataclass(frozen=True, slots=True)
class About:
    """A checkpoint that is there."""

    number: int
    path: Path
    is_snapshot: bool
    """Whether it needs no earlier one."""
    sha256: str
    """Of the checkpoint, as a safetensors file."""
    checkpoint_bytes: int
    """The size of that."""
    written_bytes: int
    """The size of the file in the chain."""
    written_ns: int
    """When that was written, in nanoseconds since 1970."""
    metadata: dict[str, str]
    """The safetensors file's own."""


class Deltas:
    """``<folder>/<number>.snapshot``, which is whole, or ``.delta``, which needs the one before it.

    A checkpoint is a safetensors file, and comes back byte for byte. One process may write at a time; files that were
    published never change, so that they may be copied at any time, and a chain that was copied is read alike.
    """

    def __init__(self, folder: str | os.PathLike[str], *, longest: int = 8) -> None:
        """``longest``: deltas that may follow a snapshot. To restore, or to save the next, all of them are read.

        Raises:
            InvalidInputError: ``longest`` is below 0.
        """
        if longest < 0:
            raise InvalidInputError(f"checkpoints: {longest} deltas after a snapshot; 0 or more is allowed")
        self.folder = Path(folder).absolute()
        self._longest = longest

    def numbers(self) -> list[int]:
        """The checkpoints that there are, oldest first."""
        return sorted(self._files())

    def save(self, checkpoint: bytes | os.PathLike[str], *, snapshot: bool = False) -> Saved:
        """Add a checkpoint: a safetensors file, or its bytes. It is durable when this returns.

        Args:
            checkpoint: must not change meanwhile.
            snapshot: write it whole, whatever came before.

        Raises:
            InvalidInputError: it is no safetensors file; nothing was written.
            StoreCorruptError: the checkpoint before is damaged, so nothing can follow it but a snapshot.
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble. The chain is what it was, or where only
                the last sync failed has the new checkpoint.
        """
        try:
            with _opened(checkpoint) as (read, size), ExitStack() as stack:
                header, found = stretches(read, size)
                make_folder(self.folder)
                files = self._files()
                last = max(files, default=0)
                chain = [] if snapshot or not files else self._chain(last, files, stack)
                if len(chain) > self._longest:
                    chain = []
                return self._write(last + 1, _Written(header, found, read, size), chain)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def about(self, number: int) -> About:
        """What is known of a checkpoint without putting it together; its own file is found whole.

        Raises:
            UnknownIdError: there is none of this number.
            StoreCorruptError: its file is damaged.
            StoreError: it can't be read.
        """
        files = self._files()
        if number not in files:
            raise _none(number, self.folder, files)
        try:
            with DeltaFile(files[number]) as file:
                told = files[number].stat()
                manifest = file.manifest
        except OSError as error:
            raise store_error(error, files[number]) from error
        return About(
            number=number,
            path=files[number],
            is_snapshot=not manifest.parent,
            sha256=manifest.sha256.hex(),
            checkpoint_bytes=len(manifest.header) + sum(part.size for part in manifest.parts),
            written_bytes=told.st_size,
            written_ns=told.st_mtime_ns,
            metadata=metadata_of(manifest.header),
        )

    def verify(self, number: int) -> None:
        """Put a checkpoint together, and compare every tensor and the whole with their digests; nothing is written.

        Raises:
            UnknownIdError: there is none of this number.
            StoreCorruptError: it, or one that it needs, is damaged or missing.
            StoreError: a file can't be read.
        """
        try:
            with ExitStack() as stack:
                chain, sha256 = self._chain(number, self._files(), stack), hashlib.sha256()
                for piece in _contents(chain):
                    sha256.update(piece)
                _check_whole(chain, sha256.digest())
        except OSError as error:
            raise store_error(error, self.folder) from error

    def restore(self, number: int, to: str | os.PathLike[str]) -> None:
        """Write a checkpoint to the file ``to``, in place of what is there, durably and all at once.

        Raises:
            UnknownIdError: there is none of this number.
            StoreCorruptError: it, or one that it needs, is damaged or missing; nothing was written.
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble.
        """
        target = Path(to).absolute()
        try:
            with ExitStack() as stack:
                chain = self._chain(number, self._files(), stack)
                with Draft(target.parent) as draft:
                    for piece in _contents(chain):
                        draft.write(piece)
                    _check_whole(chain, draft.sha256.digest())
                    draft.publish(target.name)
        except OSError as error:
            raise store_error(error, target) from error

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest ``keep`` checkpoints and what these need; returns the numbers that are gone.

        Cut short, each that is left can still be restored.

        Raises:
            InvalidInputError: ``keep`` is below 1.
            StoreError: the disk does not let them go.
        """
        if keep < 1:
            raise InvalidInputError(f"checkpoints: keep {keep}; 1 or more is allowed")
        files = self._files()
        numbers = sorted(files)
        oldest = min(numbers[-keep:], default=0)
        begin = max((one for one in numbers if one <= oldest and files[one].suffix == ".snapshot"), default=0)
        gone = [number for number in numbers if number < begin]
        try:
            for number in reversed(gone):  # a delta before what it needs
                files[number].unlink()
        except OSError as error:
            raise store_error(error, self.folder) from error
        return gone

    def clean(self) -> None:
        """Remove the drafts that crashes have left; only while nothing is being saved.

        Raises:
            StoreError: the disk does not let them go.
        """
        try:
            remove_drafts(self.folder)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def _files(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in named if match}

    def _chain(self, number: int, files: dict[int, Path], stack: ExitStack) -> list[DeltaFile]:
        """The files that the checkpoint is made from, a snapshot first; the stack closes them."""
        if number not in files:
            raise _none(number, self.folder, files)
        chain: list[DeltaFile] = []
        while not chain or chain[0].manifest.parent:
            if number not in files:
                raise _broken(chain, f"checkpoint {number} is missing")
            file = stack.enter_context(DeltaFile(files[number]))
            if file.manifest.number != number or (chain and file.manifest.sha256 != chain[0].manifest.parent):
                raise _broken([file, *chain], f"{file.path.name} is of another chain")
            chain.insert(0, file)
            number -= 1
        return chain

    def _write(self, number: int, written: _Written, chain: Sequence[DeltaFile]) -> Saved:
        with Draft(self.folder) as draft:
            draft.write(MAGIC)
            parts = [written.part(draft, stretch, chain) for stretch in written.found]
            needs = any(part.base is not None for part in parts)
            whole = written.whole.digest()
            parent = chain[-1].manifest.sha256 if needs else b""
            finish(draft, Manifest(number, parent, whole, written.header, parts))
            path = self.folder / f"{number:08}.{'delta' if needs else 'snapshot'}"
            draft.publish(path.name)
        return Saved(
            number=number,
            path=path,
            is_snapshot=not needs,
            sha256=whole.hex(),
            checkpoint_bytes=written.size,
            written_bytes=draft.size,
            blocks=sum(-(-part.size // BLOCK) for part in parts),
            changed_blocks=written.changed_blocks,
        )


class _Written:
    """A checkpoint on its way into a file."""

    def __init__(self, header: bytes, found: list[Stretch], read: Read, size: int) -> None:
        self.header, self.found, self.size = header, found, size
        self.whole = hashlib.sha256(header)
        self.changed_blocks = 0
        self._read = read

    def part(self, draft: Draft, stretch: Stretch, chain: Sequence[DeltaFile]) -> Part:
        """Write a tensor's frames; the tensors come in the order that they lie in."""
        size, at, frames = stretch.end - stretch.begin, draft.size, []
        base, sha256 = self._base(stretch, chain), hashlib.sha256()
        for place in spans(size):
            new = self._span(stretch, place)
            sha256.update(new)
            self.whole.update(new)
            old = None if base is None else _content(chain, base, place)
            frame, changed = encode(old, new, stretch.width)
            draft.write(frame)
            frames.append(len(frame))
            self.changed_blocks += changed
        name = None if base is None else base.name
        return Part(stretch.name, size, stretch.width, name, sha256.digest(), at, frames)

    def _base(self, stretch: Stretch, chain: Sequence[DeltaFile]) -> Part | None:
        if not chain:
            return None
        like, size = chain[-1].part(stretch.name), stretch.end - stretch.begin
        if like is not None and like.size == size:
            return like
        same = [part for part in chain[-1].manifest.parts if part.size == size]
        sha256 = hashlib.sha256()
        for place in spans(size) if same else ():
            sha256.update(self._span(stretch, place))
        return next((part for part in same if part.sha256 == sha256.digest()), None)

    def _span(self, stretch: Stretch, place: int) -> bytes:
        begin = stretch.begin + place * SPAN
        return self._read(begin, min(begin + SPAN, stretch.end))


def _contents(chain: Sequence[DeltaFile]) -> Iterator[bytes]:
    """The safetensors file, piece by piece, each tensor compared with its digest."""
    manifest = chain[-1].manifest
    yield manifest.header
    for part in manifest.parts:
        sha256 = hashlib.sha256()
        for place in spans(part.size):
            piece = _content(chain, part, place)
            sha256.update(piece)
            yield piece
        if sha256.digest() != part.sha256:
            raise _broken(chain, f"{part.name!r} is not what was saved")


def _content(chain: Sequence[DeltaFile], part: Part, place: int) -> bytes:
    """A span of a part of the last file in the chain."""
    *earlier, file = chain
    base = None
    if part.base is not None:
        like = earlier[-1].part(part.base) if earlier else None
        if like is None or like.size != part.size:
            raise _broken(chain, f"{part.base!r}, which {part.name!r} was made from, is not in the one before")
        base = _content(earlier, like, place)
    return file.span(part, place, base)


def _none(number: int, folder: Path, files: dict[int, Path]) -> UnknownIdError:
    return UnknownIdError(f"checkpoint {number}: there is none in {folder}; {_those_of(files)}")


def _those_of(files: dict[int, Path]) -> str:
    return f"there are {sorted(files)}" if files else "nothing was trained there yet"


def _check_whole(chain: Sequence[DeltaFile], digest: bytes) -> None:
    if digest != chain[-1].manifest.sha256:
        raise _broken(chain, "the whole is not what was saved")


def _broken(chain: Sequence[DeltaFile], what: str) -> StoreCorruptError:
    last = f" that ends with {chain[-1].path}" if chain else ""
    return StoreCorruptError(f"the chain of checkpoints{last} is damaged: {what}; save a snapshot, or restore another")


@contextmanager
def _opened(checkpoint: bytes | os.PathLike[str]) -> Iterator[tuple[Read, int]]:
    if isinstance(checkpoint, bytes):
        data = checkpoint
        yield (lambda begin, end: data[begin:end]), len(data)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(checkpoint, "rb"))
        except OSError as error:
            raise InvalidInputError(f"checkpoint {error}; give a safetensors file") from error

        def read(begin: int, end: int) -> bytes:
            file.seek(begin)
            if len(data := file.read(end - begin)) != end - begin:
                raise InvalidInputError(f"checkpoint {file.name} became shorter while it was read; keep it as it is")
            return data

        yield read, os.fstat(file.fileno()).st_size
