"""Erasing a source from a store: rows, texts in the versions' files, and the bytes that they were in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from sona.checks import check_id
from sona.errors import StoreCorruptError, StoreError, UnknownIdError
from sona.loops.members import routes_of
from sona.loops.skill_files import ROUTER, SKILLS, files_of, read_skills
from sona.loops.version_files import BANK, read_bank
from sona.storage.erasure import Erasure
from sona.storage.layout import DAMAGED, QUARANTINE, TRAINING
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, Version

log = logging.getLogger("sona.engine")


class Erased(Record, kw_only=True):
    """What an erasure did, and what it can't do."""

    source: str
    goes_on: bool = False
    """Whether it was begun before and cut short: what that had deleted by then is not counted here."""
    trajectories: int
    feedback: int
    claims: int
    """What cycles had taken, and replay would have drawn from."""
    exemplars: int
    """In the banks of all versions: those of the source, and those whose trajectory retention had deleted before, as
    nobody can tell any more whose they are."""
    lessons: int
    """... that were written from such trajectories, with others or without."""
    features: int
    """Of its queries, one row each, in the routers of all versions: with the model they tell whether a text was asked.
    """
    rewritten: tuple[str, ...]
    """Versions that had such exemplars, lessons or features, verdicts on routes that no trajectory of another source
    took, or families that were named by what is not there any more."""
    removed: tuple[str, ...]
    """Versions whose files were removed: they were damaged, so nobody could tell what is in them."""
    learned: tuple[str, ...]
    """Versions whose adapters may have learned from the source. Weights can't be made to forget one source; roll back
    to another version, and the adapters that answer are those from before."""
    in_force: str
    """The version in force."""
    roll_back_to: str | None
    """The nearest version before it that learned nothing from the source; None where the one in force did not."""
    not_covered: tuple[str, ...]
    """Files beside the database that may hold texts of the source; so may backups, wherever they are. And the
    routers of versions that were learned before each row of features had its source with it, or go on from such a one:
    rows of the source may be among them. They hold no texts, but with the model it can be told whether a given one was
    asked. A skill keeps its newest 256 rows, so later versions lose them; ``sona prune --versions`` removes the files.
    """


def erase(store: Store, folders: Versions, source: str, wipe: Callable[[], None] = lambda: None) -> Erased:
    """Erase all that ``source`` has sent so far, durably. No cycle may run meanwhile, and what the source sent before
    has been flushed; ``wipe`` then leaves nothing of that in the journal.

    Cut short anywhere, it leaves a store that opens; begun again, it goes on to its end, see :func:`finish` too.

    Patterns keep their centroids and counts, and a router the weights that were fitted to all queries: sums over many,
    and no texts. So a version in force answers as before. Of routes, which are named by what a source sends, the
    verdicts stay where a trajectory of another source took them too.

    Raises:
        InvalidInputError: the source is no name of one.
        UnknownIdError: nothing in the store is of the source, and no erasure of it was cut short; nothing has changed.
        StoreCorruptError: rows of the source, or the version in force, are damaged: ``sona doctor`` first.
        StoreLockedError: a reader keeps the WAL; end it, and erase again.
        StoreFullError: there is no room for a copy of the database; free space, and erase again.
        StoreError: the erasure of another source was cut short, or the disk's trouble.
    """
    check_id(source, "source")
    erasure = store.erasure(source)
    erasure.check_known()
    goes_on = store.erasure_under_way() is not None
    erasure.begin()
    folders.clean(store.known_versions())
    cleaned = _clean_versions(store, folders, _Cleaning(folders, erasure, source, RoutesOfOthers(store, source)))
    deleted = erasure.delete_rows()
    learned = erasure.forget()
    erasure.scrub()
    wipe()
    erasure.end()
    current = store.current().id
    return Erased(
        source=source,
        goes_on=goes_on,
        trajectories=deleted.trajectories,
        feedback=deleted.feedback,
        claims=deleted.claims,
        exemplars=cleaned.exemplars,
        lessons=cleaned.lessons,
        features=cleaned.features,
        rewritten=tuple(cleaned.rewritten),
        removed=tuple(cleaned.removed),
        learned=learned,
        in_force=current,
        roll_back_to=_nearest_without(store, set(learned)) if current in learned else None,
        not_covered=tuple(str(path) for path in (*cleaned.of_nobody, *leftovers(store.path))),
    )


