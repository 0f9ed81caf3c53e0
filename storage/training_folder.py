"""Where full-weight training keeps what it must not lose.

::

    training/base.json       which base model it began from
    training/base/           that model's configuration, tokenizer and template, for whole folders to be made of
    training/jobs/           what was accepted (training_jobs.py)
    training/checkpoints/    weights and optimizer together, with which jobs are in them (deltas.py)
    training/trainer.lock    held by the process that trains
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sona.errors import StoreCorruptError, UnknownIdError
from sona.storage.connection import store_error
from sona.storage.deltas import About, Deltas
from sona.storage.draft import Draft, make_folder
from sona.storage.layout import TRAINING
from sona.storage.training_jobs import TrainingJobs
from sona.storage.versions import DRAFT
from sona.training import CheckpointInfo, CheckpointNote
from sona.types import Record


class TrainedBase(Record, kw_only=True):
    """The base model that training began from."""

    model: str
    """Its folder or hub id, as it was."""
    fingerprint: str


class TrainingFolder:
    """Of one store."""

    def __init__(self, store: Path, *, snapshot_every: int = 8) -> None:
        """``snapshot_every``: deltas between two checkpoints that are written whole."""
        self.path = store / TRAINING
        self.jobs = TrainingJobs(self.path / "jobs")
        self.checkpoints = Deltas(self.path / "checkpoints", longest=snapshot_every)
        self.base_files = self.path / "base"
        self.lock = self.path / "trainer.lock"

    @property
    def exists(self) -> bool:
        """Whether anything was ever trained."""
        return self.path.is_dir()

    def base(self) -> TrainedBase | None:
        """What training began from; None where nothing was ever accepted.

        Raises:
            StoreCorruptError: the file can't be understood.
        """
        try:
            return msgspec.json.decode((self.path / "base.json").read_bytes(), type=TrainedBase)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StoreCorruptError(
                f"{self.path / 'base.json'} is damaged ({error}); restore it from a backup"
            ) from None

    def begin(self, base: TrainedBase) -> None:
        """Keep what training begins from.

        Raises:
            StoreError: the disk's trouble.
        """
        try:
            make_folder(self.path)
            with Draft(self.path) as draft:
                draft.write(msgspec.json.encode(base))
                draft.publish("base.json")
        except OSError as error:
            raise store_error(error, self.path) from error

    def files(self) -> list[Path]:
        """What a backup takes along, in the order that keeps a copy whole while others write: a job that a checkpoint
        does not hold must be there, so jobs come first; what comes in meanwhile is not in the copy.
        """
        folders = (self.jobs.folder, self.checkpoints.folder, self.base_files)
        found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
        about = self.path / "base.json"
        return [path for path in found if not path.name.startswith(DRAFT)] + ([about] if about.exists() else [])

    def damage(self) -> dict[str, str]:
        """What is wrong, by where: every job is read, and every checkpoint put together.

        Raises:
            StoreError: a file can't be read.
        """
        found = {f"{TRAINING}/jobs/{name}": why for name, why in self.jobs.damage().items()}
        numbers = self.checkpoints.numbers()
        for number in numbers:
            try:
                self.checkpoints.verify(number)
                self.read(number)
            except UnknownIdError:  # removed just now
                continue
            except StoreCorruptError as error:
                newest = "; training can't go on: restore a backup, or delete it, and what its jobs taught is lost"
                found[f"{TRAINING} checkpoint {number}"] = f"{error}{newest if number == numbers[-1] else ''}"
        try:
            self.base()
        except StoreCorruptError as error:
            found[f"{TRAINING}/base.json"] = str(error)
        return found

    def newest(self) -> tuple[CheckpointInfo, CheckpointNote] | None:
        """The newest checkpoint, found whole as far as its own file goes; None where there is none.

        Raises:
            StoreCorruptError: it is damaged.
            StoreError: it can't be read.
        """
        numbers = self.checkpoints.numbers()
        return self.read(numbers[-1]) if numbers else None

    def read(self, number: int) -> tuple[CheckpointInfo, CheckpointNote]:
        """What is known of a checkpoint.

        Raises:
            UnknownIdError: there is none of this number.
            StoreCorruptError, StoreError: its file is damaged, or can't be read.
        """
        about = self.checkpoints.about(number)
        note = CheckpointNote.read(about.metadata)
        return _info(about, note), note


def _info(about: About, note: CheckpointNote) -> CheckpointInfo:
    return CheckpointInfo(
        number=about.number,
        file=about.path.name,
        is_snapshot=about.is_snapshot,
        sha256=about.sha256,
        checkpoint_bytes=about.checkpoint_bytes,
        written_bytes=about.written_bytes,
        created_ns=about.written_ns,
        jobs=tuple(result.id for result in note.results),
        through=note.through,
    )
