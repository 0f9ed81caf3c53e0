"""Killed at any moment, training goes on where it was: the weights and the optimizer are those of the unbroken run,
bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from sona import tiny
from sona.checkpoints import restore_model
from sona.config import Config, FullConfig, ServeConfig
from sona.errors import ModelError, StoreCorruptError, StoreError
from sona.learn.dataset import Example
from sona.learn.likelihood import evaluate
from sona.loops.full import learned, working
from sona.loops.full.base import TrainableBase
from sona.loops.full.desk import TrainingDesk
from sona.loops.full.learned import LearnedModel
from sona.serving.fingerprint import fingerprint
from sona.serving.loading import load
from sona.storage.deltas import Deltas
from sona.storage.store import Store
from sona.storage.training_folder import TrainedBase, TrainingFolder
from sona.training import CheckpointNote
from tests.processes import first_line, kill, start
from tests.training import job

JOBS = 6
KILLS = int(os.environ.get("SONA_TRAINER_KILLS", "1"))
"""Of the trainer, beside that of the host; each takes some seconds."""
CONFIG = Config(
    serve=ServeConfig(device="cpu"),
    full=FullConfig(nice=0, threads=1, checkpoint_after_jobs=2, keep_checkpoints=2, snapshot_every=1),
)
HOST = """
import sys, time
from pathlib import Path
from sona.loops.full.desk import TrainingDesk
from tests.loops.full.test_trainer import CONFIG, based_on

desk = TrainingDesk(Path(sys.argv[1]), lambda: based_on(sys.argv[2]), CONFIG)
desk.resume()
while not any(one.steps_done for one in desk.status().jobs):
    time.sleep(0.005)
print(desk.status().pid, flush=True)
time.sleep(60)
"""


def based_on(expected: str) -> TrainableBase:
    return TrainableBase(place=tiny.model_path(), fingerprint=expected, shapes={}, vocab_size=1536, max_tokens=512)


@pytest.fixture(scope="module")
def tiny_print() -> str:
    return fingerprint(*load("tiny", ServeConfig(device="cpu"), own_dtype=True))


def accepted(store: Path, expected: str, count: int = JOBS) -> TrainingFolder:
    """A store with jobs that wait."""
    folder = TrainingFolder(store, snapshot_every=CONFIG.full.snapshot_every)
    folder.begin(TrainedBase(model="tiny", fingerprint=expected))
    for number in range(1, count + 1):
        folder.jobs.accept(job(number, 8, rank=8 if number < 4 else 4))
    return folder


def opened(folder: TrainingFolder, expected: str) -> LearnedModel:
    torch.set_num_threads(1)
    return LearnedModel(folder, "tiny", expected, CONFIG)


def digest_of(folder: TrainingFolder) -> str:
    """Of the newest checkpoint's tensors: weights and optimizer."""
    whole = folder.path / "whole.safetensors"
    folder.checkpoints.restore(folder.checkpoints.numbers()[-1], whole)
    sha256 = hashlib.sha256()
    for name, tensor in sorted(load_file(whole).items()):
        sha256.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    whole.unlink()
    return sha256.hexdigest()


