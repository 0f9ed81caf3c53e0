"""The store and the version folders as a learner has them: read here, written by its host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sona import errors
from sona.bank.lessons import Distiller, LessonRequest
from sona.candidate import Settled
from sona.errors import LearnerError, SonaError, StoreReadOnlyError
from sona.loops.messages import Answer, Clean, Commit, Distill, Publish, WriteState
from sona.ports import Approved, Claim
from sona.storage.store import Store
from sona.storage.versions import Versions, digest_of_draft
from sona.types import CycleReport, Feedback, Record, Trajectory, Version


class Asking(Protocol):
    """The way to the host."""

    def ask(self, message: Record) -> Answer:
        """Its answer, once what was asked for is done; raises what it failed with."""


class HostedStore:
    """A :class:`sona.ports.TrajectoryStore` that reads for itself, and asks the host for the two things that a cycle
    writes. What the host has answered for is seen by the next read.
    """

    def __init__(self, store: Store, host: Asking) -> None:
        self._store, self._host = store, host
        self.collect, self.current, self.versions = store.collect, store.current, store.versions
        self.sample, self.replayable = store.sample, store.replayable
        self.next_cycle, self.read_state = store.next_cycle, store.read_state
        self.candidates: Approved = store.candidates

    def commit_cycle(
        self, report: CycleReport, claims: Sequence[Claim], version: Version | None, settled: Sequence[Settled] = ()
    ) -> None:
        """As :meth:`Store.commit_cycle`."""
        self._host.ask(Commit(report=report, claims=tuple(claims), version=version, settled=tuple(settled)))

    def known_versions(self) -> set[str]:
        """As far as can be read: the host knows better, and cleans by that."""
        return {version.id for version in self.versions()}

    def write_state(self, name: str, value: bytes) -> None:
        """As :meth:`Store.write_state`."""
        self._host.ask(WriteState(name=name, value=value))

    def append(self, records: Sequence[Trajectory | Feedback]) -> Sequence[Exception | None]:
        """Not a learner's to do."""
        raise self._read_only()

    def set_current(self, version_id: str) -> Version:
        """Not a learner's to do."""
        raise self._read_only()

    def _read_only(self) -> StoreReadOnlyError:
        return StoreReadOnlyError(f"{self._store.path}: a learner asks its host for a cycle's commit, and nothing else")


class HostedFolders:
    """A :class:`sona.ports.VersionFolders`: drafts are written here, and become versions there."""

    def __init__(self, folders: Versions, host: Asking) -> None:
        self._host = host
        self.path, self.verify, self.draft = folders.path, folders.verify, folders.draft

    def publish(self, draft: Path, version_id: str) -> str:
        """As :meth:`Versions.publish`; the host compares what it finds with the digest of what was written."""
        digest = digest_of_draft(draft)
        self._host.ask(Publish(draft=draft.name, version=version_id, digest=digest))
        return digest

    def clean(self, known_ids: set[str]) -> Sequence[str]:
        """As :meth:`Versions.clean`, by what the host knows."""
        self._host.ask(Clean())
        return []


def asked_of_host(host: Asking) -> Distiller:
    """The host's distiller, asked from here."""

    def distill(request: LessonRequest) -> Sequence[dict[str, Any] | str]:
        return host.ask(Distill(request=request)).drafts

    return distill


def raised(name: str, text: str) -> SonaError:
    """The error of sona's of this name; a LearnerError that names it where it is another's."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SonaError):
        return kind(text)
    return LearnerError(f"{name}: {text}")
