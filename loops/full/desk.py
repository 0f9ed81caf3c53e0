"""Where full-weight training is asked for: takes jobs, keeps them, has them trained one after another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sona.checks import check_id, largest_token
from sona.config import Config
from sona.errors import (
    ClosedError,
    ConflictError,
    InvalidInputError,
    LearnerError,
    ModelTooLargeError,
    QueueFullError,
    SonaError,
    StoreError,
    TrainingError,
    UnknownTokenError,
)
from sona.loops.full.attending import Trainer
from sona.loops.full.memory import available_bytes
from sona.loops.full.messages import JobFailed, TrainerSetup
from sona.loops.full.queue import Entry, Queue
from sona.loops.messages import RELEASE
from sona.storage import forked
from sona.storage.training_folder import TrainedBase, TrainingFolder
from sona.training import (
    CheckpointMade,
    JobStatus,
    Recipe,
    TrainingJob,
    TrainingSample,
    TrainingStatus,
    content_digest,
)
from sona.types import new_id

log = logging.getLogger("sona.training")

BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
"""After a process died the next one is started so much later, twice as much each time."""
LOOK_S = 1.0
"""So often it is looked whether a process that has nothing to do still lives."""
MOST_DEATHS = 3
"""A job at which so many processes died has failed."""
SHOWN = 100
"""Jobs that a status shows, beside those that wait."""


@dataclass(frozen=True)
class TrainableBase:
    """The served base model, as training has to know it."""

    place: str
    """Folder or hub id."""
    fingerprint: str
    shapes: Mapping[str, Sequence[int]]
    """Of its parameters, by name."""
    vocab_size: int
    max_tokens: int
    """The model's own limit."""

    @property
    def parameters(self) -> int:
        """How many numbers there are to train."""
        total = 0
        for shape in self.shapes.values():
            size = 1
            for side in shape:
                size *= side
            total += size
        return total


