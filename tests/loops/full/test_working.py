"""Jobs are trained in order and once, whatever dies; a checkpoint holds all that was done. The process is a fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save as save_tensors

from sona.config import Config, FullConfig
from sona.errors import (
    ClosedError,
    ConflictError,
    InvalidInputError,
    LearnerError,
    ModelError,
    ModelTooLargeError,
    QueueFullError,
    StoreFullError,
    TrainingError,
    UnknownTokenError,
)
from sona.loops.full import base as base_module
from sona.loops.full import working
from sona.loops.full.base import TrainableBase
from sona.loops.full.desk import TrainingDesk
from sona.loops.full.messages import JobFailed
from sona.storage.training_folder import TrainingFolder
from sona.training import CheckpointInfo, CheckpointMade, CheckpointNote, JobResult
from tests.training import recipe, samples

BASE = TrainableBase(place="tiny", fingerprint="f", shapes={"a": (8, 8)}, vocab_size=60, max_tokens=12)


class FakeTrainer:
    """Remembers in which order jobs came into the weights, of which the last checkpoint's are on a disk."""

    disk: list[int]
    pid: int | None
    number: int
    misses: dict[int, list[Any]]
    """What happens to a job instead of its training, one thing after the other."""
    fails: list[Exception]
    """What saving, or loading, raises."""
    lives: list[FakeTrainer]
    go_on: threading.Event

    def __init__(self, setup: object, threads: int, check: Callable[[], None]) -> None:
        self.check, self.pid = check, 1
        self.weights = list(type(self).disk)
        type(self).lives.append(self)

    def load(self) -> int:
        if self.fails and isinstance(self.fails[0], ModelError):
            raise self.fails.pop(0)
        return self.number

    def run(self, number: int, on_step: Callable[[int], None]) -> JobResult | JobFailed:
        on_step(1)
        while not self.go_on.is_set():
            self.check()
            time.sleep(0.001)
        if self.misses.get(number):
            what = self.misses[number].pop(0)
            if isinstance(what, Exception):
                self.pid = None
                raise what
            self.weights.append(-number)  # half of it
            return JobFailed(number=number, why=what)
        self.weights.append(number)
        return JobResult(number=number, id=f"{number}", digest=b"", state="done", loss_before=2.0, loss_after=1.0)

    def save(self) -> CheckpointMade:
        if self.fails:
            raise self.fails.pop(0)
        kind = type(self)
        new = self.weights[len(kind.disk) :]
        kind.disk, kind.number = list(self.weights), kind.number + 1
        info = CheckpointInfo(
            number=kind.number,
            file="",
            is_snapshot=True,
            sha256="",
            checkpoint_bytes=1,
            written_bytes=1,
            created_ns=0,
            jobs=tuple(map(str, new)),
            through=max(self.weights),
        )
        return CheckpointMade(checkpoint=info, blocks=1, changed_blocks=1)

    def end(self) -> None:
        self.pid = None

    def forked(self) -> None:
        pass


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrainer]:
    class Fresh(FakeTrainer):
        disk, number, misses, fails, lives, go_on = [], 0, {}, [], [], threading.Event()

    Fresh.go_on.set()
    monkeypatch.setattr(working, "Trainer", Fresh)
    monkeypatch.setattr(working, "BACKOFF_S", 0.001)
    monkeypatch.setattr(working, "MOST_BACKOFF_S", 0.01)
    monkeypatch.setattr(working, "LOOK_S", 0.01)
    return Fresh


def desk_of(path: Path, base: TrainableBase | None = BASE, **settings: Any) -> TrainingDesk:
    return TrainingDesk(path / "store", lambda: base, Config(full=FullConfig(**settings)))


@pytest.fixture
def desk(tmp_path: Path, trainer: type[FakeTrainer]) -> Iterator[TrainingDesk]:
    opened = desk_of(tmp_path)
    yield opened
    opened.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def send(desk: TrainingDesk, count: int = 1) -> list[str]:
    begin = desk.status().accepted
    return [desk.submit(samples(2, begin + place), recipe(), f"{begin + place + 1}").id for place in range(count)]


def is_idle(desk: TrainingDesk) -> bool:
    return desk.status().queued == 0


def states(desk: TrainingDesk) -> list[str]:
    return [one.state for one in desk.status().jobs]


