"""Overwriting what was deleted from blob files, once nobody reads a snapshot from before."""

from __future__ import annotations

import time
from typing import NamedTuple

import apsw

from sona.storage.blob_files import Gate
from sona.storage.blobs import Blobs
from sona.storage.transactions import Snapshot, Transact

PAUSE_S = 0.001
"""Between two files, so that a writer that waits goes first."""


class Wiped(NamedTuple):
    """What was done."""

    bytes: int
    is_all: bool
    """Whether nothing is left that waits; else a reader is there, and the next time it is tried again."""


class Wiping:
    """Of the blob files of a store that is open for writing."""

    def __init__(self, blobs: Blobs, gate: Gate, transact: Transact, snapshot: Snapshot) -> None:
        self._blobs, self._gate, self._transact, self._snapshot = blobs, gate, transact, snapshot

    def run(self, timeout_s: float) -> Wiped:
        """Overwrite, file by file, all that no row names; each waits up to ``timeout_s`` seconds for readers to end.

        Raises:
            StoreCorruptError: what is known of the files is damaged.
            StoreError: of the disk, in the form of one of its subclasses.
        """
        with self._snapshot() as connection:
            files = self._blobs.unclean(connection)
        done = 0
        for file in files:
            with self._gate.alone(timeout_s) as is_alone:
                if not is_alone:
                    return Wiped(done, is_all=False)
                done += self._transact(lambda connection, file=file: self._blobs.wipe(connection, file))  # type: ignore[misc]
            time.sleep(PAUSE_S)
        return Wiped(done, is_all=True)

    def cut(self) -> None:
        """Take away what transactions that failed have left; raises as :meth:`run`."""
        self._transact(self._cut)

    def _cut(self, connection: apsw.Connection) -> None:
        self._blobs.settle(connection)
