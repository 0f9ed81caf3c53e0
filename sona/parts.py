"""The parts of an engine that are open while it is: store, writer, model, bank."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sona.bank.bank import Bank
from sona.broadcast import Broadcast
from sona.config import Config
from sona.errors import ModelError, StoreError
from sona.events import RolledBack, Swapped
from sona.loops.fast import FastLoop
from sona.loops.micro import MicroLoop
from sona.loops.version_files import read_bank, read_served
from sona.ports import Stored
from sona.serving.resolve import resolve
from sona.storage.layout import REMOTE
from sona.storage.mapped import open_journal
from sona.storage.retention import Limits
from sona.storage.store import DATABASE, Store
from sona.storage.version_retention import prune_versions
from sona.storage.versions import Versions
from sona.storage.writer import Writer
from sona.types import Version
from sona.version_upkeep import pin, target_of, ways_out

if TYPE_CHECKING:
    from sona.remote_publishing import RemotePublisher
    from sona.serving.local import LocalModel

log = logging.getLogger("sona.engine")
FLUSH_S = 10.0
"""A feedback's step waits so long for its trajectory to be on the disk."""


class Parts:
    """Everything that is open while the engine is."""

    def __init__(
        self, store: Store, folders: Versions, writer: Writer, model: LocalModel | None, config: Config
    ) -> None:
        self.store, self.folders, self.writer, self.model = store, folders, writer, model
        self.fast = FastLoop(writer, width=store.embedding_width, vocab_size=model.vocab_size if model else None)
        self.micro: MicroLoop | None = None
        if model is not None and config.micro.enabled:
            self.micro = MicroLoop(model, self._find, config)
            model.fast_weights = self.micro
            self.fast.on_feedback = self.micro.offer
        self.bank = Bank()
        self.events = Broadcast()
        self.on_swap: list[Callable[[], None]] = []
        """Called when another version answers; none may wait."""
        self.remote: RemotePublisher | None = None
        self.closed = False
        """Whether nothing more comes in: closed, or in a forked child."""
        # Held while the pointer to the version in force and what is served change together: a cycle's end and a
        # rollback may come at once.
        self._in_force = threading.RLock()

    @classmethod
    def start(cls, path: Path, model_name: str | os.PathLike[str] | None, config: Config) -> Parts:
        """Open the store, load the model, serve the version in force."""
        if model_name is not None:
            resolve(model_name)  # a wrong name is said at once, before transformers takes its seconds to import
        model = None
        if not os.path.exists(path / DATABASE):  # unlike Path.exists, takes one that may not be looked at for none
            model = _load_model(model_name, config)  # one that can't be loaded leaves no empty store behind
        store = Store.open(path, config=config.store)
        try:
            folders = Versions(path)
            folders.clean({version.id for version in store.versions()})
            model = model or _load_model(model_name, config)
            _check_same_model(store, model)
            writer = Writer(store, config.store, open_journal(store.path, config.store))
            parts = cls(store, folders, writer, model, config)
        except BaseException:
            store.close()
            raise
        try:
            parts.remote = _open_publisher(parts, config)
            with ways_out(store):
                parts.serve_current(fall_back=None)
        except BaseException:
            parts.close()
            raise
        return parts

    def close(self) -> None:
        """Store what waits, then let go of the files."""
        self.closed = True
        try:
            if self.remote is not None:
                self.remote.close()
            if self.micro is not None:
                self.micro.close()
            if self.model is not None:
                self.model.close()
            self.writer.close()
        finally:
            self.store.close()

    def _find(self, trajectory_id: str) -> Stored:
        """A trajectory, also one that is on its way to the disk. Waits for it, and raises as the store does."""
        if trajectory_id not in self.store:
            self.writer.flush(FLUSH_S)
        return self.store.get(trajectory_id)

    def serve_current(self, fall_back: str | None) -> None:
        """Bank and adapters become those of the version in force; where they can't, ``fall_back`` is in force."""
        with self._in_force:
            version = self.store.current()
            try:
                bank = read_bank(self.folders, version)
                claims = self.store.claims(version.cycle) if self.micro is not None else []
                if self.model is not None:
                    self.model.swap(version.id, read_served(self.folders, version.id))
            except BaseException:
                if fall_back is not None:
                    self.store.set_current(fall_back)
                raise
            self.bank = bank
            for told in self.on_swap:
                told()
            if self.remote is not None:
                self.remote.want(version)
            if self.events.mailboxes:
                self.events.tell(Swapped(version=version.id))
            if self.micro is not None:
                self.micro.put_in_force(version, bank, claims)

    def roll_back(self, to: str | None) -> Version:
        """Put version ``to`` in force, None for the one before; see :meth:`sona.Engine.roll_back`."""
        with self._in_force:
            before = self.store.current()
            self.store.set_current(target_of(self.store, to))
            self.serve_current(fall_back=before.id)
            if self.micro is not None:
                self.micro.reset()
            now = self.store.current()
            if self.events.mailboxes:
                self.events.tell(RolledBack(version=now.id, before=before.id))
            return now

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """The version in force stays the same in the block, in which its bank may be written anew."""
        with self._in_force:
            try:
                yield
            finally:
                self.bank = read_bank(self.folders, self.store.current())
                if self.micro is not None:
                    self.micro.reset()
                    self.micro.put_in_force(self.store.current(), self.bank, [])

    def keep_limits(self) -> None:
        """Delete the trajectories that are beyond the limits of the settings (``store.keep_*``); where that fails, it
        is logged, and tried again after the next cycle.
        """
        if limits := Limits.of(self.store.config):
            try:
                self.writer.settle()  # or the journal could give back what is deleted, to be learned once more
                self.store.prune(limits)
            except StoreError:
                log.exception("what is beyond the store's limits could not be deleted")

    def prune(self) -> None:
        """Remove the files of versions that are beyond ``store.keep_versions``; where that fails, it is logged, and
        tried again after the next version.
        """
        try:
            with self._in_force:
                prune_versions(self.store, self.store.config.keep_versions)
        except StoreError:
            log.exception("the files of versions beyond store.keep_versions could not be removed")

    def pin(self, version_id: str) -> None:
        """See :meth:`sona.Engine.pin`."""
        with self._in_force:  # or its files may be removed before it is pinned
            pin(self.store, version_id)


def _load_model(name: str | os.PathLike[str] | None, config: Config) -> LocalModel | None:
    if name is None:
        return None
    from sona.serving.local import (
        LocalModel,
    )  # transformers takes seconds to import; a host that only records never needs it

    return LocalModel(name, config.serve)


def _open_publisher(parts: Parts, config: Config) -> RemotePublisher | None:
    settings = config.remote
    if settings.kind == "off":
        return None
    from sona.remote_publishing import RemotePublisher  # and an HTTP client with it
    from sona.serving.remote.opening import open_server
    from sona.serving.remote.shelf import Shelf

    shelf = Shelf(parts.store.path / REMOTE, settings.path_prefix)
    return RemotePublisher(open_server(settings), shelf, parts.folders, parts.model, settings, parts.events.tell)


def _check_same_model(store: Store, model: LocalModel | None) -> None:
    """Token ids, embeddings and adapters belong to one base model."""
    if model is None:
        return
    known = store.read_state("model")
    if known is not None and known.decode() != model.fingerprint and store.counts().trajectories:
        raise ModelError(
            "this store was recorded with another base model, whose token ids and embeddings are in it; "
            "open it with that one, or begin another store"
        )
    if known is None or known.decode() != model.fingerprint:
        store.write_state("model", model.fingerprint.encode())
