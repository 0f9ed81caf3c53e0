"""The thread that has jobs trained, one after another, and starts another process where one has died."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from sona.config import FullConfig
from sona.errors import ClosedError, LearnerError, SonaError, StoreError
from sona.loops.full.attending import Trainer
from sona.loops.full.messages import JobFailed, TrainerSetup
from sona.loops.full.queue import Entry, Queue
from sona.training import CheckpointMade

log = logging.getLogger("sona.training")

BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
"""After a process died the next one is started so much later, twice as much each time."""
LOOK_S = 1.0
"""So often it is looked whether a process that has nothing to do still lives."""
MOST_DEATHS = 5
"""A job at which so many processes died, under one host, has failed: it would hold up all that wait behind it."""

Saving = Future[CheckpointMade | None]
"""A checkpoint that was asked for; None where there is nothing new."""


class TrainingWork:
    """Of one queue. :attr:`changed` is held for every look at the queue, and is never held while the process works."""

    def __init__(self, queue: Queue, setup: Callable[[], TrainerSetup], settings: FullConfig) -> None:
        """``setup``: the first message to a process."""
        self.queue, self._setup, self._settings = queue, setup, settings
        self.changed = threading.Condition()
        self.last_error: str | None = None
        self.done = self.failed = 0
        """Jobs, since the start."""
        self._trainer: Trainer | None = None
        self._thread: threading.Thread | None = None
        self._saves: list[Saving] = []
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Of the process; None where none lives."""
        trainer = self._trainer
        return None if trainer is None else trainer.pid

    def wake(self) -> None:
        """There is something to do."""
        with self.changed:
            self.changed.notify_all()
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="sona-training", daemon=True)
                self._thread.start()

    def save(self) -> Saving:
        """See :meth:`TrainingDesk.checkpoint`."""
        future: Saving = Future()
        with self.changed:
            if self.queue.unsaved or self._redoing():
                self._saves.append(future)
                self.wake()
            else:
                future.set_result(None)
        return future

    def close(self) -> None:
        """End the process, in the middle of anything."""
        with self.changed:
            self._closing = True
            self.changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._fail_saves(ClosedError("the engine was closed before the checkpoint was written"))

    def forked(self) -> None:
        """In a forked child: the process is the parent's."""
        if self._trainer is not None:
            self._trainer.forked()
        self.changed = threading.Condition()
        self._trainer, self._thread, self._closing = None, None, True

    def _work(self) -> None:
        delay = BACKOFF_S
        while self._wait():
            try:
                self._attend()
                delay = BACKOFF_S
            except Exception as error:  # out of memory, a full disk, a fault of ours: none of it may end this thread
                if self._closing:
                    break
                self._met(error)
                with self.changed:
                    self.changed.wait_for(lambda: self._closing, delay)
                delay = min(2 * delay, MOST_BACKOFF_S)
        self._end_trainer()

    def _wait(self) -> bool:
        """Until there is something to do; False where it is to end."""
        with self.changed:
            while not self._closing:
                if self.queue.waiting or self._saves:
                    return True
                self.changed.wait(LOOK_S)
                if self._trainer is not None and self._trainer.pid is None:
                    log.warning("the process that trains has ended; what is in no checkpoint is done again")
                    self._end_trainer()
        return False

    def _attend(self) -> None:
        """Do what there is to do."""
        trainer = self._ready()
        while True:
            with self.changed:
                is_save_due = bool(self._saves) and not self._redoing()
                waiting = self.queue.waiting
            if is_save_due:
                self._save(trainer)
            elif not waiting:
                return
            elif self._run(trainer, waiting[0]):
                self._save_by_itself(trainer)
            else:
                self._end_trainer()  # its weights are those of some step
                return

    def _ready(self) -> Trainer:
        """A process with the newest checkpoint, and all that was done since."""
        if self._trainer is not None and self._trainer.pid is not None:
            return self._trainer
        self._end_trainer()
        trainer = self._trainer = Trainer(self._setup(), self._settings.threads, self._check)
        number = trainer.load()
        with self.changed:
            if number != (0 if self.queue.last is None else self.queue.last.number):
                self.queue.catch_up()
        return trainer

    def _check(self) -> None:
        if self._closing:
            raise ClosedError("the engine is closed")

    def _redoing(self) -> bool:
        """Whether something is done again that was done before: a checkpoint waits for it."""
        return any(entry.was_done for entry in self.queue.waiting)

    def _run(self, trainer: Trainer, entry: Entry) -> bool:
        """Whether the job is in the weights now."""
        with self.changed:
            entry.is_running = True

        def stepped(done: int) -> None:
            entry.steps_done = done

        told = trainer.run(entry.number, stepped)
        with self.changed:
            entry.is_running = False
            if isinstance(told, JobFailed):
                log.warning("training job %s failed: %s", entry.id, told.why)
                self.queue.fail(entry, told.why, is_damaged=told.is_damaged)
                self.failed += 1
                return False
            entry.result = told
            self.done += not entry.was_done
            entry.was_done = True
        log.info("training job %s: loss %.4f before, %.4f after", entry.id, told.loss_before, told.loss_after)
        return True

    def _save(self, trainer: Trainer) -> None:
        with self.changed:
            has_new = bool(self.queue.unsaved)
        made = None
        if has_new:
            try:
                made = trainer.save()
            except StoreError as error:
                log.error("no checkpoint was written: %s", error)
                self.last_error = f"{type(error).__name__}: {error}"
                self._fail_saves(error)
                return
        with self.changed:
            if made is not None:
                self.queue.saved(made)
            saves, self._saves = self._saves, []
        for future in saves:
            future.set_result(made)

    def _save_by_itself(self, trainer: Trainer) -> None:
        with self.changed:
            count = len(self.queue.unsaved)
        limit = self._settings.checkpoint_after_jobs
        if limit and count and count % limit == 0:
            self._save(trainer)

    def _met(self, error: Exception) -> None:
        """Something that was no job's own doing, or made its process die."""
        log.error("training: %s", error, exc_info=None if isinstance(error, SonaError) else error)
        self.last_error = f"{type(error).__name__}: {error}"
        with self.changed:
            at = next((entry for entry in self.queue if entry.is_running), None)
        self._end_trainer()
        self._fail_saves(LearnerError("the process that trains died; what it did is done again, so try again later"))
        if at is not None and isinstance(error, LearnerError):
            self._count_death(at, error)

    def _count_death(self, entry: Entry, error: LearnerError) -> None:
        entry.deaths += 1
        if entry.deaths < MOST_DEATHS:
            died = "1 process has" if entry.deaths == 1 else f"{entry.deaths} processes have"
            entry.trouble = f"{died} died at it; it is tried again, and given up after {MOST_DEATHS}"
            return
        with self.changed:
            try:
                log.error("training job %s is given up; the last process: %s", entry.id, error)
                self.queue.fail(entry, f"{MOST_DEATHS} processes died at it; the server's log says of what")
                self.failed += 1
            except StoreError:
                log.exception("job %s can't be given up", entry.id)

    def _end_trainer(self) -> None:
        with self.changed:
            trainer, self._trainer = self._trainer, None
            self.queue.start_again()
        if trainer is not None:
            trainer.end()

    def _fail_saves(self, error: SonaError) -> None:
        with self.changed:
            saves, self._saves = self._saves, []
        for future in saves:
            future.set_exception(error)