class TrainingDesk:
    """Of one open engine; any thread may call. No process is started, and nothing read, before it is asked for."""

    def __init__(self, store: Path, base: Callable[[], TrainableBase | None], config: Config) -> None:
        """``base``: asked for when it is needed; None of a host without a model."""
        self._store, self._base, self._config = store, base, config
        self._folder = TrainingFolder(store, snapshot_every=config.full.snapshot_every)
        self._changed = threading.Condition()
        self._queue: Queue | None = None
        self._trainer: Trainer | None = None
        self._thread: threading.Thread | None = None
        self._saves: list[Future[CheckpointMade | None]] = []
        self._closing = False
        self._last_error: str | None = None
        self._accepted = self._done = self._failed = 0
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
        base, kept = self._checked(samples), tuple(samples)
        if job_id is not None:
            check_id(job_id, "job id")
        with self._changed:
            queue = self._opened()
            known = None if job_id is None else queue.named(job_id)
            if known is not None:
                if known.digest != content_digest(kept, recipe):
                    raise ConflictError(f"job id {job_id!r} is taken by other content; give another id")
                return known.status()
            self._check_room(queue, base, recipe)
            self._begin(base)
            job = TrainingJob(number=queue.next_number, id=job_id or new_id(), samples=kept, recipe=recipe)
            entry = queue.add(job)
            self._accepted += 1
            self._wake()
            return entry.status()

    def checkpoint(self) -> Future[CheckpointMade | None]:
        """Write down all that was done since the last checkpoint, together, once the job under way has ended; None
        where there is nothing new.

        The future fails with LearnerError where the process dies (what was done is done again, so ask again), with
        StoreError where it can't be written, and with ClosedError.

        Raises:
            StoreError: what was done can't be read.
            ClosedError: the engine is closed.
        """
        future: Future[CheckpointMade | None] = Future()
        with self._changed:
            queue = self._opened()
            if not queue.unsaved and not any(entry.was_done for entry in queue.waiting):
                future.set_result(None)
                return future
            self._saves.append(future)
            self._wake()
        return future

    def resume(self) -> None:
        """Go on with what was accepted before a crash or a restart, if there is any.

        Raises:
            StoreError: it can't be read.
        """
        if not self._config.full.enabled or not self._folder.exists or self._base() is None:
            return
        with self._changed:
            if self._opened().waiting:
                self._wake()

    def status(self) -> TrainingStatus:
        """How everything stands.

        Raises:
            StoreError: what is on the disk can't be read.
        """
        with self._changed:
            entries = list(self._opened()) if self._folder.exists else []
            first = len(entries) - SHOWN
            shown = [one for place, one in enumerate(entries) if place >= first or not one.is_settled]
            trainer = self._trainer
            return TrainingStatus(
                enabled=self._config.full.enabled,
                pid=None if trainer is None else trainer.pid,
                queued=sum(one.result is None for one in entries),
                jobs=tuple(one.status() for one in shown),
                last_checkpoint=None if self._queue is None else self._queue.last,
                last_error=self._last_error,
                accepted=self._accepted,
                done=self._done,
                failed=self._failed,
            )

    def close(self) -> None:
        """End the process, in the middle of anything: what is in no checkpoint is done again after the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._fail_saves(ClosedError("the engine was closed before the checkpoint was written"))

    def forked(self) -> None:
        """In a forked child: the process is the parent's."""
        if self._trainer is not None:
            self._trainer.forked()
        self._changed = threading.Condition()
        self._trainer, self._thread, self._closing = None, None, True

    # ------------------------------------------------------------------------------------------------ taking

    def _checked(self, samples: Sequence[TrainingSample]) -> TrainableBase:
        limits, base = self._config.full, self._base()
        if not limits.enabled:
            raise TrainingError("full-weight training is switched off here (full.enabled)")
        if base is None:
            raise TrainingError("there is no model to train; open the engine with one")
        if not 0 < len(samples) <= limits.max_samples:
            raise InvalidInputError(f"samples: {len(samples)}; 1 to {limits.max_samples} are allowed")
        most = min(limits.max_tokens, base.max_tokens)
        for place, sample in enumerate(samples):
            if not sample.context or not sample.continuation:
                raise InvalidInputError(f"samples[{place}]: context or continuation without a token; give one or more")
            if len(sample) > most:
                raise InvalidInputError(f"samples[{place}]: {len(sample)} tokens; at most {most} are allowed")
            top = max(largest_token(sample.context), largest_token(sample.continuation))
            if top >= base.vocab_size:
                raise UnknownTokenError(f"samples[{place}]: token id {top}; below {base.vocab_size} is allowed")
        return base

    def _check_room(self, queue: Queue, base: TrainableBase, recipe: Recipe) -> None:
        limits = self._config.full
        if base.parameters > limits.max_parameters:
            raise ModelTooLargeError(
                f"the model has {base.parameters} parameters; at most {limits.max_parameters} are allowed "
                "(full.max_parameters)"
            )
        if len(queue.waiting) >= limits.max_queued_jobs:
            raise QueueFullError(f"{len(queue.waiting)} jobs wait, which is the limit; try again")
        if self._trainer is None:
            _check_memory(base, recipe)

    def _begin(self, base: TrainableBase) -> None:
        began = self._folder.base()
        if began is None:
            self._folder.begin(TrainedBase(model=base.place, fingerprint=base.fingerprint))
        elif began.fingerprint != base.fingerprint:
            raise TrainingError(
                "what was trained in this store began from another base model; move the store's folder 'training' away "
                "to begin anew"
            )

    def _opened(self) -> Queue:
        if self._closing:
            raise ClosedError("the engine is closed")
        if self._queue is None:
            self._queue = Queue(self._folder)
        return self._queue

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="sona-training", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------------------------------------ having it done

    def _work(self) -> None:
        delay = BACKOFF_S
        while self._wait():
            try:
                self._attend()
                delay = BACKOFF_S
            except Exception as error:  # out of memory, a full disk, a fault of ours: none of it may end this thread
                if not self._closing:
                    self._met(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._closing, delay)
                    delay = min(2 * delay, MOST_BACKOFF_S)
        self._end_trainer()

    def _wait(self) -> bool:
        """Until there is something to do; False where the engine is closed."""
        with self._changed:
            while not self._closing:
                assert self._queue is not None
                if self._queue.waiting or self._saves:
                    return True
                self._changed.wait(LOOK_S)
                if self._trainer is not None and self._trainer.pid is None:
                    log.warning("the process that trains has ended; what is in no checkpoint is done again")
                    self._trainer.end()
                    self._trainer = None
                    self._queue.start_again()
        return False

    def _attend(self) -> None:
        """Do what there is to do."""
        assert self._queue is not None
        trainer = self._ready()
        while True:
            with self._changed:
                saves, waiting = bool(self._saves), self._queue.waiting
                unsaved = len(self._queue.unsaved)
            if saves and (unsaved or not any(entry.was_done for entry in waiting)):
                self._save(trainer)
            elif not waiting:
                return
            elif not self._run(trainer, waiting[0]):
                self._end_trainer()  # its weights are those of some step
                return
            self._save_by_itself(trainer)

    def _ready(self) -> Trainer:
        """A process with the newest checkpoint, and all that was done since."""
        if self._trainer is not None and self._trainer.pid is not None:
            return self._trainer
        self._end_trainer()
        base = self._base()
        assert base is not None
        setup = TrainerSetup(
            release=RELEASE,
            store=str(self._store),
            model=base.place,
            fingerprint=base.fingerprint,
            settings=msgspec.to_builtins(self._config),
        )
        trainer = self._trainer = Trainer(setup, self._config.full.threads, self._check)
        trainer.load()
        return trainer

    def _check(self) -> None:
        if self._closing:
            raise ClosedError("the engine is closed")

    def _run(self, trainer: Trainer, entry: Entry) -> bool:
        """Whether the job is in the weights now."""
        assert self._queue is not None
        with self._changed:
            entry.is_running = True

        def stepped(done: int) -> None:
            entry.steps_done = done

        told = trainer.run(entry.number, stepped)
        with self._changed:
            entry.is_running = False
            if isinstance(told, JobFailed):
                log.warning("training job %s failed: %s", entry.id, told.why)
                self._queue.fail(entry, told.why, is_damaged=told.is_damaged)
                self._failed += 1
                return False
            entry.result = told
            self._done += not entry.was_done
            entry.was_done = True
        log.info("training job %s: loss %.4f to %.4f", entry.id, told.loss_before or 0.0, told.loss_after or 0.0)
        return True

    def _save(self, trainer: Trainer) -> None:
        assert self._queue is not None
        with self._changed:
            made = None
            has_new = bool(self._queue.unsaved)
        if has_new:
            try:
                made = trainer.save()
            except StoreError as error:
                self._last_error = str(error)
                self._fail_saves(error)
                return
        with self._changed:
            if made is not None:
                self._queue.saved(made)
            saves, self._saves = self._saves, []
        for future in saves:
            future.set_result(made)

    def _save_by_itself(self, trainer: Trainer) -> None:
        assert self._queue is not None
        with self._changed:
            count = len(self._queue.unsaved)
        limit = self._config.full.checkpoint_after_jobs
        if limit and count and count % limit == 0:
            self._save(trainer)

    def _met(self, error: Exception) -> None:
        """Something that was no job's own doing, or made its process die."""
        log.error("training: %s", error, exc_info=None if isinstance(error, SonaError) else error)
        self._last_error = f"{type(error).__name__}: {error}"
        with self._changed:
            assert self._queue is not None
            at = next((entry for entry in self._queue if entry.is_running), None)
        self._end_trainer()
        self._fail_saves(LearnerError("the process that trains died; what it did is done again, so try again later"))
        if at is None or not isinstance(error, LearnerError):
            return
        at.deaths += 1
        if at.deaths >= MOST_DEATHS:
            with self._changed:
                try:
                    self._queue.fail(at, f"{MOST_DEATHS} processes died at it; the last one: {error}")
                    self._failed += 1
                except StoreError:
                    log.exception("job %s can't be given up", at.id)

    def _end_trainer(self) -> None:
        with self._changed:
            trainer, self._trainer = self._trainer, None
            if self._queue is not None:
                self._queue.start_again()
        if trainer is not None:
            trainer.end()

    def _fail_saves(self, error: SonaError) -> None:
        with self._changed:
            saves, self._saves = self._saves, []
        for future in saves:
            future.set_exception(error)


def _check_memory(base: TrainableBase, recipe: Recipe) -> None:
    from sona.learn.full_weights import needed_bytes

    needed, free = needed_bytes(base.shapes, recipe), available_bytes()
    if free is not None and needed > free:
        raise ModelTooLargeError(
            f"training takes {needed >> 20} MiB of memory, and {free >> 20} MiB are free; take optimizer 'apollo-mini', "
            "a smaller rank, or a smaller model"
        )
