"""The learned state of one version, as files: what a cycle begins from and what it leaves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor

from sona.bank.bank import Bank
from sona.learn import ewc
from sona.learn.ewc import EwcState
from sona.loops.version_files import ABOUT, ADAPTER, BANK, EWC, OPTIMIZER, adapter_folder, read_bank
from sona.ports import VersionFolders
from sona.types import BASE_VERSION, Version


@dataclass(frozen=True)
class Checkpoint:
    """Everything that goes on from cycle to cycle, and that a rollback takes back together."""

    bank: Bank
    adapter: Path | None = None
    """Its PEFT folder; None for the untouched base model."""
    ewc: EwcState | None = None
    optimizer: dict[str, Tensor] | None = None


def read_checkpoint(folders: VersionFolders, version: Version) -> Checkpoint:
    """The state of ``version``, after its files were compared with its digest.

    Raises:
        StoreCorruptError: a file is damaged or missing.
        UnknownIdError: the folder is gone.
    """
    if version.id == BASE_VERSION:
        return Checkpoint(Bank())
    bank = read_bank(folders, version)
    folder = folders.path(version.id)
    anchors, optimizer = folder / EWC, folder / OPTIMIZER
    return Checkpoint(
        bank=bank,
        adapter=adapter_folder(folders, version.id),
        ewc=ewc.from_tensors(load_file(anchors)) if anchors.is_file() else None,
        optimizer=load_file(optimizer) if optimizer.is_file() else None,
    )


def write_checkpoint(folder: Path, state: Checkpoint, about: Version) -> None:
    """Fill a draft. An adapter that is not there already is copied from where ``state`` has it."""
    if state.adapter is not None and state.adapter != folder / ADAPTER:
        shutil.copytree(state.adapter, folder / ADAPTER)
    if state.ewc is not None:
        save_file(ewc.to_tensors(state.ewc), folder / EWC)
    if state.optimizer:
        save_file(state.optimizer, folder / OPTIMIZER)
    (folder / BANK).write_bytes(state.bank.to_bytes())
    (folder / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=2))
