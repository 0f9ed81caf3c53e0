"""The engine: the parts put together, and what a host embeds."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from sona.bank.lessons import Distiller
from sona.checks import folder_of, shown
from sona.config import Config, settings_of
from sona.engine_asking import Asking, Query
from sona.engine_learning import Learning
from sona.engine_open import Conversation
from sona.engine_recording import Recording
from sona.erasure import Erased, erase
from sona.errors import InvalidInputError
from sona.memories import Memories, check_watch
from sona.reviewing import Review
from sona.status import EngineStatus, read_status
from sona.storage.backup import Backup

__all__ = ["Conversation", "Engine", "Query", "open"]


def open(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    distill: Distiller | None = None,
) -> Engine:
    """An engine on the store in folder ``path``; ``async with``, or :meth:`Engine.start`, opens it.

    Args:
        path: made where it does not exist. One process at a time writes to a store.
        model: folder or hub id of a transformers causal language model, ``"tiny"`` for the small one that comes with
            sona, or None for a host that serves its own model and only records.
        config: settings, as a :class:`sona.Config` or nested mappings, or the path of a TOML file with them.
        distill: writes lessons from a pattern's best and worst trajectories: see :mod:`sona.bank.lessons`. It is called
            in a cycle, from its thread; what it raises costs that pattern's lessons alone. None: the model does, where
            ``lessons.by_model`` is on.

    Raises:
        ConfigError: of ``config``. What starting raises, see :class:`Engine`.
        InvalidInputError: ``path`` is empty, or no path; ``model`` is neither a text nor a path, or none where
            ``candidates.watch`` wants one; or ``distill`` is no function, or one that has to be awaited.
    """
    _check_distiller(distill)
    _check_model(model)
    settings = settings_of(config)
    check_watch(settings.candidates, model)
    return Engine(folder_of(path), model, settings, distill)


def _check_distiller(distill: object) -> None:
    if distill is not None and (not callable(distill) or inspect.iscoroutinefunction(distill)):
        raise InvalidInputError(
            f"distill: {shown(distill)}; a plain function from a LessonRequest to lessons is allowed, and no async "
            "one: a cycle calls it from a thread of its own"
        )


def _check_model(model: object) -> None:
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise InvalidInputError(
            f"model: {shown(model)}; the folder or hub id of a model, 'tiny', or None for no model is allowed"
        )


class Engine(Recording, Asking, Learning):
    """Records, learns, answers. Made by :func:`sona.open`; every method may be called from any thread or task.

    ``async with`` opens and closes it; a host that has no place for such a block calls :meth:`start` and
    :meth:`aclose`. Opening raises, and leaves nothing half open:
        StoreLockedError: another process has the store open for writing.
        StoreReadOnlyError, StoreCorruptError, StoreVersionError: of the store.
        ModelNotFoundError, ModelError: of the model, also where the store has learned adapters for another base model.
    """

    @property
    def candidates(self) -> Review:
        """Answers that depend on memory, for a person to approve: see :mod:`sona.reviewing`."""
        self._started()
        return self._review

    @property
    def memories(self) -> Memories:
        """What memories are worth: weights so far, which to prune, and scores."""
        self._started()
        return self._memories

    @property
    def degraded(self) -> str | None:
        """Why nothing can be stored just now, why the disk turns records away, or why a kill would take what is
        recorded; None while all is well. Costs nothing, unlike :meth:`status`.
        """
        return self._started().writer.degraded

    def status(self) -> EngineStatus:
        """Counted now: what is stored, what waits, what went wrong."""
        intake = self._open_intake()
        intake.sweep()
        return read_status(self._started(), intake, self._cycles.status(), self._review.unconfirmed)

    async def backup(self, target: str | os.PathLike[str]) -> Backup:
        """Copy all that was recorded before, and the versions' files, to the folder ``target``, which is made and is a
        store itself. Recording, answering and learning go on. Damaged rows are in it as they are: ``damaged_rows``.

        Raises:
            InvalidInputError: there is something at ``target``, or it is no path.
            StoreCorruptError: more than rows is damaged, such as a blob file that is missing.
            StoreError: of the store, or of the target's disk.
        """
        folder = folder_of(target, "target")
        await self.flush()
        return await self._in_thread(self._started().store.backup, folder)

    async def erase(self, source: str) -> Erased:
        """Erase all that a source has sent so far: trajectories, feedback, claims, and what the banks have of its
        words: exemplars, lessons that were written from them, names of routes that nobody else took; and in the
        routers its features.

        What its ``learned`` names has learned from the source all the same: weights can't be made to forget it, but a
        rollback takes them out of use. Backups are not touched. A trajectory whose block is open meanwhile is recorded
        when it ends, as one that the source has sent since: erase it again after that.

        Raises:
            CycleError: a cycle is under way.
            UnknownIdError: no such source; nothing has changed.
            InvalidInputError, StoreError: see :func:`sona.erasure.erase`; call it again.
        """
        self._started()
        with self._cycles.alone("a source is erased"):
            await self.flush()
            return await self._in_thread(self._erase, source)

    def _erase(self, source: str) -> Erased:
        parts = self._started()
        with self._review.nothing_of(source), parts.unchanging():
            try:
                parts.writer.settle()  # or the journal could give back what is deleted, before it is wiped
                return erase(parts.store, parts.folders, source, parts.writer.wipe)
            finally:  # cut short it has erased some all the same
                self._memories.forget_read()