@pytest.fixture(scope="module")
def unbroken(tiny_print: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest after one process that did all jobs, and wrote one checkpoint."""
    folder = accepted(tmp_path_factory.mktemp("unbroken"), tiny_print)
    model = opened(folder, tiny_print)
    for number in range(1, JOBS + 1):
        model.run(folder.jobs.read(number), lambda step, loss: None)
    model.save()
    return digest_of(folder)


class KilledError(Exception):
    """What a kill is in one process."""


def test_ended_at_any_step_and_in_any_checkpoint_it_equals_the_unbroken_run(
    tiny_print: str, unbroken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, chance, kills = accepted(tmp_path, tiny_print), random.Random(7), 0
    save = Deltas.save

    def die_in_it(*arguments: object, **options: object) -> object:
        if chance.random() < 0.3:
            raise KilledError
        saved = save(*arguments, **options)  # type: ignore[arg-type]
        if chance.random() < 0.3:
            raise KilledError
        return saved

    def die_at_a_step(step: int, loss: float) -> None:
        if chance.random() < 0.06:
            raise KilledError

    monkeypatch.setattr(Deltas, "save", die_in_it)
    while True:
        model = opened(folder, tiny_print)
        try:
            while model.through < JOBS:
                model.run(folder.jobs.read(model.through + 1), die_at_a_step)
                if model.through % 2 == 0:
                    model.save()
            break
        except KilledError:
            kills += 1
    assert kills >= 4
    assert digest_of(folder) == unbroken
    newest = folder.newest()
    assert newest is not None
    assert newest[1].through == JOBS
    assert [result.number for result in newest[1].results] == [5, 6]


def test_killed_by_the_system_host_or_trainer_it_equals_the_unbroken_run(
    tiny_print: str, unbroken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "BACKOFF_S", 0.01)
    monkeypatch.setattr(working, "MOST_DEATHS", KILLS + 1)
    folder = accepted(tmp_path, tiny_print)
    host = start(HOST, tmp_path, tiny_print)
    pid = int(first_line(host))
    kill(host)
    until(lambda: not is_alive(pid))  # the end of the socket ends it
    desk = TrainingDesk(tmp_path, lambda: based_on(tiny_print), CONFIG)
    desk.resume()
    chance = random.Random(3)
    for _ in range(KILLS):
        until(lambda: any(one.state == "running" and one.steps_done for one in desk.status().jobs))
        time.sleep(chance.random() * 0.2)
        status = desk.status()
        if status.pid is None or not status.queued:
            break
        os.kill(status.pid, signal.SIGKILL)
        until(lambda pid=status.pid: desk.status().pid != pid)  # type: ignore[misc]
    until(lambda: desk.status().queued == 0)
    made = desk.checkpoint().result(30)
    final = desk.status()
    desk.close()
    assert made is None or made.checkpoint.through == JOBS
    assert digest_of(folder) == unbroken
    assert [(one.id, one.state, one.in_checkpoint) for one in final.jobs] == [
        (f"job-{number}", "done", True) for number in range(1, JOBS + 1)
    ]
    assert len(folder.checkpoints.numbers()) <= 3, "old ones went: two stay, and what they need"
    assert folder.jobs.numbers() == ([], list(range(1, JOBS + 1)))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_another_base_is_refused(tiny_print: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another model than the one that answers"):
        opened(accepted(tmp_path, tiny_print), "f" * 64)


def test_a_checkpoint_of_another_base_is_refused(tiny_print: str, tmp_path: Path) -> None:
    folder = accepted(tmp_path, tiny_print, 1)
    model = opened(folder, tiny_print)
    model._fingerprint = "other"
    model.run(folder.jobs.read(1), lambda step, loss: None)
    model.save()
    with pytest.raises(ModelError, match="began from another base model"):
        opened(folder, tiny_print)


def test_a_damaged_checkpoint_is_told_and_left_alone(tiny_print: str, tmp_path: Path) -> None:
    folder = accepted(tmp_path, tiny_print, 1)
    model = opened(folder, tiny_print)
    model.run(folder.jobs.read(1), lambda step, loss: None)
    made = model.save()
    path = folder.checkpoints.folder / made.checkpoint.file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreCorruptError, match="damaged"):
        opened(folder, tiny_print)
    desk = TrainingDesk(tmp_path, lambda: based_on(tiny_print), CONFIG)
    with pytest.raises(StoreError):
        desk.status()
    desk.close()
    assert path.exists()


def test_a_disk_without_room_costs_a_checkpoint_and_no_training(
    tiny_print: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = accepted(tmp_path, tiny_print, 1)
    model = opened(folder, tiny_print)
    model.run(folder.jobs.read(1), lambda step, loss: None)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(learned, "save_file", full)
        with pytest.raises(StoreError, match="No space left"):
            model.save()
    assert sorted(os.listdir(folder.path)) == ["base", "base.json", "jobs"], "and nothing of it lies about"
    assert model.save().checkpoint.jobs == ("job-1",)


def test_a_note_survives_as_it_is() -> None:
    note = CheckpointNote(through=3, fingerprint="ü", kind="adamw/1/masters", steps=9, results=())
    assert CheckpointNote.read(note.metadata()) == note


def other_base(kind: str, folder: Path) -> None:
    """A random model of two layers in bfloat16, with the tiny one's tokenizer."""
    shape: dict[str, Any] = {
        "vocab_size": 1536,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    models: dict[str, Callable[[], PreTrainedModel]] = {
        "tied": lambda: LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)),
        "experts": lambda: MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = models[kind]()
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny.model_path()) / name, folder)


@pytest.mark.parametrize("kind", ["tied", "experts"])
def test_a_model_made_of_a_checkpoint_has_the_loss_that_was_told(kind: str, tmp_path: Path) -> None:
    """Also where transformers stores weights under other names, or in other pieces, than it has them in memory."""
    other_base(kind, tmp_path / "base")
    expected = fingerprint(*load(tmp_path / "base", CONFIG.serve, own_dtype=True))
    with Store.open(tmp_path / "S"):
        pass
    folder = accepted(tmp_path / "S", expected, 1)
    model = LearnedModel(folder, str(tmp_path / "base"), expected, CONFIG)
    result = model.run(folder.jobs.read(1), lambda step, loss: None)
    model.save()
    restore_model(tmp_path / "S", 1, tmp_path / "restored")
    back, tokenizer = load(tmp_path / "restored", CONFIG.serve, own_dtype=True)
    scores = evaluate(back, [Example(*one.ids()) for one in folder.jobs.read(1).samples], 0)
    assert float(-scores.log_prob.sum() / scores.tokens.sum()) == pytest.approx(result.loss_after, rel=1e-9)
    assert result.loss_after != result.loss_before
    assert {weight.dtype for weight in back.parameters()} == {torch.bfloat16}
    assert fingerprint(back, tokenizer) != expected