def finish(store: Store, wipe: Callable[[], None]) -> bool:
    """Overwrite what an erasure that was cut short had deleted; False where there is none. It deletes nothing itself:
    nobody can tell any more what the source sent before it was asked for, and what since.

    Raises:
        StoreError: the store holds records of its source; or as :func:`erase`.
    """
    begun = store.erasure_under_way()
    if begun is None:
        return False
    if begun.source is not None:
        raise StoreError(
            f"{begun.name} was cut short, and records of it, sent before or since, are there; {begun.end} deletes them"
        )
    nameless = store.erasure("")
    nameless.scrub()
    wipe()
    nameless.end()
    log.warning(
        "the erasure of a source that was cut short was taken to its end; learned from it: %s",
        ", ".join(begun.learned) or "no version",
    )
    return True


@dataclass
class _Cleaned:
    """What was done to the versions."""

    rewritten: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    exemplars: int = 0
    lessons: int = 0
    features: int = 0
    of_nobody: list[Path] = field(default_factory=list)
    """Routers with features of which nobody knows whose they are."""


class RoutesOfOthers:
    """The routes that trajectories of other sources took. The store is read only as far as it takes to find those that
    are asked for.
    """

    def __init__(self, store: Store, source: str) -> None:
        self._rows = (row.trajectory for row in store.iterate() if row.trajectory.source != source)
        self._seen: set[str] = set()

    def __contains__(self, route: str) -> bool:
        while route not in self._seen:
            try:
                trajectory = next(self._rows, None)
            except StoreCorruptError:  # then what lies beyond is not known to be anybody's
                trajectory = None
            if trajectory is None:
                return False
            self._seen.update(routes_of(trajectory))
        return True


class _Cleaning:
    """Writes the files of versions without what is the source's."""

    def __init__(self, folders: Versions, erasure: Erasure, source: str, routes: RoutesOfOthers) -> None:
        self._folders, self._erasure, self._source, self._routes = folders, erasure, source, routes
        self.done = _Cleaned()

    def clean(self, version: Version) -> None:
        """One version's, bank and router.

        Raises:
            UnknownIdError: it has no files, as it was pruned.
            StoreCorruptError: they are damaged.
        """
        bank = read_bank(self._folders, version)
        skills = read_skills(self._folders.path(version.id))
        own_bank = bank.without(self._erasure.is_its_own, lambda route: route not in self._routes)
        own_skills = skills.without_source(self._source)
        files: dict[str, bytes] = {}
        if own_bank is not bank:
            files[BANK] = own_bank.to_bytes()
            self.done.exemplars += bank.exemplars() - own_bank.exemplars()
            self.done.lessons += bank.lessons - own_bank.lessons
        if own_skills is not skills:
            # The router's last: a kill before leaves in it what says that the rest is to be cleaned.
            written = files_of(own_skills)
            files |= {SKILLS: written[SKILLS], ROUTER: written[ROUTER]}
            self.done.features += skills.row_count - own_skills.row_count
        self._replace(version, files)
        if own_skills.of_nobody:
            self.done.of_nobody.append(self._folders.path(version.id) / ROUTER)

    def _replace(self, version: Version, files: dict[str, bytes]) -> None:
        folder = self._folders.path(version.id)
        changed = {name: data for name, data in files.items() if _differs(folder / name, data)}
        for name, data in changed.items():
            self._erasure.replace_file(version, name, data)
            version = replace(version, digest=self._folders.digest_of(version.id))
        if changed:
            self.done.rewritten.append(version.id)


def _differs(file: Path, data: bytes) -> bool:
    """False as well where there is no such file: a version without a router gets none."""
    return file.is_file() and file.read_bytes() != data


def _clean_versions(store: Store, folders: Versions, cleaning: _Cleaning) -> _Cleaned:
    for version in store.versions():
        if version.id == BASE_VERSION:
            continue
        try:
            cleaning.clean(version)
        except UnknownIdError:  # pruned
            continue
        except StoreCorruptError:
            if version.id == store.current().id:
                raise
            folders.discard(version.id)
            cleaning.done.removed.append(version.id)
    return cleaning.done


def _nearest_without(store: Store, learned: set[str]) -> str:
    """The nearest ancestor of the version in force that is not among ``learned``; the base never is."""
    versions = {version.id: version for version in store.versions()}
    at = store.current()
    while at.id in learned and at.parent is not None:
        at = versions[at.parent]
    return at.id


def leftovers(store: Path) -> list[Path]:
    """What repairs have left beside the database: copies, and what they set aside; and trainings that a client has sent
    and no checkpoint holds yet, which name no source.
    """
    jobs = [*store.glob(f"{TRAINING}/jobs/*.job"), *store.glob(f"{TRAINING}/jobs/*.damaged")]
    return [*sorted(store.glob(f"{DAMAGED}*")), *sorted(store.glob(QUARANTINE)), *sorted(jobs)]
