"""The folder in a store from which a server elsewhere reads adapters, and which says what it may have of them."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from sona.serving.remote.folder import prepare
from sona.serving.remote.state import RemoteStatus

STATUS = "status.json"
DRAFT = ".part-"


class Shelf:
    """One folder for each name that the server was given: it is made before the adapter is loaded, and removed after
    it was unloaded. So whatever a process that was killed has left on the server is known to the next. A server may
    read its files at any time while it has the adapter; they are hard links, which stay when the version's go.
    """

    def __init__(self, folder: Path, path_prefix: str = "") -> None:
        """
        Args:
            folder: in the store; it is made when something is put there.
            path_prefix: where the server sees the store's folder; "": where it is here.
        """
        self.folder = folder.absolute()
        self._seen = Path(path_prefix) / folder.name if path_prefix else self.folder

    def put(self, version: str, adapter: str, source: Path) -> tuple[str, str]:
        """Prepare the adapter in ``source`` under a name that no server ever had: the name, and the path of its folder
        as the server sees it.

        Raises:
            ModelError: the adapter is none that a server takes.
            OSError: the disk.
        """
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", adapter)[:64]  # an adapter of a host's own may be called anything
        name = f"sona-{version}-{plain}-{secrets.token_hex(4)}"
        draft = self.folder / f"{DRAFT}{name}"
        try:
            prepare(source, draft, f"adapter {adapter!r} of {version}")
            draft.rename(self.folder / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return name, str(self._seen / name)

    def names(self) -> set[str]:
        """The names that the server may have."""
        if not self.folder.is_dir():
            return set()
        return {entry.name for entry in self.folder.iterdir() if entry.is_dir() and not entry.name.startswith(DRAFT)}

    def remove(self, name: str) -> None:
        """Forget a name that the server has no more."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def clean(self) -> None:
        """Remove drafts that a killed process has left."""
        for entry in self.folder.glob(f"{DRAFT}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def write(self, status: RemoteStatus) -> None:
        """Keep it for ``sona status`` and the next process, in one step.

        Raises:
            OSError: the disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"{STATUS}.part"
        draft.write_bytes(msgspec.json.encode(status))
        os.replace(draft, self.folder / STATUS)

    def read(self) -> RemoteStatus | None:
        """What was kept; None where there is nothing that can be read."""
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.folder / STATUS).read_bytes(), type=RemoteStatus)
        return None
