"""How an engine learns: cycles, the versions that they make, and the way back."""

from __future__ import annotations

from sona.checks import check_function
from sona.engine_open import OpenEngine
from sona.loops.background import LearnerStatus
from sona.loops.full.desk import TrainingDesk
from sona.ports import Report, ignore_progress
from sona.types import Attestation, CycleReport, Version


class Learning(OpenEngine):
    """The part of :class:`sona.Engine` that learns, and looks after versions."""

    async def learn(self, on_progress: Report = ignore_progress) -> CycleReport:
        """One cycle: learn what is new, judge it, and serve it if it holds.

        Cancelling it leaves everything as it was, until it publishes: that one step is taken to its end.

        Args:
            on_progress: called from a thread of this process, wherever it learns; what it raises ends the cycle.

        Raises:
            CycleError: training failed, a rollback came in between, another cycle is under way, it took longer than
                ``learner.budget_s``, or (LearnerError) the process that learns has died; nothing has changed.
            ConfigError: ``config.lora`` is not what this store's adapter is.
            SwapError: a version was published and can't be served; the one before it is in force again, and what the
                cycle took stays taken.
            InvalidInputError: ``on_progress`` is no function, or one that has to be awaited.
        """
        check_function(on_progress, "on_progress", "a plain function that takes a sona.types.Progress")
        self._started()
        return await self._cycles.learn(self.flush, on_progress)

    async def run(self) -> None:
        """A cycle every ``cycle.interval_s`` seconds, and before its time by ``learner.after_count`` and
        ``learner.after_quiet_s``, until it is cancelled or the engine is closed.

        One that fails is logged and tried again later.
        """
        self._started()
        await self._cycles.run(self.learn)

    @property
    def learner(self) -> LearnerStatus:
        """Whether a cycle runs, where, and what went wrong with the last one that failed. Costs nothing, unlike
        :meth:`sona.Engine.status`.
        """
        self._started()
        return self._cycles.status()

    @property
    def training(self) -> TrainingDesk:
        """Full-weight training on call: jobs, checkpoints (docs/adr/0013-full-weights-exactly-once.md)."""
        self._started()
        return self._training

    @property
    def version(self) -> Version:
        """The version in force."""
        return self._started().store.current()

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return self._started().store.versions()

    async def attest(self) -> Attestation:
        """Ask the served model again what the version in force said of fixed prompts when it was published, and tell
        what was compared. A swap does the same before a version answers.

        Raises:
            SwapError: it says something else; ``roll_back()`` to another version, and open the store again.
            ModelError: the engine has no model.
        """
        return await self._in_thread(self._served().attest)

    def roll_back(self, to: str | None = None) -> Version:
        """Put an earlier version in force, whole: adapter, optimizer, Fisher information and bank. From now on it
        answers.

        Trajectories that later versions learned from stay in the store, but are neither new nor replayed while those
        versions are not in force's past.

        Args:
            to: its id; None for the parent of the one in force.

        Returns:
            The version now in force.

        Raises:
            NothingToRollBackError: the base version is in force already.
            UnknownIdError: no such version, or its files are gone.
            SwapError, StoreCorruptError: its files are damaged; what was in force stays so.

        It waits for no answer that is being written. The version that was served before the current one is still in
        memory, and takes over at once; another is loaded first.
        """
        return self._started().roll_back(to)

    def pin(self, version: str) -> None:
        """Keep a version's files, however many versions follow (``store.keep_versions``), until :meth:`unpin`. A pinned
        one stays pinned.

        Raises:
            UnknownIdError: no such version, or its files are gone.
            StoreCorruptError: its files are damaged.
            StoreError: the store could not be written; nothing has changed.
        """
        self._started().pin(version)

    def unpin(self, version: str) -> None:
        """Let go of a pinned version: its files go once it is beyond ``store.keep_versions``. Nothing happens to one
        that is not pinned.

        Raises:
            UnknownIdError: no such version.
            StoreError: the store could not be written; nothing has changed.
        """
        self._started().store.unpin(version)

    def pinned(self) -> list[str]:
        """The ids of the versions that are pinned, the one that has been so for the longest first."""
        pins = self._started().store.pinned()
        return sorted(pins, key=lambda name: pins[name])
