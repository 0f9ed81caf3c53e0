"""The parts of an engine that are open while it is: store, writer, model, bank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sona.bank.bank import Bank
from sona.config import Config
from sona.errors import ModelError, SonaError
from sona.loops.fast import FastLoop
from sona.loops.version_files import adapter_folder, read_bank
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.storage.writer import Writer
from sona.types import Version

if TYPE_CHECKING:
    from sona.serving.local import LocalModel


class Parts:
    """Everything that is open while the engine is."""

    def __init__(self, store: Store, folders: Versions, writer: Writer, model: LocalModel | None) -> None:
        self.store, self.folders, self.writer, self.model = store, folders, writer, model
        self.fast = FastLoop(writer, width=store.embedding_width, vocab_size=model.vocab_size if model else None)
        self.bank = Bank()

    @classmethod
    def start(cls, path: Path, model_name: str | os.PathLike[str] | None, config: Config) -> Parts:
        """Open the store, load the model, serve the version in force."""
        store = Store.open(path, config=config.store)
        try:
            folders = Versions(path)
            folders.clean({version.id for version in store.versions()})
            model = _load_model(model_name, config)
            _check_same_model(store, model)
            parts = cls(store, folders, Writer(store, config.store), model)
        except BaseException:
            store.close()
            raise
        try:
            parts.serve_current(fall_back=None)
        except BaseException:
            parts.close()
            raise
        return parts

    def close(self) -> None:
        """Store what waits, then let go of the files."""
        try:
            self.writer.close()
        finally:
            self.store.close()

    def serve_current(self, fall_back: str | None) -> None:
        """Bank and served adapter become those of the version in force; where they can't, ``fall_back`` is in force
        again.
        """
        version = self.store.current()
        try:
            bank = read_bank(self.folders, version)
            if self.model is not None:
                self.model.swap(version.id, adapter_folder(self.folders, version.id))
        except SonaError:
            if fall_back is not None:
                self.store.set_current(fall_back)
            raise
        self.bank = bank


def worth_keeping(versions: Sequence[Version], current: str, count: int) -> set[str]:
    """Ids of the ``count`` versions whose files stay: the current one and its nearest ancestors, then the newest
    others.
    """
    by_id = {version.id: version for version in versions}
    lineage, at = [], by_id.get(current)
    while at is not None:
        lineage.append(at.id)
        at = by_id.get(at.parent) if at.parent is not None else None
    others = [version.id for version in reversed(versions) if version.id not in lineage]
    return set([*lineage, *others][:count])


def _load_model(name: str | os.PathLike[str] | None, config: Config) -> LocalModel | None:
    if name is None:
        return None
    from sona.serving.local import (
        LocalModel,
    )  # transformers takes seconds to import; a host that only records never needs it

    return LocalModel(name, config.serve)


def _check_same_model(store: Store, model: LocalModel | None) -> None:
    """Adapters and embeddings belong to one base model."""
    if model is None:
        return
    known = store.read_state("model")
    if known is not None and known.decode() != model.fingerprint and len(store.versions()) > 1:
        raise ModelError("this store has learned for another base model; open it with that one, or begin another store")
    if known is None or known.decode() != model.fingerprint:
        store.write_state("model", model.fingerprint.encode())
