"""The process that trains full weights: one job after another, and checkpoints between them.

Started by :mod:`sona.loops.full.attending`, never by hand. It reads the jobs that its host has accepted and writes
checkpoints; the host writes everything else. The end of the socket ends it at once, in the middle of anything: what it
did since the last checkpoint the next one does again.
"""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sona.config import config_from
from sona.errors import LearnerError, SonaError, StoreCorruptError, StoreError
from sona.loops.full.messages import (
    KINDS,
    CheckpointFailed,
    CheckpointSaved,
    JobDone,
    JobFailed,
    Loaded,
    RunJob,
    SaveCheckpoint,
    Stepped,
    TrainerFailed,
    TrainerSetup,
)
from sona.loops.host_line import PREDECESSOR_S, HostLine, give_way, locked
from sona.loops.messages import RELEASE
from sona.storage.lock import TrainerLock
from sona.storage.training_folder import TrainingFolder

if TYPE_CHECKING:
    from sona.loops.full.learned import LearnedModel

log = logging.getLogger("sona.training")


def main(descriptor: int) -> NoReturn:
    """Serve the host at the other end of the socket ``descriptor``."""
    line = HostLine(descriptor, KINDS)
    setup = line.next(None)
    if not isinstance(setup, TrainerSetup):
        raise LearnerError(f"the host began with {type(setup).__name__}")
    if setup.release != RELEASE:
        raise LearnerError(f"this is sona {RELEASE}, its host is {setup.release}: restart the host")
    try:
        _serve(setup, line)
    except BaseException as error:  # whatever that was, the next process begins from the disk
        trace = "" if isinstance(error, SonaError) else traceback.format_exc()
        line.tell(TrainerFailed(error=type(error).__name__, text=str(error), trace=trace))
        os._exit(1)


def _serve(setup: TrainerSetup, line: HostLine) -> NoReturn:
    config = config_from(setup.settings)
    give_way(config.full.nice)
    line.log_here()
    folder = TrainingFolder(Path(setup.store), snapshot_every=config.full.snapshot_every)
    lock = locked(lambda: TrainerLock(folder.lock), PREDECESSOR_S)
    try:
        model = _load(folder, setup)
        line.tell(Loaded(checkpoint=model.checkpoint))
        while True:
            match line.next(None):
                case RunJob(number=number):
                    _run(folder, model, number, line)
                case SaveCheckpoint():
                    _save(model, line)
                case other:
                    raise LearnerError(f"the host said {type(other).__name__}")
    finally:
        lock.release()


def _load(folder: TrainingFolder, setup: TrainerSetup) -> LearnedModel:
    import torch

    from sona.loops.full.learned import LearnedModel

    config = config_from(setup.settings)
    if config.full.threads:
        torch.set_num_threads(config.full.threads)
    return LearnedModel(folder, setup.model, setup.fingerprint, config)


def _run(folder: TrainingFolder, model: LearnedModel, number: int, line: HostLine) -> None:
    if number <= model.through:
        raise LearnerError(f"job {number} is in the weights already")
    try:
        job = folder.jobs.read(number)
    except StoreCorruptError as error:
        log.error("job %d can't be read: %s", number, error)
        line.tell(JobFailed(number=number, why="its file is damaged", is_damaged=True))
        return
    try:
        result = model.run(job, lambda done, loss: line.tell(Stepped(number=number, done=done, loss=loss)))
    except SonaError as error:
        line.tell(JobFailed(number=number, why=str(error)))
        return
    line.tell(JobDone(result=result))


def _save(model: LearnedModel, line: HostLine) -> None:
    try:
        made = model.save()
    except (StoreError, OSError) as error:
        line.tell(CheckpointFailed(error=type(error).__name__, text=str(error)))
        return
    line.tell(CheckpointSaved(made=made))
