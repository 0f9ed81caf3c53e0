"""A host as small as can be: a store with its writer and journal, opened and closed as the engine does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sona.candidate import Settled
from sona.config import StoreConfig
from sona.errors import StoreError
from sona.ports import Claim, Role
from sona.storage.mapped import open_journal
from sona.storage.retention import Limits
from sona.storage.store import Store
from sona.storage.writer import Writer
from sona.types import CycleReport, Feedback, Trajectory, Version
from tests.crash.ledger import Told, truth
from tests.storage.records import run_cycle

USUAL = StoreConfig(queue_bytes=1 << 20, batch_records=16)
SMALL = StoreConfig(queue_bytes=256 * 1024, batch_records=8, blob_batch_bytes=0, blob_file_bytes=8192)
"""Four segments of 64 KiB, so that they go round all the time; all trajectories lie in blob files, a few in each."""


class ToldStore(Store):
    """A store that tells of what it has acknowledged."""

    told: Told

    @classmethod
    def open_told(cls, folder: Path, told: Told, config: StoreConfig = USUAL) -> ToldStore:
        store = cls.open(folder, config=config)
        assert isinstance(store, ToldStore)
        store.told = told
        return store

    def append(self, records: Sequence[Trajectory | Feedback]) -> list[Exception | None]:
        results = super().append(records)
        for record, result in zip(records, results, strict=True):
            if result is None:
                self.told.durable(record.id)
        return results

    def commit_cycle(
        self, report: CycleReport, claims: Sequence[Claim], version: Version | None, settled: Sequence[Settled] = ()
    ) -> None:
        self.told.begins(report.cycle, [claim.seq for claim in claims if claim.role != "left_out"])
        super().commit_cycle(report, claims, version, settled)
        self.told.committed(report.cycle)


class Host:
    """What a life does its work with."""

    def __init__(self, folder: Path, told: Told, config: StoreConfig = USUAL) -> None:
        self._told = told
        self.store = ToldStore.open_told(folder, told, config)
        try:
            self.writer = Writer(self.store, config, open_journal(folder, config))
        except BaseException:
            self.store.close()
            raise

    def put(self, *ids: str) -> None:
        """Record one after the other, up to where there is no room: a feedback may not come without its trajectory."""
        put_all(self.writer, self._told, ids)

    def flush(self, timeout_s: float = 60.0) -> None:
        self.writer.flush(timeout_s)

    def cycle(self, number: int) -> None:
        """Every other one publishes; what it takes is trained on, held out or left out in turn."""
        roles: tuple[Role, ...] = ("train", "left_out", "held_out", "train")
        run_cycle(self.store, publish=number % 2 == 0, role=roles[number % 4], limit=40)

    def prune(self, newest: int) -> None:
        """Delete all but the newest, taken by a cycle or not. No other thread may record meanwhile."""
        self.writer.settle()
        going = [row.trajectory.id for row in self.store.iterate()][:-newest]
        self._told.excused([id for name in going for id in (name, f"feedback-{name}", f"later-{name}")])
        self.store.prune(Limits(days=0.0, trajectories=newest, per_source=0, unlearned=False))
        self._told.gone([name for name in going if name not in self.store])

    def close(self, timeout_s: float = 60.0) -> None:
        try:
            self.writer.close(timeout_s)
        finally:
            self.store.close()

    def drop(self) -> None:
        """Close without caring whether all could be stored."""
        try:
            self.close(timeout_s=0.0)
        except StoreError:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.drop()


def put_all(writer: Writer, told: Told, ids: Sequence[str]) -> None:
    """See :meth:`Host.put`."""
    for id in ids:
        if not writer.put(truth(id)):
            return
        told.recorded(id)


def named(life: str, number: int) -> list[str]:
    """The ids of the ``number``-th thing that a life records: a trajectory, nearly always with a feedback, and now and
    then a later one.
    """
    name = f"{life}-{number}"
    ids = [name] if number % 7 == 0 else [name, f"feedback-{name}"]
    return [*ids, f"later-{name}"] if number % 5 == 1 else ids
