"""An engine that is opened and closed: what it is made of, and what all its parts ask of it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread

from sona.bank.lessons import Distiller
from sona.checks import check_number
from sona.config import Config
from sona.cycles import Cycles, place_of
from sona.erasure import finish
from sona.errors import ClosedError, SonaError
from sona.intake import Intake
from sona.loops.full.base import TrainableBase
from sona.loops.full.desk import TrainingDesk
from sona.memories import Memories
from sona.parts import Parts
from sona.reviewing import Review
from sona.stoppable import open_or_close
from sona.trajectory_host import TrajectoryHost
from sona.types import Message

if TYPE_CHECKING:
    from sona.serving.local import LocalModel

log = logging.getLogger("sona.engine")
Conversation = str | Sequence[Message | Mapping[str, Any]]
"""A text, or messages."""
T = TypeVar("T")


class OpenEngine:
    """Opened by ``async with`` or :meth:`start`, closed by its end or :meth:`aclose`; see :class:`sona.Engine`."""

    def __init__(
        self, path: Path, model: str | os.PathLike[str] | None, config: Config, distill: Distiller | None = None
    ) -> None:
        self.path, self.config = path, config
        self._distill = distill
        self._model_name = model
        self._parts: Parts | None = None
        # Made anew with the parts; they stay after closing, for blocks that end later.
        self._intake: Intake
        self._cycles: Cycles
        self._host: TrajectoryHost
        self._memories: Memories
        self._review: Review
        self._training: TrainingDesk

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> Self:
        """Open it, as ``async with`` does; :meth:`aclose` it in the end. Nothing happens where it is open already."""
        if self._parts is not None:
            return self
        parts = await open_or_close(self._new_parts, Parts.close)
        self._intake = Intake(parts, self.config.recording)
        self._cycles = Cycles(parts, self.config, self._model_name, self._distill)
        self._memories = Memories(parts.store.memory_weights, parts.model, self.config.candidates, parts.store.get)
        parts.on_swap.append(self._memories.forget_read)
        self._host = TrajectoryHost(parts, self._intake, self.config.serve, self._memories.ranking)
        self._review = Review(
            parts.store,
            self.config.candidates,
            model=parts.model,
            activity=self._cycles.activity,
            alone=self._cycles.alone,
            listen=parts.fast.tell_trajectories,
            in_training=self._cycles.in_training,
        )
        self._training = TrainingDesk(self.path, self._trainable, self.config)
        self._parts = parts
        if self.config.candidates.watch:
            try:
                await self._in_thread(self._review.watch, self._memories)
            except BaseException:
                await self.aclose()
                raise
        return self

    def _new_parts(self) -> Parts:
        parts = Parts.start(self.path, self._model_name, self.config)
        try:
            if parts.store.erasure_under_way() is not None:
                parts.writer.settle()
                with parts.unchanging():
                    finish(parts.store, parts.writer.wipe)
        except SonaError as error:  # the store is of use all the same
            log.warning(
                "an erasure that was cut short can't be taken to its end now; let the agent call erase(), or: %s", error
            )
        except BaseException:
            parts.close()
            raise
        return parts

    async def aclose(self) -> None:
        """Stop a cycle under way, record as abandoned the trajectories that are open, store what waits, and let go of
        the files. A second call does nothing.

        Raises:
            StoreError: something could not be stored within ``store.close_timeout_s``; it says how much, and why.
        """
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with anyio.CancelScope(shield=True):  # Ctrl-C must not lose what waits for the disk
            await self._cycles.stop()
            self._memories.close()
            await self._in_thread(self._review.close)
            await self._in_thread(self._training.close)
            await self._in_thread(self._intake.close)

    async def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything recorded before is on the disk and survives a power cut.

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: why it can't be; the records stay in the queue.
            InvalidInputError: ``timeout_s`` is no number of seconds from 0 on, nor None.
        """
        if timeout_s is not None:
            check_number(timeout_s, "timeout_s", 0.0, math.inf)
        await self._open_intake().flush(timeout_s)

    def _check_outside(self, what: str, *, also: bool = False) -> None:
        """StoreError where the calling thread is in the midst of recording, or ``also`` of another call: whom it waits
        for would wait for it.
        """
        if self._parts is not None:
            self._intake.check_outside(what, also=also)

    def _started(self) -> Parts:
        parts = self._parts
        if parts is None:
            raise ClosedError(
                "the engine is not open; use it inside 'with sona.open_sync(...)' or 'async with sona.open(...)', or "
                "call start()"
            )
        if parts.closed:
            raise ClosedError("the engine was opened before this process was forked; open another store here")
        return parts

    def _open_intake(self) -> Intake:
        if self._parts is None or self._parts.closed:
            self._started()  # says why not
        return self._intake

    def _trainable(self) -> TrainableBase | None:
        model = None if self._parts is None else self._parts.model
        if model is None or self._model_name is None:
            return None
        place = place_of(self._model_name)
        return TrainableBase(place, model.fingerprint, model.shapes, model.vocab_size, model.max_tokens)

    def _served(self) -> LocalModel:
        self._started()
        return self._host.model

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(function, *arguments)
