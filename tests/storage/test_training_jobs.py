"""Jobs are kept whole or not at all, and what became of them stays; backups and the doctor know them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import save

from sona.errors import StoreCorruptError, StoreError, StoreReadOnlyError, UnknownIdError
from sona.storage import backup as backup_module
from sona.storage import training_jobs
from sona.storage.backup import take_training
from sona.storage.doctor import diagnose
from sona.storage.store import Store
from sona.storage.training_folder import TrainedBase, TrainingFolder
from sona.storage.training_jobs import TrainingJobs
from sona.storage.versions import DRAFT
from sona.training import CheckpointNote, JobResult, TrainingJob
from tests.training import job


def done(of: TrainingJob) -> JobResult:
    return JobResult(number=of.number, id=of.id, digest=of.digest, state="done", samples=len(of.samples), steps=2)


def note(through: int, *results: JobResult) -> CheckpointNote:
    return CheckpointNote(through=through, fingerprint="f", kind="apollo/8/masters", steps=2, results=results)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def jobs(tmp_path: Path) -> TrainingJobs:
    return TrainingJobs(tmp_path / "jobs")


def test_a_job_comes_back_as_it_was_until_it_has_a_result(jobs: TrainingJobs) -> None:
    assert jobs.numbers() == ([], [])
    first, second = job(1), job(2)
    jobs.accept(first)
    jobs.accept(second)
    assert (jobs.read(1), jobs.read(2)) == (first, second)
    jobs.settle(done(first))
    assert jobs.numbers() == ([2], [1])
    assert jobs.result(1) == done(first)
    with pytest.raises(StoreCorruptError, match="missing"):
        jobs.read(1)


def test_the_digest_tells_contents_apart_and_nothing_else() -> None:
    same = job(1), TrainingJob(number=7, id="other", samples=job(1).samples, recipe=job(1).recipe)
    assert same[0].digest == same[1].digest
    assert len({job(1).digest, job(2).digest, job(1, scale=2.0).digest, job(1, passes=2).digest}) == 4


def test_a_crash_between_result_and_removal_is_made_up_for(jobs: TrainingJobs) -> None:
    jobs.accept(job(1))
    kept = (jobs.folder / "00000001.job").read_bytes()
    jobs.settle(done(job(1)))
    (jobs.folder / "00000001.job").write_bytes(kept)
    (jobs.folder / f"{DRAFT}half").write_bytes(b"SONAJ")
    assert jobs.numbers() == ([], [1])
    jobs.clean()
    assert os.listdir(jobs.folder) == ["00000001.done"]


def test_only_the_newest_results_stay(jobs: TrainingJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_jobs, "KEEP", 2)
    for number in range(1, 6):
        jobs.accept(job(number))
        if number != 3:
            jobs.settle(done(job(number)))
    jobs.clean()
    assert jobs.numbers() == ([3], [4, 5])


@pytest.mark.parametrize("place", [0, 10, 45, -1])
def test_a_flipped_bit_is_found(jobs: TrainingJobs, place: int) -> None:
    jobs.accept(job(1))
    flip(jobs.folder / "00000001.job", place)
    with pytest.raises(StoreCorruptError, match=r"00000001.job is damaged"):
        jobs.read(1)
    assert list(jobs.damage()) == ["00000001.job"]


def test_a_damaged_job_is_set_aside(jobs: TrainingJobs) -> None:
    jobs.accept(job(1))
    jobs.settle(done(job(1)), is_damaged=True)
    assert sorted(os.listdir(jobs.folder)) == ["00000001.damaged", "00000001.done"]


def test_a_disk_that_takes_nothing_accepts_nothing(jobs: TrainingJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    jobs.accept(job(1))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreReadOnlyError):
        jobs.accept(job(2))
    assert jobs.numbers() == ([1], [])
    assert os.listdir(jobs.folder) == ["00000001.job"]


# The folder


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    """Of a store with two checkpoints and a job that is in neither."""
    with Store.open(tmp_path / "store"):
        pass
    import torch

    found = TrainingFolder(tmp_path / "store")
    found.begin(TrainedBase(model="tiny", fingerprint="f"))
    for number in (1, 2):
        found.jobs.accept(job(number))
        weights = {"weight/a": torch.full((5000,), float(number))}
        found.checkpoints.save(save(weights, note(number, done(job(number))).metadata()))
    found.jobs.settle(done(job(1)))
    found.jobs.accept(job(3))
    return found


def test_a_checkpoint_says_which_jobs_are_in_it(folder: TrainingFolder) -> None:
    newest = folder.newest()
    assert newest is not None
    info, told = newest
    assert (info.number, info.is_snapshot, info.through, info.jobs) == (2, False, 2, ("job-2",))
    assert told == note(2, done(job(2)))
    about = folder.checkpoints.about(2)
    folder.checkpoints.restore(2, folder.path / "whole")
    assert about.checkpoint_bytes == (folder.path / "whole").stat().st_size
    assert about.written_bytes == about.path.stat().st_size
    with pytest.raises(UnknownIdError):
        folder.read(3)


@pytest.mark.parametrize("text", ["", "{}", '{"form":2,"through":1,"fingerprint":"","kind":"","steps":0,"results":[]}'])
def test_a_checkpoint_without_a_note_that_can_be_read_is_none(folder: TrainingFolder, text: str) -> None:
    import torch

    folder.checkpoints.save(save({"a": torch.zeros(1)}, {"sona": text} if text else None))
    with pytest.raises(StoreCorruptError, match=r"note of sona's|form 2"):
        folder.newest()


def test_a_backup_has_what_training_goes_on_from(folder: TrainingFolder, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        made = store.backup(tmp_path / "copy")
    assert made.checkpoints == (1, 2)
    copy = TrainingFolder(tmp_path / "copy")
    assert (copy.base(), copy.newest(), copy.jobs.numbers()) == (
        folder.base(),
        folder.newest(),
        folder.jobs.numbers(),
    )
    assert copy.jobs.read(3) == job(3)
    assert diagnose(tmp_path / "copy").exit_code == 0


def test_a_backup_begins_again_where_files_go_away(
    folder: TrainingFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, seen = backup_module._link, 0

    def settle_first(file: Path, place: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            folder.jobs.settle(done(job(2)))
        link(file, place)

    monkeypatch.setattr(backup_module, "_link", settle_first)
    copy = take_training(folder, tmp_path / "copy")
    assert copy.jobs.numbers() == ([3], [1, 2])
    monkeypatch.setattr(backup_module, "_link", lambda file, place: Path("/none/there").stat())
    with pytest.raises(StoreError, match="changed while they were copied"):
        take_training(folder, tmp_path / "other")


def test_the_doctor_finds_damage_and_says_what_is_lost(folder: TrainingFolder, tmp_path: Path) -> None:
    assert diagnose(tmp_path / "store").exit_code == 0
    flip(folder.jobs.folder / "00000003.job", -1)
    flip(folder.checkpoints.folder / "00000001.snapshot", 100)
    found = {one.where: one for one in diagnose(tmp_path / "store").findings}
    assert set(found) == {"training/jobs/00000003.job", "training checkpoint 1", "training checkpoint 2"}
    assert all(one.severity == "damaged" for one in found.values())
    assert "training can't go on" in found["training checkpoint 2"].what, "which follows the first"
    assert "training can't go on" not in found["training checkpoint 1"].what
