"""The learned state of one version, as files: what a cycle begins from and what it leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sona.bank.bank import Bank
from sona.bank.skills import SHARED, Skill, SkillSet
from sona.loops.skill_files import read_skills, write_skills
from sona.loops.version_files import (
    ABOUT,
    ADAPTER,
    BANK,
    EWC,
    OPTIMIZER,
    adapter_names,
    adapter_root,
    read_bank,
)
from sona.ports import VersionFolders
from sona.types import BASE_VERSION, Version

if TYPE_CHECKING:
    from torch import Tensor

    from sona.learn.ewc import EwcState


@dataclass(frozen=True)
class AdapterFiles:
    """One adapter, and what its training goes on from. Read when it is needed: most cycles touch few adapters, and
    those of a host that only records never need the tensor libraries.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """The PEFT folder."""
        return self.root / ADAPTER

    def weights(self) -> dict[str, Tensor]:
        """The adapter's tensors by name; see :func:`sona.learn.lora.read_weights`."""
        from sona.learn.lora import read_weights

        return read_weights(self.folder)

    def ewc(self) -> EwcState | None:
        """What holds it; None where nothing does yet."""
        from safetensors.torch import load_file

        from sona.learn import ewc

        path = self.root / EWC
        return ewc.from_tensors(load_file(path)) if path.is_file() else None

    def optimizer(self) -> dict[str, Tensor] | None:
        """The optimizer's state; None where there is none."""
        from safetensors.torch import load_file

        path = self.root / OPTIMIZER
        return load_file(path) if path.is_file() else None

    def write_state(self, held: EwcState | None, optimizer: Mapping[str, Tensor] | None) -> None:
        """Write what the training goes on from beside the adapter."""
        from safetensors.torch import save_file

        from sona.learn import ewc

        self.root.mkdir(parents=True, exist_ok=True)
        if held is not None:
            save_file(ewc.to_tensors(held), self.root / EWC)
        if optimizer:
            save_file(dict(optimizer), self.root / OPTIMIZER)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that goes on from cycle to cycle, and that a rollback takes back together."""

    bank: Bank
    adapters: Mapping[str, AdapterFiles] = field(default_factory=dict)
    """By name; none for the untouched base model."""
    skills: SkillSet = field(default_factory=SkillSet)


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
    adapters = {name: AdapterFiles(adapter_root(folder, name)) for name in adapter_names(folder)}
    skills = read_skills(folder)
    if SHARED in adapters and skills.get(SHARED) is None:  # of a version from before there were skills
        skills = skills.put(Skill(id=SHARED, adapter=SHARED, born_cycle=0, touched_cycle=version.cycle))
    return Checkpoint(bank, adapters, skills)


def write_checkpoint(folder: Path, state: Checkpoint, about: Version) -> None:
    """Fill a draft. Adapters that are not there already are taken over from where ``state`` has them."""
    for name, files in state.adapters.items():
        root = adapter_root(folder, name)
        if files.root != root:
            take_over(files, root)
    (folder / BANK).write_bytes(state.bank.to_bytes())
    write_skills(folder, state.skills)
    (folder / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=2))


def take_over(files: AdapterFiles, root: Path) -> None:
    """The same files at ``root``: linked, as no version's files ever change, or copied where the disk can't."""
    for source in (*sorted(files.folder.iterdir()), files.root / EWC, files.root / OPTIMIZER):
        if source.is_file():
            target = root / source.relative_to(files.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copy2(source, target)