def test_jobs_are_trained_in_order_and_put_into_one_checkpoint(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    ids = send(desk, 3)
    until(lambda: is_idle(desk))
    assert [(one.state, one.in_checkpoint, one.loss_after) for one in desk.status().jobs] == [("done", False, 1.0)] * 3
    made = desk.checkpoint().result(20)
    assert made is not None
    assert made.checkpoint.jobs == tuple(ids)
    assert trainer.disk == [1, 2, 3]
    assert all(one.in_checkpoint for one in desk.status().jobs)
    assert desk.status().last_checkpoint == made.checkpoint


def test_with_nothing_new_there_is_no_checkpoint(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    assert desk.checkpoint().result(20) is None
    send(desk)
    until(lambda: is_idle(desk))
    assert desk.checkpoint().result(20) is not None
    assert desk.checkpoint().result(20) is None
    assert trainer.number == 1


def test_a_checkpoint_waits_for_the_job_under_way_and_for_no_other(
    desk: TrainingDesk, trainer: type[FakeTrainer]
) -> None:
    send(desk)
    until(lambda: is_idle(desk))
    trainer.go_on.clear()
    send(desk, 2)
    until(lambda: states(desk)[1] == "running")
    asked = [desk.checkpoint(), desk.checkpoint()]
    assert not asked[0].done()
    trainer.go_on.set()
    made = asked[0].result(20)
    assert made is not None
    assert made.checkpoint.jobs == ("1", "2")
    assert asked[1].result(20) == made, "asked twice, written once"


def test_a_checkpoint_comes_by_itself_after_so_many_jobs(tmp_path: Path, trainer: type[FakeTrainer]) -> None:
    desk = desk_of(tmp_path, checkpoint_after_jobs=2)
    send(desk, 5)
    until(lambda: is_idle(desk) and trainer.number == 2)
    assert trainer.disk == [1, 2, 3, 4]
    desk.close()


def test_what_a_process_had_not_saved_is_done_again_in_order(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    send(desk, 2)
    until(lambda: is_idle(desk))
    desk.checkpoint().result(20)
    trainer.misses = {4: [LearnerError("the process that trains was killed")]}
    send(desk, 3)
    until(lambda: is_idle(desk))
    desk.checkpoint().result(20)
    assert len(trainer.lives) == 2
    assert trainer.lives[0].weights == [1, 2, 3]
    assert trainer.disk == [1, 2, 3, 4, 5]
    assert (desk.status().done, desk.status().failed) == (5, 0), "counted once"
    assert "was killed" in str(desk.status().last_error)


def test_one_that_dies_with_nothing_to_do_is_followed_by_another(
    desk: TrainingDesk, trainer: type[FakeTrainer]
) -> None:
    send(desk)
    until(lambda: is_idle(desk))
    trainer.lives[0].pid = None
    until(lambda: len(trainer.lives) == 2 and is_idle(desk))
    assert trainer.lives[1].weights == [1]


def test_a_checkpoint_that_was_asked_for_holds_what_was_done_before_a_death(
    desk: TrainingDesk, trainer: type[FakeTrainer]
) -> None:
    send(desk, 3)
    until(lambda: is_idle(desk))
    trainer.go_on.clear()
    trainer.lives[0].pid = None
    until(lambda: states(desk)[0] == "running")
    asked = desk.checkpoint()
    trainer.go_on.set()
    made = asked.result(20)
    assert made is not None
    assert made.checkpoint.jobs == ("1", "2", "3")


def test_a_job_that_fails_leaves_no_trace_in_the_weights(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    trainer.misses = {2: ["its loss is not finite"]}
    send(desk, 3)
    until(lambda: is_idle(desk))
    desk.checkpoint().result(20)
    assert trainer.lives[0].weights == [1, -2]
    assert trainer.disk == [1, 3]
    assert states(desk) == ["done", "failed", "done"]
    assert desk.status().jobs[1].why == "its loss is not finite"
    assert (desk.status().done, desk.status().failed) == (2, 1)


def test_a_job_at_which_processes_die_is_given_up(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    trainer.misses = {1: [LearnerError("the process that trains was killed")] * working.MOST_DEATHS}
    send(desk, 2)
    until(lambda: is_idle(desk))
    assert states(desk) == ["failed", "done"]
    assert f"{working.MOST_DEATHS} processes died at it" in desk.status().jobs[0].why


def test_a_death_is_told_while_the_job_is_tried_again(
    desk: TrainingDesk, trainer: type[FakeTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "BACKOFF_S", 60.0)  # the next try is not of this test
    trainer.misses = {1: [LearnerError("the process that trains was killed")]}
    send(desk)
    until(lambda: bool(desk.status().jobs[0].why))
    told = desk.status().jobs[0]
    assert (told.state, told.why) == (
        "queued",
        f"1 process has died at it; it is tried again, and given up after {working.MOST_DEATHS}",
    )


def test_what_cant_be_loaded_is_told_and_tried_again(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    trainer.fails = [ModelError("the base has changed")] * 5
    send(desk)
    until(lambda: is_idle(desk))
    assert desk.status().last_error == "ModelError: the base has changed"
    assert states(desk) == ["done"], "none of these was the job's fault"


def test_a_checkpoint_that_cant_be_written_is_told_and_costs_nothing(
    desk: TrainingDesk, trainer: type[FakeTrainer]
) -> None:
    send(desk)
    until(lambda: is_idle(desk))
    trainer.fails = [StoreFullError("no room")]
    with pytest.raises(StoreFullError):
        desk.checkpoint().result(20)
    assert len(trainer.lives) == 1
    assert desk.checkpoint().result(20) is not None


def test_a_checkpoint_whose_process_dies_says_so(desk: TrainingDesk, trainer: type[FakeTrainer]) -> None:
    send(desk)
    until(lambda: is_idle(desk))
    trainer.fails = [LearnerError("the process that trains was killed")]
    with pytest.raises(LearnerError, match="done again"):
        desk.checkpoint().result(20)
    until(lambda: is_idle(desk))
    assert desk.checkpoint().result(20) is not None


def test_a_process_that_dies_before_it_says_that_it_saved_has_saved(
    desk: TrainingDesk, trainer: type[FakeTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = TrainingFolder(desk._store), trainer.save

    def save_and_die(self: FakeTrainer) -> CheckpointMade:
        monkeypatch.setattr(trainer, "save", real)
        told = tuple(JobResult(number=n, id=f"{n}", digest=b"", state="done", loss_after=0.5) for n in self.weights)
        note = CheckpointNote(through=2, fingerprint="f", kind="", steps=1, results=told)
        folder.checkpoints.save(save_tensors({"weight/a": torch.zeros(1)}, note.metadata()))
        trainer.disk, trainer.number = list(self.weights), 1
        raise LearnerError("the process that trains was killed")

    send(desk, 2)
    until(lambda: is_idle(desk))
    monkeypatch.setattr(trainer, "save", save_and_die)
    with pytest.raises(LearnerError):
        desk.checkpoint().result(20)
    send(desk, 1)
    until(lambda: is_idle(desk))
    assert [(one.in_checkpoint, one.loss_after) for one in desk.status().jobs] == [(True, 0.5), (True, 0.5), (False, 1)]
    assert trainer.lives[1].weights == [1, 2, 3], "none of them twice"
    assert folder.jobs.numbers() == ([3], [1, 2])


def test_closing_ends_a_job_in_its_middle_and_fails_a_checkpoint(
    desk: TrainingDesk, trainer: type[FakeTrainer]
) -> None:
    send(desk)
    until(lambda: is_idle(desk))
    trainer.go_on.clear()
    send(desk)
    until(lambda: states(desk)[1] == "running")
    asked = desk.checkpoint()
    desk.close()
    with pytest.raises(ClosedError):
        asked.result(0)
    for late in (desk.status, desk.checkpoint, lambda: send(desk)):
        with pytest.raises(ClosedError):
            late()


def test_the_next_start_goes_on_with_what_was_accepted(tmp_path: Path, trainer: type[FakeTrainer]) -> None:
    trainer.go_on.clear()
    first = desk_of(tmp_path)
    ids = send(first, 2)
    first.close()
    trainer.go_on.set()
    second = desk_of(tmp_path)
    assert states(second) == ["queued", "queued"]
    assert second.submit(samples(2, 0), recipe(), ids[0]).state == "queued", "the same job is taken once"
    second.resume()
    until(lambda: is_idle(second))
    assert second.checkpoint().result(20) is not None
    assert trainer.disk == [1, 2]
    second.close()


def test_resuming_with_nothing_to_do_starts_nothing(tmp_path: Path, trainer: type[FakeTrainer]) -> None:
    desk = desk_of(tmp_path)
    desk.resume()
    assert (trainer.lives, (tmp_path / "store").exists()) == ([], False)
    desk.close()


# What is taken


def test_the_same_id_with_other_content_is_a_conflict(desk: TrainingDesk) -> None:
    desk.submit(samples(2, 1), recipe(), "a")
    for other in ((samples(2, 2), recipe()), (samples(2, 1), recipe(learning_rate=1e-4))):
        with pytest.raises(ConflictError, match="'a' is taken by other content"):
            desk.submit(*other, "a")
    assert desk.status().accepted == 1


def test_jobs_beyond_the_limit_are_refused(tmp_path: Path, trainer: type[FakeTrainer]) -> None:
    trainer.go_on.clear()
    desk = desk_of(tmp_path, max_queued_jobs=2)
    send(desk, 2)
    with pytest.raises(QueueFullError, match="2 training jobs wait"):
        send(desk)
    assert desk.submit(samples(2, 0), recipe(), "1").id == "1", "one that is known is no more"
    desk.close()


@pytest.mark.parametrize(
    ("count", "changes", "error", "told"),
    [
        (0, {}, InvalidInputError, r"samples: 0; 1 to 1024"),
        (3, {"max_samples": 2}, InvalidInputError, r"samples: 3; 1 to 2"),
        (1, {"max_tokens": 4}, InvalidInputError, r"samples\[0\]: \d+ tokens; at most 4"),
        (1, {"enabled": False}, TrainingError, r"switched off here \(full.enabled\)"),
        (1, {"max_parameters": 63}, ModelTooLargeError, r"64 parameters; at most 63"),
    ],
)
def test_what_cant_be_trained_is_not_accepted(
    tmp_path: Path,
    trainer: type[FakeTrainer],
    count: int,
    changes: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    desk = desk_of(tmp_path, **changes)
    with pytest.raises(error, match=told):
        desk.submit(samples(count), recipe())
    assert (desk.status().accepted, trainer.lives) == (0, [])
    desk.close()


def test_tokens_and_lengths_beyond_the_models_are_refused(desk: TrainingDesk) -> None:
    with pytest.raises(UnknownTokenError, match=r"samples\[0\]: token id \d+; below 60"):
        desk.submit(samples(1, vocabulary=10_000), recipe())
    short = samples(1)[0]
    long = replace(short, context=short.context * 5)
    with pytest.raises(InvalidInputError, match=r"at most 12 are allowed"):
        desk.submit([long], recipe())


def test_without_memory_it_is_refused_before_it_is_accepted(
    desk: TrainingDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "available_bytes", lambda: 100)
    with pytest.raises(ModelTooLargeError, match="take optimizer 'apollo-mini'"):
        desk.submit(samples(1), recipe())
    assert desk.status().accepted == 0


def test_a_host_without_a_model_has_nothing_to_train(tmp_path: Path) -> None:
    desk = desk_of(tmp_path, base=None)
    with pytest.raises(TrainingError, match="no model"):
        desk.submit(samples(1), recipe())
    desk.close()


def test_another_base_is_refused_and_gets_none_of_the_jobs_that_wait(
    tmp_path: Path, trainer: type[FakeTrainer]
) -> None:
    trainer.go_on.clear()
    first = desk_of(tmp_path)
    send(first)
    first.close()
    trainer.go_on.set()
    trainer.lives.clear()
    other = TrainableBase(place="tiny", fingerprint="g", shapes={}, vocab_size=60, max_tokens=12)
    desk = desk_of(tmp_path, base=other)
    desk.resume()
    with pytest.raises(TrainingError, match="another base model"):
        desk.submit(samples(1), recipe())
    assert states(desk) == ["queued"]
    desk.close()
    assert trainer.lives == []


def test_a_job_that_is_damaged_on_the_disk_is_told_and_the_rest_goes_on(
    tmp_path: Path, trainer: type[FakeTrainer]
) -> None:
    trainer.go_on.clear()
    first = desk_of(tmp_path)
    send(first, 2)
    first.close()
    path = TrainingFolder(tmp_path / "store").jobs.folder / "00000001.job"
    path.write_bytes(path.read_bytes()[:-1])
    trainer.go_on.set()
    second = desk_of(tmp_path)
    second.resume()
    until(lambda: is_idle(second))
    assert [(one.id, one.state) for one in second.status().jobs] == [("damaged-00000001", "failed"), ("2", "done")]
    assert path.with_suffix(".damaged").exists()
    second.close()
