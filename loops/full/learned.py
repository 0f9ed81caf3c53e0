"""The weights that are trained, from and to the disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sona.config import Config, ServeConfig
from sona.errors import ModelError, StoreError
from sona.learn.dataset import Example
from sona.learn.full_weights import FullWeights
from sona.serving.ends import known_tokens, stop_ids_of
from sona.serving.fingerprint import fingerprint
from sona.serving.loading import load
from sona.storage.draft import rename_folder
from sona.storage.training_folder import TrainingFolder
from sona.storage.versions import DRAFT
from sona.training import CheckpointMade, CheckpointNote, JobResult, TrainingJob

log = logging.getLogger("sona.training")
OnStep = Callable[[int, float], None]


class LearnedModel:
    """The base with all that was trained since, as of the last job that was done."""

    def __init__(self, folder: TrainingFolder, model: str, expected: str, config: Config) -> None:
        """Load the newest checkpoint, or where there is none the base.

        Args:
            folder: of the store.
            model: folder or hub id of the base.
            expected: its fingerprint.
            config: settings.

        Raises:
            ModelError: the base is another one than expected, can't be loaded, or the checkpoint does not fit it.
            StoreCorruptError: the newest checkpoint is damaged.
            StoreError: the disk's trouble.
        """
        self._folder, self._keep = folder, config.full.keep_checkpoints
        device = config.full.device or config.serve.device
        base, tokenizer = load(model, ServeConfig(device=device), own_dtype=True)
        self._fingerprint = fingerprint(base, tokenizer)
        if self._fingerprint != expected:
            raise ModelError(
                f"{model}: it is another model than the one that answers (its files have changed); restart"
            )
        folder.checkpoints.clean()
        self._scratch.unlink(missing_ok=True)
        _keep_base(folder.base_files, base, tokenizer)
        pad_id = known_tokens([tokenizer.pad_token_id, *stop_ids_of(base, tokenizer), 0], base.config.vocab_size)[0]
        self._weights = FullWeights(base, pad_id=pad_id, seed=config.seed)
        self.through, self.checkpoint = 0, 0
        """The last job in the weights, and the last checkpoint."""
        self._results: list[JobResult] = []
        self._load()

    @property
    def _scratch(self) -> Path:
        """A checkpoint on its way into the chain or out of it."""
        return self._folder.path / f"{DRAFT}checkpoint"

    def _load(self) -> None:
        if (newest := self._folder.newest()) is None:
            return
        info, note = newest
        if note.fingerprint != self._fingerprint:
            raise ModelError(
                f"checkpoint {info.number} began from another base model; move {self._folder.path} away to begin anew"
            )
        self._folder.checkpoints.restore(info.number, self._scratch)
        try:
            self._weights.load_tensors(load_file(self._scratch), note.kind, note.steps)
        finally:
            self._scratch.unlink()
        self.through, self.checkpoint = note.through, info.number

    def run(self, job: TrainingJob, on_step: OnStep) -> JobResult:
        """Train a job into the weights.

        Raises:
            TrainingError, ModelError: it can't be; the weights are not to be gone on from.
        """
        examples = [Example(*sample.ids()) for sample in job.samples]
        done = self._weights.train(examples, job.recipe, seed=str(job.number), on_step=on_step)
        result = JobResult(
            number=job.number,
            id=job.id,
            digest=job.digest,
            state="done",
            samples=len(examples),
            steps=done.steps,
            tokens=done.tokens,
            loss_before=done.loss_before,
            loss_after=done.loss_after,
            continued=done.continued,
        )
        self.through = job.number
        self._results.append(result)
        return result

    def save(self) -> CheckpointMade:
        """Publish weights, optimizer and which jobs are in them, in one step.

        Raises:
            StoreError: the disk's trouble; nothing has changed.
        """
        note = CheckpointNote(
            through=self.through,
            fingerprint=self._fingerprint,
            kind=self._weights.kind,
            steps=self._weights.steps,
            results=tuple(self._results),
        )
        try:
            save_file(self._weights.to_tensors(), self._scratch, metadata=note.metadata())
            saved = self._folder.checkpoints.save(self._scratch)
        except SafetensorError as error:  # what it makes of a disk without room
            raise StoreError(f"{self._scratch} can't be written: {error}") from error
        finally:
            self._scratch.unlink(missing_ok=True)
        self._results.clear()
        self.checkpoint = saved.number
        self._prune()
        info, _ = self._folder.read(saved.number)
        return CheckpointMade(checkpoint=info, blocks=saved.blocks, changed_blocks=saved.changed_blocks)

    def _prune(self) -> None:
        try:
            self._folder.checkpoints.prune(self._keep)
        except StoreError:  # the new one is there; the next save tries again
            log.exception("old checkpoints could not be removed")


def _keep_base(target: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a model's folder has beside its weights, so that a checkpoint can be made one without the base."""
    if target.is_dir():
        return
    draft = target.with_name(f"{DRAFT}{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    base.config.save_pretrained(draft)
    base.generation_config.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    rename_folder(draft, target)
