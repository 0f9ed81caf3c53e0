"""A file that a command is to write, where the user says."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from pathlib import Path

from sona.errors import InvalidInputError
from sona.storage.draft import Draft

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OWN = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d{1,9})")
"""Names of this process's own descriptors."""


def check_target(target: Path, store: Path | None = None) -> None:
    """InvalidInputError where a file is not to be written: better now than when all is done."""
    if target.is_dir() or not target.parent.is_dir():
        raise InvalidInputError(f"{str(target)!r}: it can't be written; name a file in a folder that exists")
    if store is not None and target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{str(target)!r}: it lies in the store, where only sona writes; name a file elsewhere")


def write_file(target: Path, data: bytes) -> None:
    """Write the file, whole or not at all: what had its name before is there until then, and who may read that may read
    the new one. What is no plain file, and what the process has open itself (``/dev/stdout``), is written to as it is.

    Raises:
        InvalidInputError: it can't be written; it says why.
    """
    try:
        own, mode = _own_descriptor(target), _mode_of(target)
        if own is not None:
            sys.stdout.flush()  # what was printed before comes before
            with open(os.dup(own), "wb") as opened:  # and not by its name, which would begin a plain file anew
                opened.write(data)
        elif mode is not None and not stat.S_ISREG(mode):  # a pipe, a terminal: asked before its links are followed
            target.write_bytes(data)
        else:
            place = target.resolve()  # of a link what it leads to is replaced, and not the link
            with _Successor(place.parent) as draft:
                if mode is not None:
                    draft.take_mode(mode)
                draft.write(data)
                draft.publish(place.name)
    except OSError as error:
        remedy = "free space, or name a file on another disk" if error.errno in _NO_ROOM else "name one where you may"
        raise InvalidInputError(f"{str(target)!r}: it can't be written ({error.strerror}); {remedy}") from None


class _Successor(Draft):
    """A draft of what a file is replaced by."""

    def take_mode(self, mode: int) -> None:
        """Let those read it who may read the file, before there is anything in it."""
        os.fchmod(self._fd, stat.S_IMODE(mode))


def _own_descriptor(target: Path) -> int | None:
    found = _OWN.fullmatch(str(target))
    if found is None:
        return None
    return int(found[2]) if found[2] else {"stdout": 1, "stderr": 2}[found[1]]


def _mode_of(target: Path) -> int | None:
    """Of what links lead to; None where nothing is there."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None
