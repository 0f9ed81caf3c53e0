"""A file that a command is to write, where the user says."""

from __future__ import annotations

from pathlib import Path

from sona.errors import InvalidInputError


def check_target(target: Path, store: Path | None = None) -> None:
    """InvalidInputError where a file is not to be written: better now than when all is done."""
    if target.is_dir() or not target.parent.is_dir():
        raise InvalidInputError(f"{str(target)!r}: it can't be written; name a file in a folder that exists")
    if store is not None and target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{str(target)!r}: it lies in the store, where only sona writes; name a file elsewhere")


def write_file(target: Path, data: bytes) -> None:
    """Write the file, or raise InvalidInputError, which says why it can't be."""
    try:
        target.write_bytes(data)
    except OSError as error:
        raise InvalidInputError(
            f"{str(target)!r}: it can't be written ({error.strerror}); name a file where you may write"
        ) from None
