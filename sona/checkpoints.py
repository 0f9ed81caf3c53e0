"""Checkpoints of full-weight training for people: which there are, whether they are whole, and models made of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sona.errors import InvalidInputError, StoreCorruptError, StoreError, UnknownIdError
from sona.storage.connection import store_error
from sona.storage.draft import rename_folder
from sona.storage.layout import DATABASE
from sona.storage.training_folder import TrainingFolder
from sona.training import CheckpointInfo
from sona.types import Record, new_id

WEIGHTS = "model.safetensors"
ABOUT = "sona.json"


class RestoredModel(Record, kw_only=True):
    """A model's folder that was made of a checkpoint; also what ``sona.json`` in it says."""

    checkpoint: int
    sha256: str
    """Of the checkpoint, which its weights were compared with."""
    base: str
    """Fingerprint of the model that training began from."""
    through: int
    """Number of the last job in it."""
    size_bytes: int
    """Of the weights."""


class Verified(Record, kw_only=True):
    """Whether a checkpoint can be restored."""

    number: int
    is_whole: bool
    why: str
    """Of one that can't."""


def list_checkpoints(store: Path) -> list[CheckpointInfo]:
    """All that there are, oldest first. Works beside a running server.

    Raises:
        StoreError: there is no store, a file can't be read, or is damaged (StoreCorruptError).
    """
    folder = _folder(store)
    return [folder.read(number)[0] for number in folder.checkpoints.numbers()]


def verify_checkpoints(store: Path) -> Iterator[Verified]:
    """Put each together, oldest first, and compare it with its digests. Works beside a running server: what that
    removes meanwhile is passed over.

    Raises:
        StoreError: there is no store, or a file can't be read.
    """
    folder = _folder(store)
    for number in folder.checkpoints.numbers():
        try:
            folder.checkpoints.verify(number)
            folder.read(number)
        except UnknownIdError:
            continue
        except StoreCorruptError as error:
            yield Verified(number=number, is_whole=False, why=str(error))
        else:
            yield Verified(number=number, is_whole=True, why="")


def restore_model(store: Path, number: int, to: Path) -> RestoredModel:
    """Make a model's folder of a checkpoint: its weights, with the configuration, tokenizer and template of the base.

    It is there whole, or not at all. The store and the base are as they were.

    Raises:
        InvalidInputError: there is something at ``to``, or it lies within the store.
        UnknownIdError: there is no such checkpoint.
        StoreCorruptError: it is damaged.
        StoreError: there is no store, or the disk's trouble.
    """
    folder, target = _folder(store), to.absolute()
    if target.exists() or target.is_symlink():
        raise InvalidInputError(f"{target} exists; give a folder that is to be made")
    if target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{target} lies within the store; give a place outside of it")
    info, note = folder.read(number)
    draft = target.with_name(f"{target.name}.part-{new_id()}")
    try:
        shutil.copytree(folder.base_files, draft)
        size = _write_weights(folder, number, draft)
        made = RestoredModel(
            checkpoint=number, sha256=info.sha256, base=note.fingerprint, through=note.through, size_bytes=size
        )
        (draft / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(made)))
        rename_folder(draft, target)
    except OSError as error:  # shutil.Error is one
        raise store_error(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return made


def _write_weights(folder: TrainingFolder, number: int, draft: Path) -> int:
    """The weights alone, without the optimizer's state; returns their file's size."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from sona.learn.full_weights import WEIGHT

    whole = draft / "checkpoint.safetensors"
    folder.checkpoints.restore(number, whole)
    with safe_open(whole, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(WEIGHT)]  # noqa: SIM118 - it is no mapping
        tensors = {name.removeprefix(WEIGHT): opened.get_tensor(name) for name in names}
    save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})  # transformers asks for this word
    shutil.copymode(draft / "config.json", draft / WEIGHTS)  # the library lets nobody else read what it writes
    whole.unlink()
    return (draft / WEIGHTS).stat().st_size


def _folder(store: Path) -> TrainingFolder:
    if not (store / DATABASE).is_file():
        raise StoreError(f"{store}: no store; see that the path is right")
    return TrainingFolder(store)
