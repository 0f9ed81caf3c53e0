"""What a host and its learner say to each other.

::

    host                               learner
    Setup ───────────────────────────▶            once
    RunCycle ────────────────────────▶ Begun
                                       Progressed, Logged          at any time
    Answer / Refused ◀──────────────── Clean, Taken, WriteState, Distill, Publish, Commit    each waits for its answer
    Stop ────────────────────────────▶            ends the cycle at its next progress
                                       Done / Failed               the cycle has ended

Closing the socket ends the learner.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sona.bank.lessons import LessonRequest
from sona.candidate import Settled
from sona.ports import Claim
from sona.types import CycleReport, Progress, Record, Version

RELEASE: str = import_module("sona").__version__  # by name, as the package's root imports what lies above this layer


class Setup(Record, kw_only=True):
    """Whom a learner works for, and with what."""

    release: str
    """The host's ``sona.__version__``."""
    store: str
    """The store's folder."""
    model: str | None
    """Folder or hub id of the base model; None for a host that has none."""
    fingerprint: str | None
    """The base model's, as the host has it."""
    distills: bool
    """Whether the host has a distiller of its own."""
    settings: dict[str, Any]
    """The whole :class:`sona.Config`."""


class RunCycle(Record, kw_only=True):
    """Run one cycle now."""


class Stop(Record, kw_only=True):
    """End the cycle under way; everything stays as it was."""


class Answer(Record, kw_only=True):
    """What was asked for is done."""

    drafts: tuple[dict[str, Any] | str, ...] = ()
    """A distiller's."""


class Begun(Record, kw_only=True):
    """The cycle has begun."""


class Progressed(Record, kw_only=True):
    """How far it is."""

    progress: Progress


class Logged(Record, kw_only=True):
    """A line for the host's log."""

    logger: str
    level: int
    text: str


class Clean(Record, kw_only=True):
    """Remove drafts, and folders that no version names."""


class Taken(Record, kw_only=True):
    """The cycle has these approved candidates, until it has ended."""

    ids: tuple[int, ...]
    """Their numbers."""


class WriteState(Record, kw_only=True):
    """Keep a value beside the records."""

    name: str
    value: bytes


class Distill(Record, kw_only=True):
    """Ask the host's distiller."""

    request: LessonRequest


class Publish(Record, kw_only=True):
    """Give a draft a version's name."""

    draft: str
    """Name of its folder, beside the versions."""
    version: str
    digest: str
    """Of its files, as the learner wrote them."""


class Commit(Record, kw_only=True):
    """Make the cycle count."""

    report: CycleReport
    claims: tuple[Claim, ...]
    version: Version | None
    settled: tuple[Settled, ...] = ()
    """What became of approved candidates."""


class Done(Record, kw_only=True):
    """The cycle has ended."""

    report: CycleReport


class Failed(Record, kw_only=True):
    """... with an error."""

    error: str
    """The name of its class."""
    text: str
    trace: str = ""


class Refused(Record, kw_only=True):
    """What was asked for failed."""

    error: str
    text: str


KINDS: tuple[type[Record], ...] = (
    Setup,
    RunCycle,
    Stop,
    Answer,
    Refused,
    Begun,
    Progressed,
    Logged,
    Clean,
    WriteState,
    Distill,
    Publish,
    Commit,
    Done,
    Failed,
    Taken,
)
"""By the number that their frames carry."""
