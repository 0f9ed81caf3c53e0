"""What the files of a version are called, and those of them that need no tensor library."""

from __future__ import annotations

from pathlib import Path

from sona.bank.bank import Bank
from sona.bank.skills import SHARED
from sona.loops.skill_files import read_skills
from sona.ports import Served, ServedModel, VersionFolders
from sona.types import BASE_VERSION, Version

ADAPTER = "adapter"
SKILL_FOLDERS = "skills"
EWC = "ewc.safetensors"
OPTIMIZER = "optimizer.safetensors"
BANK = "bank.msgpack"
ABOUT = "version.json"
PROOF = "proof.json"


def adapter_root(folder: Path, adapter: str) -> Path:
    """Where in a version's folder an adapter and the state of its training are: the shared one's lie at the top."""
    return folder if adapter == SHARED else folder / SKILL_FOLDERS / adapter


def adapter_names(folder: Path) -> list[str]:
    """The adapters that a version's folder holds."""
    own = sorted(path.parent.name for path in folder.glob(f"{SKILL_FOLDERS}/*/{ADAPTER}"))
    return [*([SHARED] if (folder / ADAPTER).is_dir() else []), *own]


def read_bank(folders: VersionFolders, version: Version) -> Bank:
    """The reasoning bank of ``version``, after its files were compared with its digest; empty for the first version.

    Raises:
        StoreCorruptError: a file is damaged or missing.
        UnknownIdError: the folder is gone.
    """
    return Bank() if version.id == BASE_VERSION else Bank.from_bytes((folders.verify(version) / BANK).read_bytes())


def read_served(folders: VersionFolders, version_id: str) -> Served:
    """What a version answers with: its adapters, and the router that picks one of them.

    Raises:
        StoreCorruptError: the router can't be read.
        UnknownIdError: the folder is gone.
    """
    if version_id == BASE_VERSION:
        return Served({})
    return _served_in(folders.path(version_id))


def write_proof(draft: Path, model: ServedModel) -> None:
    """Put beside the adapters of a draft what they say as they will be served."""
    (draft / PROOF).write_bytes(model.prove(_served_in(draft)))


def _served_in(folder: Path) -> Served:
    found = {name: adapter_root(folder, name) / ADAPTER for name in adapter_names(folder)}
    proof = folder / PROOF
    return Served(found, read_skills(folder).router, proof.read_bytes() if proof.is_file() else None)
