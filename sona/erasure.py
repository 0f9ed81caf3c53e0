"""Erasing a source from a store: rows, texts in the versions' files, and the bytes that they were in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sona.bank.bank import Bank
from sona.checks import check_id
from sona.errors import StoreCorruptError, UnknownIdError
from sona.loops.version_files import BANK, read_bank
from sona.patterns import Exemplar
from sona.storage.erasure import Erasure
from sona.storage.layout import DAMAGED, QUARANTINE
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, Version


class Erased(Record, kw_only=True):
    """What an erasure did, and what it can't do."""

    source: str
    trajectories: int
    feedback: int
    claims: int
    """What cycles had taken, and replay would have drawn from."""
    exemplars: int
    """In the banks of all versions: those of the source, and those whose trajectory retention had deleted before, as
    nobody can tell any more whose they are."""
    rewritten: tuple[str, ...]
    """Versions that had such exemplars."""
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
    """Files beside the database that may hold texts of the source; so may backups, wherever they are."""


def erase(store: Store, folders: Versions, source: str, wipe: Callable[[], None] = lambda: None) -> Erased:
    """Erase all that ``source`` has sent so far, durably. No cycle may run meanwhile, and what the source sent before
    has been flushed; ``wipe`` then leaves nothing of that in the journal.

    Cut short anywhere, it leaves a store that opens; begun again, it goes on to its end.

    Patterns keep their centroids and counts, and a router its features: means and hidden states, no texts.

    Raises:
        InvalidInputError: the source is no name of one.
        StoreCorruptError: rows of the source, or the version in force, are damaged: ``sona doctor`` first.
        StoreLockedError: a reader keeps the WAL; end it, and erase again.
        StoreFullError: there is no room for a copy of the database; free space, and erase again.
        StoreError: the erasure of another source was cut short, or the disk's trouble.
    """
    check_id(source, "source")
    erasure = store.erasure(source)
    erasure.begin()
    folders.clean({version.id for version in store.versions()})
    rewritten, removed, exemplars = _clean_banks(store, folders, erasure)
    deleted = erasure.delete_rows()
    learned = erasure.forget()
    erasure.scrub()
    wipe()
    erasure.end()
    current = store.current().id
    return Erased(
        source=source,
        trajectories=deleted.trajectories,
        feedback=deleted.feedback,
        claims=deleted.claims,
        exemplars=exemplars,
        rewritten=tuple(rewritten),
        removed=tuple(removed),
        learned=learned,
        in_force=current,
        roll_back_to=_nearest_without(store, set(learned)) if current in learned else None,
        not_covered=tuple(str(path) for path in leftovers(store.path)),
    )


def _clean_banks(store: Store, folders: Versions, erasure: Erasure) -> tuple[list[str], list[str], int]:
    """The versions that were rewritten, those that were removed, and how many exemplars are gone."""
    rewritten, removed, exemplars = [], [], 0
    for version in store.versions():
        if version.id == BASE_VERSION:
            continue
        try:
            bank = read_bank(folders, version)
        except UnknownIdError:  # pruned
            continue
        except StoreCorruptError:
            if version.id == store.current().id:
                raise
            folders.discard(version.id)
            removed.append(version.id)
            continue
        if gone := _clean(bank, version, erasure):
            rewritten.append(version.id)
            exemplars += gone
    return rewritten, removed, exemplars


def _clean(bank: Bank, version: Version, erasure: Erasure) -> int:
    """Write the version's bank without what is the source's; how many exemplars are gone."""

    def gone(exemplar: Exemplar) -> bool:
        return erasure.is_its_own(exemplar.trajectory_id)

    cleaned = bank.without(gone)
    if cleaned is bank:
        return 0
    erasure.replace_file(version, BANK, cleaned.to_bytes())
    return bank.exemplars() - cleaned.exemplars()


def _nearest_without(store: Store, learned: set[str]) -> str:
    """The nearest ancestor of the version in force that is not among ``learned``; the base never is."""
    versions = {version.id: version for version in store.versions()}
    at = store.current()
    while at.id in learned and at.parent is not None:
        at = versions[at.parent]
    return at.id


def leftovers(store: Path) -> list[Path]:
    """What repairs have left beside the database: copies, and what they set aside."""
    return [*sorted(store.glob(f"{DAMAGED}*")), *sorted(store.glob(QUARANTINE))]
