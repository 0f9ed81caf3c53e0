"""What is known of jobs stays bounded, in memory and on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sona.errors import StoreFullError
from sona.loops.full import queue as queue_module
from sona.loops.full.queue import Queue
from sona.storage.training_folder import TrainingFolder
from sona.storage.training_jobs import TrainingJobs
from tests.training import job


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(queue_module, "KEEP", 3)
    return Queue(TrainingFolder(tmp_path / "S"))


def fail(queue: Queue, numbers: range) -> None:
    for number in numbers:
        queue.fail(queue.add(job(number)), "too long")


def test_of_failed_jobs_the_newest_are_kept(queue: Queue, tmp_path: Path) -> None:
    fail(queue, range(1, 6))
    waiting = queue.add(job(6))
    fail(queue, range(7, 8))
    assert [entry.number for entry in queue] == [4, 5, 6, 7], "what waits is never trimmed"
    assert queue.named("job-3") is None
    assert queue.waiting == [waiting]
    files = sorted(os.listdir(tmp_path / "S" / "training" / "jobs"))
    assert files == ["00000004.done", "00000005.done", "00000006.job", "00000007.done"]
    again = Queue(TrainingFolder(tmp_path / "S"))
    assert sorted(entry.number for entry in again) == [4, 5, 6, 7]
    assert again.next_number == 8


def test_a_disk_that_keeps_an_old_result_fails_no_job(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(jobs: TrainingJobs, number: int) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr(TrainingJobs, "forget", refuse)
    fail(queue, range(1, 6))
    assert [entry.number for entry in queue] == [3, 4, 5]
