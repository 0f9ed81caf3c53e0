"""The jobs that were accepted, in memory: in which order, how far, and in which checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from sona.errors import StoreCorruptError, StoreError
from sona.storage.training_folder import TrainingFolder
from sona.storage.training_jobs import KEEP
from sona.training import CheckpointInfo, CheckpointMade, CheckpointNote, JobResult, JobState, JobStatus, TrainingJob

log = logging.getLogger("sona.training")


@dataclass
class Entry:
    """One job."""

    number: int
    id: str
    digest: bytes
    samples: int
    steps: int
    steps_done: int = 0
    result: JobResult | None = None
    """What became of it; of one that is done and in no checkpoint only as long as its process lives."""
    in_checkpoint: bool = False
    is_running: bool = False
    deaths: int = 0
    """Processes that died while they trained it."""
    trouble: str = ""
    """What is said of it while they do, and it is not given up."""
    was_done: bool = False
    """Since the start; a crash may make it wait again."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing can make it wait again."""
        return self.in_checkpoint or (self.result is not None and self.result.state == "failed")

    @property
    def state(self) -> JobState:
        """How it stands."""
        if self.is_running:
            return "running"
        return "queued" if self.result is None else self.result.state

    def status(self) -> JobStatus:
        """For a person."""
        result = self.result
        return JobStatus(
            number=self.number,
            id=self.id,
            state=self.state,
            why=self.trouble if result is None else result.why,
            samples=self.samples,
            steps=self.steps,
            steps_done=self.steps_done if result is None else result.steps,
            loss_before=None if result is None else result.loss_before,
            loss_after=None if result is None else result.loss_after,
            continued=None if result is None or result.state != "done" else result.continued,
            in_checkpoint=self.in_checkpoint,
        )


class Queue:
    """All that are known. Not safe for several threads."""

    def __init__(self, folder: TrainingFolder) -> None:
        """Read what is on the disk, and settle what the newest checkpoint holds.

        Raises:
            StoreCorruptError: that checkpoint is damaged.
            StoreError: the disk's trouble.
        """
        self._folder = folder
        self._entries: dict[int, Entry] = {}
        self._ids: dict[str, Entry] = {}
        self.last: CheckpointInfo | None = None
        newest = folder.newest()
        folder.jobs.clean()
        waiting, settled = folder.jobs.numbers()
        for number in settled:
            self._read_result(number)
        through = 0 if newest is None else newest[1].through
        for number in waiting:
            self._read_job(number, is_learned=number <= through)
        self._take(newest)
        self.next_number = max([through, *self._entries], default=0) + 1

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def named(self, job_id: str) -> Entry | None:
        """The job of that id."""
        return self._ids.get(job_id)

    def add(self, job: TrainingJob) -> Entry:
        """Accept a job; it is durable when this returns.

        Raises:
            StoreError: the disk's trouble; it is not accepted.
        """
        self._folder.jobs.accept(job)
        self.next_number = job.number + 1
        return self._put(_entry(job))

    @property
    def waiting(self) -> list[Entry]:
        """Those that are to be trained, in order, the running one too."""
        return [entry for entry in self if entry.result is None]

    @property
    def unsaved(self) -> list[Entry]:
        """Those that are in the weights and in no checkpoint."""
        return [entry for entry in self if entry.result is not None and not entry.is_settled]

    def fail(self, entry: Entry, why: str, *, is_damaged: bool = False) -> None:
        """It is not in the weights, and will not be.

        Raises:
            StoreError: that can't be kept; it waits again.
        """
        result = _failed(entry, why)
        self._folder.jobs.settle(result, is_damaged=is_damaged)
        entry.result = result
        self._trim()

    def saved(self, made: CheckpointMade) -> None:
        """A checkpoint holds all that is in the weights."""
        self.last = made.checkpoint
        for entry in self.unsaved:
            entry.in_checkpoint = True
            assert entry.result is not None
            try:
                self._folder.jobs.settle(entry.result)
            except StoreError:  # the checkpoint says it too, and the next start settles it
                log.exception("what became of job %s could not be written", entry.id)
        self._trim()

    def catch_up(self) -> None:
        """A process died when it had published a checkpoint, and had not said so yet.

        Raises:
            StoreCorruptError, StoreError: as when it is opened.
        """
        self._take(self._folder.newest())

    def start_again(self) -> None:
        """The process has ended: what is in no checkpoint waits again."""
        for entry in self:
            if not entry.is_settled:
                entry.result, entry.is_running, entry.steps_done = None, False, 0

    def _trim(self) -> None:
        """Forget the oldest settled jobs beyond :data:`KEEP`, here and on the disk."""
        settled = sorted((entry for entry in self if entry.is_settled), key=lambda entry: entry.number)
        for entry in settled[:-KEEP]:
            del self._entries[entry.number]
            if self._ids.get(entry.id) is entry:
                del self._ids[entry.id]
            try:
                self._folder.jobs.forget(entry.number)
            except StoreError:  # the next start tries again
                log.exception("the result of job %s could not be removed", entry.id)

    def _put(self, entry: Entry) -> Entry:
        self._entries[entry.number] = self._ids[entry.id] = entry
        return entry

    def _read_result(self, number: int) -> None:
        try:
            result = self._folder.jobs.result(number)
        except StoreCorruptError as error:
            log.error("what became of job %d is not known: %s", number, error)
            return
        entry = Entry(number, result.id, result.digest, result.samples, result.steps, result=result)
        entry.in_checkpoint = result.state == "done"
        self._put(entry)

    def _read_job(self, number: int, *, is_learned: bool) -> None:
        try:
            self._put(_entry(self._folder.jobs.read(number)))
        except StoreCorruptError as error:
            log.error("job %d was accepted and can't be read: %s", number, error)
            entry = Entry(number, f"damaged-{number:08}", b"", 0, 0)
            if not is_learned:
                self.fail(entry, "its file is damaged", is_damaged=True)
            self._put(entry)

    def _take(self, newest: tuple[CheckpointInfo, CheckpointNote] | None) -> None:
        """Settle what a checkpoint holds, and a crash kept from being settled."""
        if newest is None:
            return
        self.last, note = newest
        known = {result.number: result for result in note.results}
        for entry in [one for one in self if one.number <= note.through and one.result is None]:
            result = known.get(entry.number) or JobResult(
                number=entry.number, id=entry.id, digest=entry.digest, state="done", samples=entry.samples
            )
            entry.result, entry.in_checkpoint = result, True
            self._folder.jobs.settle(result)


def _entry(job: TrainingJob) -> Entry:
    return Entry(job.number, job.id, job.digest, len(job.samples), job.steps)


def _failed(entry: Entry, why: str) -> JobResult:
    return JobResult(
        number=entry.number, id=entry.id, digest=entry.digest, state="failed", why=why, samples=entry.samples
    )
