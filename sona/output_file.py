"""A file that a command is to write, where the user says."""

from __future__ import annotations

import errno
from pathlib import Path

from sona.errors import InvalidInputError
from sona.storage.draft import Draft

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(target: Path, store: Path | None = None) -> None:
    """InvalidInputError where a file is not to be written: better now than when all is done."""
    if target.is_dir() or not target.parent.is_dir():
        raise InvalidInputError(f"{str(target)!r}: it can't be written; name a file in a folder that exists")
    if store is not None and target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{str(target)!r}: it lies in the store, where only sona writes; name a file elsewhere")


def write_file(target: Path, data: bytes) -> None:
    """Write the file, whole or not at all: what had its name before is there until then.

    Raises:
        InvalidInputError: it can't be written; it says why.
    """
    place = target.resolve()  # of a link what it leads to is replaced, and not the link
    try:
        if place.exists() and not place.is_file():  # such as /dev/stdout
            place.write_bytes(data)
            return
        with Draft(place.parent) as draft:
            draft.write(data)
            draft.publish(place.name)
    except OSError as error:
        remedy = "free space, or name a file on another disk" if error.errno in _NO_ROOM else "name one where you may"
        raise InvalidInputError(f"{str(target)!r}: it can't be written ({error.strerror}); {remedy}") from None
