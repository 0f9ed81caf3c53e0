"""The database's form: its tables, the steps that make them, the settings of each connection, and what is refused.

``PRAGMA user_version`` counts the migrations that a database has gone through. A new form of the tables is a new step
at the end of :data:`MIGRATIONS`; a step that was released is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import apsw

from sona.errors import StoreCorruptError, StoreVersionError
from sona.storage.rows import Value, encode, row_crc
from sona.storage.state import write_state
from sona.types import BASE_VERSION, Version

APPLICATION_ID = 0x534F4E41  # "SONA"
ARRIVALS_SINCE = "arrivals/since"
"""The state that says since when arrivals are counted, in nanoseconds since 1970 as decimal digits."""
MIN_SQLITE = (3, 51, 3)  # before it a WAL reset could corrupt the database (sqlite.org/wal.html, "The WAL-Reset Bug")

# Before the first table exists: both are fixed from then on.
CREATION_PRAGMAS = ("page_size = 16384", "auto_vacuum = INCREMENTAL")

WRITER_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",  # each commit is synced: what append() returned for survives power loss
    "busy_timeout = 5000",
    "journal_size_limit = 67108864",
    "foreign_keys = ON",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",  # a read error of a mapped file is a SIGBUS
    "secure_delete = ON",  # what is deleted is overwritten, not only let go of
    "cache_size = -16384",
)

READER_PRAGMAS = (
    "query_only = ON",
    "wal_autocheckpoint = 0",
    "busy_timeout = 5000",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
    "cache_size = -8192",
)

TABLES = """
CREATE TABLE trajectories (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    source     TEXT    NOT NULL,
    created_ns INTEGER NOT NULL,
    embedding  BLOB,
    payload    BLOB    NOT NULL,
    crc        INTEGER NOT NULL
) STRICT;

CREATE TABLE feedback (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    trajectory INTEGER NOT NULL REFERENCES trajectories (seq),
    quality    REAL    NOT NULL,
    payload    BLOB    NOT NULL,
    crc        INTEGER NOT NULL
) STRICT;

CREATE INDEX feedback_of_trajectory ON feedback (trajectory);

-- What a cycle took; the key lets each trajectory be taken once. One that was left out gives its row up to a later
-- cycle that takes it by a feedback newer than `feedback`, the one that its quality was of. Within a cycle the ordinals
-- of what is trained on, and of what is held out, run from 0 without gaps, so that a random one is one lookup.
CREATE TABLE claims (
    seq          INTEGER PRIMARY KEY REFERENCES trajectories (seq),
    cycle        INTEGER NOT NULL,
    role         TEXT    NOT NULL CHECK (role IN ('train', 'held_out', 'left_out')),
    ordinal      INTEGER NOT NULL,
    feedback     INTEGER NOT NULL REFERENCES feedback (seq),
    prompt_ids   BLOB,
    response_ids BLOB,
    crc          INTEGER NOT NULL,
    UNIQUE (cycle, role, ordinal)
) STRICT;

-- The numbers of claims are those of the day: what was left out then may have been taken again since.
CREATE TABLE cycles (
    cycle    INTEGER PRIMARY KEY,
    status   TEXT    NOT NULL,
    version  TEXT,
    train    INTEGER NOT NULL,
    held_out INTEGER NOT NULL,
    left_out INTEGER NOT NULL,
    report   BLOB    NOT NULL,
    crc      INTEGER NOT NULL
) STRICT;

CREATE TABLE versions (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    parent     TEXT    REFERENCES versions (id),
    cycle      INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    payload    BLOB    NOT NULL,
    crc        INTEGER NOT NULL
) STRICT;

-- Kept in step with the records by the transaction that stores them, so that no status query walks through all of them.
CREATE TABLE sources (
    source       TEXT    PRIMARY KEY,
    trajectories INTEGER NOT NULL,
    feedback     INTEGER NOT NULL,
    steps        INTEGER NOT NULL,
    rewards      INTEGER NOT NULL,
    reward_sum   REAL    NOT NULL,
    rated        INTEGER NOT NULL,
    quality_sum  REAL    NOT NULL,
    completed    INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    abandoned    INTEGER NOT NULL,
    crc          INTEGER NOT NULL
) STRICT;

