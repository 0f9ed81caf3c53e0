"""The trainings that were accepted: each a file before it is acknowledged, and a line of what became of it after.

::

    <number>.job       the whole job: it waits, or is in no checkpoint yet
    <number>.done      what became of it: its samples are gone
    <number>.damaged   a job that could not be read; kept to be looked at

A file is eight bytes that mark it, the SHA-256 of the rest, and a record as MessagePack. It never changes; each gets
its name when it is on the disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from sona.errors import StoreCorruptError
from sona.storage.connection import store_error
from sona.storage.draft import Draft, make_folder, remove_drafts
from sona.training import JobResult, TrainingJob

MARK = b"SONAJOB1"
KEEP = 1000
"""Results that stay, the newest: of older jobs the ids are forgotten."""
_DIGEST_BYTES = 32
_NAME = re.compile(r"(\d{8,})\.(job|done)")
T = TypeVar("T", TrainingJob, JobResult)


class TrainingJobs:
    """A folder of them. One process writes; any may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> tuple[list[int], list[int]]:
        """Those that wait or are in no checkpoint yet, and those of which there is a result, in order."""
        found: dict[str, set[int]] = {"job": set(), "done": set()}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                found[match[2]].add(int(match[1]))
        return sorted(found["job"] - found["done"]), sorted(found["done"])

    def accept(self, job: TrainingJob) -> None:
        """Keep it; it is durable when this returns.

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble; it is not accepted.
        """
        try:
            make_folder(self.folder)
            self._write(f"{job.number:08}.job", job)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def read(self, number: int) -> TrainingJob:
        """A job that has no result.

        Raises:
            StoreCorruptError: its file is damaged or missing.
            StoreError: it can't be read.
        """
        return self._read(f"{number:08}.job", TrainingJob)

    def result(self, number: int) -> JobResult:
        """What became of a job; raises as :meth:`read`."""
        return self._read(f"{number:08}.done", JobResult)

    def settle(self, result: JobResult, *, is_damaged: bool = False) -> None:
        """Keep what became of a job in the place of its samples; of a damaged one its file is set aside.

        Raises:
            StoreError: the disk's trouble; it has its result, or is what it was.
        """
        job = self.folder / f"{result.number:08}.job"
        try:
            self._write(f"{result.number:08}.done", result)
            if is_damaged and job.exists():
                job.rename(job.with_suffix(".damaged"))
            job.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def forget(self, number: int) -> None:
        """Remove what became of a job, if that is still there; StoreError where the disk does not let it go."""
        try:
            (self.folder / f"{number:08}.job").unlink(missing_ok=True)  # first: without a result it would wait again
            (self.folder / f"{number:08}.done").unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def clean(self) -> None:
        """Remove what crashes have left, and results beyond the newest :data:`KEEP`; for the one that writes.

        Raises:
            StoreError: the disk does not let them go.
        """
        if not self.folder.is_dir():
            return
        _, settled = self.numbers()
        try:
            remove_drafts(self.folder)
            for number in settled:
                (self.folder / f"{number:08}.job").unlink(missing_ok=True)  # a crash came between the two
            for number in settled[:-KEEP]:
                (self.folder / f"{number:08}.done").unlink()
        except OSError as error:
            raise store_error(error, self.folder) from error

    def damage(self) -> Mapping[str, str]:
        """What is wrong, by the file's name."""
        found: dict[str, str] = {}
        waiting, settled = self.numbers()
        for number, read in [(n, self.read) for n in waiting] + [(n, self.result) for n in settled]:
            try:
                read(number)
            except StoreCorruptError as error:
                found[f"{number:08}.{'job' if read == self.read else 'done'}"] = str(error)
        return found

    def _write(self, name: str, record: TrainingJob | JobResult) -> None:
        payload = msgspec.msgpack.encode(record)
        with Draft(self.folder) as draft:
            draft.write(MARK + hashlib.sha256(payload).digest() + payload)
            draft.publish(name)

    def _read(self, name: str, kind: type[T]) -> T:
        path = self.folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreCorruptError(f"{path} is missing; restore it from a backup") from None
        except OSError as error:
            raise store_error(error, path) from error
        head = len(MARK) + _DIGEST_BYTES
        if data[:head] != MARK + hashlib.sha256(data[head:]).digest():
            raise StoreCorruptError(f"{path} is damaged; restore it from a backup")
        try:
            return msgspec.msgpack.decode(data[head:], type=kind)
        except (msgspec.DecodeError, ValueError) as error:  # whole, so of another release
            raise StoreCorruptError(f"{path} is of another sona ({error}); open it with that one") from None
