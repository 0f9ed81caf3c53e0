"""What the files of a version are called, and those of them that need no tensor library."""

from __future__ import annotations

from pathlib import Path

from sona.bank.bank import Bank
from sona.ports import VersionFolders
from sona.types import BASE_VERSION, Version

ADAPTER = "adapter"
EWC = "ewc.safetensors"
OPTIMIZER = "optimizer.safetensors"
BANK = "bank.msgpack"
ABOUT = "version.json"


def read_bank(folders: VersionFolders, version: Version) -> Bank:
    """The reasoning bank of ``version``, after its files were compared with its digest; empty for the first version.

    Raises:
        StoreCorruptError: a file is damaged or missing.
        UnknownIdError: the folder is gone.
    """
    return Bank() if version.id == BASE_VERSION else Bank.from_bytes((folders.verify(version) / BANK).read_bytes())


def adapter_folder(folders: VersionFolders, version_id: str) -> Path | None:
    """Its PEFT folder; None where it has none: the first version, and one that only brought the bank forward from
    it.
    """
    if version_id == BASE_VERSION:
        return None
    adapter = folders.path(version_id) / ADAPTER
    return adapter if adapter.is_dir() else None