CREATE TABLE state (
    name  TEXT    PRIMARY KEY,
    value BLOB    NOT NULL,
    crc   INTEGER NOT NULL
) STRICT;

-- One row: the version in force; the watermark (no feedback up to this seq makes a trajectory new to a cycle); how many
-- trajectories are left out and not rated anew since; the embeddings' width.
CREATE TABLE head (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    version   TEXT    NOT NULL REFERENCES versions (id),
    watermark INTEGER NOT NULL,
    left_out  INTEGER NOT NULL,
    width     INTEGER,
    crc       INTEGER NOT NULL
) STRICT;
"""

# Before it a claim had no skill and no pattern, so each cycle's of one role were one group, and their places there the
# ordinals. Of what is left out there is no group: a later cycle may take it again.
GROUPS = """
ALTER TABLE claims ADD COLUMN skill   TEXT    NOT NULL DEFAULT '';
ALTER TABLE claims ADD COLUMN pattern TEXT    NOT NULL DEFAULT '';
ALTER TABLE claims ADD COLUMN place   INTEGER NOT NULL DEFAULT 0;

UPDATE claims SET place = ordinal;

-- Within each group the places run from 0 without gaps, so that a random one is one lookup.
CREATE UNIQUE INDEX claims_by_group ON claims (cycle, role, skill, pattern, place);

CREATE TABLE claim_groups (
    cycle   INTEGER NOT NULL,
    role    TEXT    NOT NULL CHECK (role IN ('train', 'held_out')),
    skill   TEXT    NOT NULL,
    pattern TEXT    NOT NULL,
    size    INTEGER NOT NULL,
    crc     INTEGER NOT NULL,
    PRIMARY KEY (cycle, role, skill, pattern)
) STRICT, WITHOUT ROWID;
"""

# Deleting a feedback looks for claims that name it. `learned` keeps, of what was trained on and then deleted by
# retention, which source it was of; `arrivals` how many records came in each minute, a week's number of minutes.
DELETIONS = """
CREATE INDEX claims_by_feedback ON claims (feedback);

CREATE TABLE learned (
    source       TEXT    NOT NULL,
    cycle        INTEGER NOT NULL,
    trajectories INTEGER NOT NULL,
    crc          INTEGER NOT NULL,
    PRIMARY KEY (source, cycle)
) STRICT, WITHOUT ROWID;

CREATE TABLE arrivals (
    minute       INTEGER PRIMARY KEY,
    trajectories INTEGER NOT NULL,
    feedback     INTEGER NOT NULL,
    crc          INTEGER NOT NULL
) STRICT;
"""

# `candidates`: responses that depend on memory; the key lets each become one once. A trained one outlives its
# trajectory, without its texts. `memory_weights`: what each memory of a source was worth so far.
REVIEW = """
CREATE TABLE candidates (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    trajectory TEXT    NOT NULL,
    at_ns      INTEGER NOT NULL,
    source     TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('new', 'approved', 'rejected', 'sent', 'trained')),
    divergence REAL    NOT NULL,
    payload    BLOB    NOT NULL,
    crc        INTEGER NOT NULL,
    UNIQUE (trajectory, at_ns)
) STRICT;

CREATE INDEX candidates_by_state ON candidates (state, divergence);

