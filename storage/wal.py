"""SQLite's log beside the database, where nobody knows whether it is on the disk."""

from __future__ import annotations

from pathlib import Path

import apsw

_CHUNK = 1 << 16  # its largest page; SQLite's file layer takes no more than 128 KiB at once
_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_WAL


def write_again(database: Path) -> None:
    """Make the log of ``database`` as durable as it looks, before any connection trusts what it holds; none may write
    to it meanwhile.

    After a failed sync, also one of a process that is gone, the system may show pages that it never wrote, and takes
    them for clean: another sync succeeds without writing them (danluu.com/fsyncgate). Written anew with what they
    hold they are dirty again. Copying them into the database instead would, if the power failed meanwhile, leave a
    database with half of a transaction that no log completes.

    Raises:
        apsw.Error, OSError: it can't be read, written or synced.
    """
    path = Path(f"{database}-wal")
    if not (database.exists() and path.exists() and (size := path.stat().st_size)):
        return  # a log without its database is nothing: SQLite deletes it
    log = apsw.VFSFile("", str(path), [_FLAGS, 0])  # by the file layer that SQLite uses; "" is the default one
    try:
        for offset in range(0, size, _CHUNK):
            log.xWrite(log.xRead(min(_CHUNK, size - offset), offset), offset)
        log.xSync(apsw.SQLITE_SYNC_FULL)
    finally:
        log.xClose()
