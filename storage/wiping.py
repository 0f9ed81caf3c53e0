"""Overwriting what was deleted from blob files, once nobody reads a snapshot from before."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from sona.storage.blobs import Blobs
from sona.storage.connection import store_error
from sona.storage.snapshot_gate import SnapshotGate
from sona.storage.transactions import Snapshot, Transact

PAUSE_S = 0.001
"""Between two files, so that a writer that waits goes first."""


class Wiped(NamedTuple):
    """What was done."""

    bytes: int
    """Overwritten for the first time."""
    is_all: bool
    """Whether nothing is left that waits; else a reader is there, and the next time it is tried again."""


class Wiping:
    """Of the blob files of a store that is open for writing."""

    def __init__(self, blobs: Blobs, gate: SnapshotGate, transact: Transact, snapshot: Snapshot) -> None:
        self._blobs, self._gate, self._transact, self._snapshot = blobs, gate, transact, snapshot

    def run(self, timeout_s: float, *, everywhere: bool = False) -> Wiped:
        """Overwrite, file by file, what no row names, once all have ended that read before now, for which it waits up
        to ``timeout_s`` seconds. ``everywhere``: also where it is thought to be overwritten, and in files of which no
        row knows.

        Raises:
            StoreCorruptError: what is known of the files is damaged.
            StoreError: of the disk, in the form of one of its subclasses.
        """
        with self._snapshot() as connection:
            files = self._blobs.all(connection) if everywhere else self._blobs.unclean(connection)
        if not files:
            return Wiped(0, is_all=True)
        if not self._passed(timeout_s):
            return Wiped(0, is_all=False)
        done = 0
        for file in files:
            done += self._transact(lambda connection, file=file: self._blobs.wipe(connection, file))  # type: ignore[misc]
            time.sleep(PAUSE_S)
        return Wiped(done, is_all=True)

    def _passed(self, timeout_s: float) -> bool:
        try:
            return self._gate.passed(timeout_s)
        except OSError as error:
            raise store_error(error, Path(self._blobs.folder)) from error