CREATE TABLE memory_weights (
    source         TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    weight         REAL    NOT NULL,
    last_scored_ns INTEGER NOT NULL,
    times          INTEGER NOT NULL,
    crc            INTEGER NOT NULL,
    PRIMARY KEY (source, key)
) STRICT, WITHOUT ROWID;
"""

# How far each blob file is written, how many of its bytes rows name, how many of the others are overwritten, and from
# which `seq` on rows may name it.
BLOBS = """
CREATE TABLE blobs (
    file  INTEGER PRIMARY KEY,
    size  INTEGER NOT NULL,
    live  INTEGER NOT NULL,
    wiped INTEGER NOT NULL,
    first INTEGER NOT NULL,
    crc   INTEGER NOT NULL
) STRICT;
"""


class Migration(NamedTuple):
    """One step from a form of the tables to the next."""

    sql: str
    then: Callable[[apsw.Connection], None]
    """What SQL cannot say, in the same transaction."""


def _add_first_version(connection: apsw.Connection) -> None:
    first = Version(id=BASE_VERSION, parent=None, cycle=0, created_ns=time.time_ns(), digest="")
    insert_version(connection, first)
    connection.execute(
        "INSERT INTO head (one, version, watermark, left_out, width, crc) VALUES (1, ?, 0, 0, NULL, ?)",
        (first.id, row_crc(first.id, 0, 0, None)),
    )


def _group_old_claims(connection: apsw.Connection) -> None:
    connection.create_scalar_function("crc_with_group", _crc_with_group, 8, deterministic=True)
    connection.execute(
        """
        UPDATE claims
        SET crc = crc_with_group(cycle, role, ordinal, seq, feedback, prompt_ids, response_ids, crc)
        """
    )
    connection.create_scalar_function("crc_with_group", None, 8)
    for cycle, *sizes in connection.execute("SELECT cycle, train, held_out FROM cycles").fetchall():
        for role, size in zip(("train", "held_out"), sizes, strict=True):
            values = (cycle, role, "", "", size)
            if size:
                connection.execute("INSERT INTO claim_groups VALUES (?, ?, ?, ?, ?, ?)", (*values, row_crc(*values)))


def _crc_with_group(*row: Value) -> int:
    """The checksum of a claim of the first form in the second; of a damaged one it is as wrong as it was."""
    cycle, role, ordinal, seq, feedback, prompt_ids, response_ids, crc = row
    damage = row_crc(*row[:-1]) ^ cast(int, crc)
    return row_crc(cycle, role, ordinal, "", "", ordinal, seq, feedback, prompt_ids, response_ids) ^ damage


def _count_arrivals_from_now(connection: apsw.Connection) -> None:
    write_state(connection, ARRIVALS_SINCE, str(time.time_ns()).encode())


MIGRATIONS = (
    Migration(TABLES, _add_first_version),
    Migration(GROUPS, _group_old_claims),
    Migration(DELETIONS, _count_arrivals_from_now),
    Migration(REVIEW, lambda connection: None),
    Migration(BLOBS, lambda connection: None),
)
SCHEMA_VERSION = len(MIGRATIONS)


def insert_version(connection: apsw.Connection, version: Version) -> None:
    """Add a version's row to the transaction under way."""
    values = (version.id, version.parent, version.cycle, version.created_ns, encode(version))
    connection.execute(
        "INSERT INTO versions (id, parent, cycle, created_ns, payload, crc) VALUES (?, ?, ?, ?, ?, ?)",
        (*values, row_crc(*values)),
    )


def check_library(version: str | None = None) -> None:
    """Refuse a SQLite library that can corrupt the store.

    Raises:
        StoreVersionError: it is older than 3.51.3.
    """
    version = apsw.sqlite_lib_version() if version is None else version
    if tuple(int(part) for part in version.split(".")[:3]) < MIN_SQLITE:
        needed = ".".join(map(str, MIN_SQLITE))
        raise StoreVersionError(
            f"SQLite {version}: at least {needed} is needed, older ones can corrupt a store; run `pip install -U apsw`"
        )


def form_of(connection: apsw.Connection, path: Path) -> int:
    """The database's ``user_version``; 0 for an empty one.

    Raises:
        StoreCorruptError: it is another program's database.
        StoreVersionError: a newer sona wrote it.
    """
    application = int(connection.pragma("application_id"))
    form = int(connection.pragma("user_version"))
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").get)
    if application != APPLICATION_ID and (application or form or tables):
        raise StoreCorruptError(
            f"{path}: application id {application:#x}, a store has {APPLICATION_ID:#x}; it is another program's "
            "database, so give sona a folder of its own"
        )
    if form > SCHEMA_VERSION:
        raise StoreVersionError(
            f"{path}: schema {form}, this sona reads up to {SCHEMA_VERSION}; update sona, or open another folder"
        )
    return form


def migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the database to :data:`SCHEMA_VERSION`, each step in a transaction of its own; no step if it is there.

    Raises:
        StoreCorruptError, StoreVersionError: see :func:`form_of`.
    """
    for form in range(form_of(connection, path), SCHEMA_VERSION):
        with connection:
            connection.execute(MIGRATIONS[form].sql)
            MIGRATIONS[form].then(connection)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", form + 1)
