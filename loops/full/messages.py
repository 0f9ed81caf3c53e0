"""What a host and its trainer say to each other.

::

    host                        trainer
    TrainerSetup ─────────────▶ Loaded             once
    RunJob ───────────────────▶ Stepped ...        JobDone / JobFailed
    SaveCheckpoint ───────────▶ CheckpointSaved / CheckpointFailed
                                Logged             at any time
                                TrainerFailed      and it ends

Closing the socket ends the trainer.
"""

from __future__ import annotations

from typing import Any

from sona.loops.messages import Logged
from sona.training import CheckpointMade, JobResult
from sona.types import Record


class TrainerSetup(Record, kw_only=True):
    """Whom a trainer works for, and with what."""

    release: str
    """The host's ``sona.__version__``."""
    store: str
    """The store's folder."""
    model: str
    """Folder or hub id of the base model."""
    fingerprint: str
    """The base model's, as the host has it."""
    settings: dict[str, Any]
    """The whole :class:`sona.Config`."""


class Loaded(Record, kw_only=True):
    """The weights of the newest checkpoint are there, or the base's."""

    checkpoint: int
    """Its number; 0: the base's."""


class RunJob(Record, kw_only=True):
    """Train a job, by its number."""

    number: int


class Stepped(Record, kw_only=True):
    """A step of it is done."""

    number: int
    done: int
    loss: float


class JobDone(Record, kw_only=True):
    """It is in the weights."""

    result: JobResult


class JobFailed(Record, kw_only=True):
    """It is not, and what the weights are now is not to be gone on from."""

    number: int
    why: str
    is_damaged: bool = False
    """Whether its file could not be read."""


class SaveCheckpoint(Record, kw_only=True):
    """Write the weights down."""


class CheckpointSaved(Record, kw_only=True):
    """They are on the disk."""

    made: CheckpointMade


class CheckpointFailed(Record, kw_only=True):
    """They are not; nothing has changed."""

    error: str
    """The name of its class."""
    text: str


class TrainerFailed(Record, kw_only=True):
    """It can't go on, and ends."""

    error: str
    text: str
    trace: str = ""


KINDS: tuple[type[Record], ...] = (
    TrainerSetup,
    Loaded,
    RunJob,
    Stepped,
    JobDone,
    JobFailed,
    SaveCheckpoint,
    CheckpointSaved,
    CheckpointFailed,
    TrainerFailed,
    Logged,
)
"""By the number that their frames carry."""
