"""Where full-weight training is asked for: takes jobs and keeps them, tells how it stands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sona import forked
from sona.checks import check_id
from sona.config import Config
from sona.errors import ClosedError, ConflictError, QueueFullError, TrainingError
from sona.loops.full.base import TrainableBase
from sona.loops.full.messages import TrainerSetup
from sona.loops.full.queue import Queue
from sona.loops.full.working import Saving, TrainingWork
from sona.loops.messages import RELEASE
from sona.storage.training_folder import TrainedBase, TrainingFolder
from sona.training import JobStatus, Recipe, TrainingJob, TrainingSample, TrainingStatus, content_digest
from sona.types import new_id

log = logging.getLogger("sona.training")

SHOWN = 100
"""Jobs that a status shows, beside those that are in no checkpoint yet."""


class TrainingDesk:
    """Of one open engine; any thread may call. Nothing is read, and no process started, before it is asked for."""

    def __init__(self, store: Path, base: Callable[[], TrainableBase | None], config: Config) -> None:
        """``base``: asked when it is needed; None of a host without a model."""
        self._store, self._base, self._config = store, base, config
        self._folder = TrainingFolder(store, snapshot_every=config.full.snapshot_every)
        self._opening = threading.Lock()
        self._opened: TrainingWork | None = None
        self._is_closed = False
        self._accepted = 0
        forked.watch(self)

    def submit(self, samples: Sequence[TrainingSample], recipe: Recipe, job_id: str | None = None) -> JobStatus:
        """Take a job; it survives a power cut when this returns, and is trained in its turn, once.

        Args:
            samples: what to learn.
            recipe: how.
            job_id: the caller's name for it: the same job under the same id is taken once.

        Raises:
            InvalidInputError: samples that can't be learned: none, too many, too long.
            UnknownTokenError: token ids outside the vocabulary.
            ConflictError: the id is that of a job with other content.
            TrainingError: training is switched off, or what was trained here began from another base model.
            ModelTooLargeError: the model is too large for this machine, or for the settings.
            QueueFullError: as many wait as ``full.max_queued_jobs`` allows.
            StoreError: it can't be kept; it was not taken.
        """
        base, kept = self._trainable(), tuple(samples)
        base.check_samples(kept, self._config.full)
        if job_id is not None:
            check_id(job_id, "job id")
        work = self._work()
        with work.changed:
            known = None if job_id is None else work.queue.named(job_id)
            if known is not None:
                if known.digest != content_digest(kept, recipe):
                    raise ConflictError(f"job id {job_id!r} is taken by other content; give another id")
                return known.status()
            self._check_room(work, base, recipe)
            if self._check_base(base) is None:
                self._folder.begin(TrainedBase(model=base.place, fingerprint=base.fingerprint))
            job = TrainingJob(number=work.queue.next_number, id=job_id or new_id(), samples=kept, recipe=recipe)
            taken = work.queue.add(job).status()
            self._accepted += 1
        work.wake()
        return taken

    def checkpoint(self) -> Saving:
        """Write down all that was done since the last checkpoint, together, once the job under way has ended; None
        where there is nothing new.

        The future fails with LearnerError where the process dies (what it did is done again, so ask again), with
        StoreError where nothing can be written, and with ClosedError.

        Raises:
            StoreError: what was done before can't be read.
            ClosedError: the engine is closed.
        """
        return self._work().save()

    def resume(self) -> None:
        """Go on with what was accepted before a crash or a restart, if there is any.

        Raises:
            StoreError: it can't be read.
        """
        base = self._base()
        if base is None or not self._config.full.enabled or not self._folder.exists:
            return
        work = self._work()
        if not work.queue.waiting:
            return
        try:
            self._check_base(base)
        except TrainingError as error:  # told to who asks for a training, too
            log.warning("%d training jobs wait: %s", len(work.queue.waiting), error)
        else:
            work.wake()

    def status(self) -> TrainingStatus:
        """How everything stands.

        Raises:
            StoreError: what is on the disk can't be read.
            ClosedError: the engine is closed.
        """
        work = self._work()
        with work.changed:
            entries = list(work.queue)
            first = len(entries) - SHOWN
            shown = [one for place, one in enumerate(entries) if place >= first or not one.is_settled]
            return TrainingStatus(
                enabled=self._config.full.enabled,
                pid=work.pid,
                queued=sum(one.result is None for one in entries),
                jobs=tuple(one.status() for one in shown),
                last_checkpoint=work.queue.last,
                last_error=work.last_error,
                accepted=self._accepted,
                done=work.done,
                failed=work.failed,
            )

    def close(self) -> None:
        """End the process, in the middle of anything: what is in no checkpoint is done again after the next start."""
        with self._opening:
            self._is_closed = True
        if self._opened is not None:
            self._opened.close()

    def forked(self) -> None:
        """In a forked child: the process is the parent's."""
        self._opening, self._is_closed = threading.Lock(), True
        if self._opened is not None:
            self._opened.forked()

    def _trainable(self) -> TrainableBase:
        if not self._config.full.enabled:
            raise TrainingError("full-weight training is switched off here (full.enabled)")
        if (base := self._base()) is None:
            raise TrainingError("there is no model to train; open the engine with one")
        return base

    def _check_room(self, work: TrainingWork, base: TrainableBase, recipe: Recipe) -> None:
        limits = self._config.full
        base.check_size(limits)
        if len(work.queue.waiting) >= limits.max_queued_jobs:
            raise QueueFullError(f"{len(work.queue.waiting)} training jobs wait, which is the limit; try again")
        if work.pid is None:
            base.check_memory(recipe)

    def _check_base(self, base: TrainableBase) -> TrainedBase | None:
        """What training began from, which is this base; None where it begins now."""
        began = self._folder.base()
        if began is not None and began.fingerprint != base.fingerprint:
            raise TrainingError(
                "what was trained in this store began from another base model; move the store's folder 'training' away "
                "to begin anew"
            )
        return began

    def _work(self) -> TrainingWork:
        with self._opening:
            if self._is_closed:
                raise ClosedError("the engine is closed")
            if self._opened is None:
                self._opened = TrainingWork(Queue(self._folder), self._setup, self._config.full)
            return self._opened

    def _setup(self) -> TrainerSetup:
        base = self._trainable()
        self._check_base(base)
        return TrainerSetup(
            release=RELEASE,
            store=str(self._store),
            model=base.place,
            fingerprint=base.fingerprint,
            settings=msgspec.to_builtins(self._config),
        )
