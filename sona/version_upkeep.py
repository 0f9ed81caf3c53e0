"""Looking after versions: back to an earlier one, and pins. What needs no engine works on a store that nobody has
open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sona.errors import NothingToRollBackError, StoreCorruptError, StoreLockedError, UnknownIdError
from sona.loops.version_files import read_bank
from sona.storage.layout import LOCK
from sona.storage.lock import owner_of
from sona.storage.mend import nearest_whole
from sona.storage.presence import check_there
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Version


def target_of(store: Store, to: str | None) -> str:
    """The id of the version to roll back to: ``to``, or the parent of the one in force."""
    if to is not None:
        return to
    current = store.current()
    if current.parent is None:
        raise NothingToRollBackError(f"version {current.id} is the first one; there is nothing before it")
    return current.parent


def roll_back_store(path: Path, to: str | None) -> tuple[str, str]:
    """Roll back a store that nobody has open; returns the ids of the versions before and now in force.

    It needs no model, and the version in force may be damaged. Raises as :meth:`sona.Engine.roll_back`, and StoreError.
    """
    call = f"engine.roll_back({'' if to is None else repr(to)}) ('sona serve': POST /versions/{to or 'ID'}/rollback)"
    with _alone(path, call) as store:
        before, target = store.current().id, _find(store, target_of(store, to))
        read_bank(Versions(path), target)  # its files are whole
        return before, store.set_current(target.id).id


def pin(store: Store, version_id: str) -> None:
    """Pin a version whose files are whole; see :meth:`sona.Engine.pin`. No retention may run meanwhile."""
    version = next((one for one in store.versions() if one.id == version_id), None)
    if version is not None and version.id != BASE_VERSION:
        Versions(store.path).verify(version)
    store.pin(version_id)


def pin_store(path: Path, version_id: str) -> None:
    """:func:`pin` in a store that nobody has open."""
    with _alone(path, f"engine.pin({version_id!r})") as store:
        pin(store, _find(store, version_id).id)


def unpin_store(path: Path, version_id: str) -> None:
    """Let go of a pinned version in a store that nobody has open."""
    with _alone(path, f"engine.unpin({version_id!r})") as store:
        store.unpin(_find(store, version_id).id)


@contextmanager
def ways_out(store: Store) -> Iterator[None]:
    """Where the version in force can't be read in the block, the error names what puts another one in force."""
    try:
        yield
    except (StoreCorruptError, UnknownIdError) as error:
        path, versions = store.path, {version.id: version for version in store.versions()}
        current = store.current().id
        whole = nearest_whole(Versions(path), versions, current)
        if whole == current:  # it is not the files
            raise
        raise type(error)(
            f"{error}. It is in force: 'sona doctor --store {path} --repair' puts {whole!r} in its place, as "
            f"'sona versions rollback {whole} --store {path}' does"
        ) from error


def _find(store: Store, version_id: str) -> Version:
    for version in store.versions():
        if version.id == version_id:
            return version
    raise UnknownIdError(f"version {version_id!r} is not in {store.path}; 'sona versions list' shows those that are")


@contextmanager
def _alone(path: Path, call: str) -> Iterator[Store]:
    """The store for writing; where an agent has it, the error names the ``call`` by which that one does the same."""
    check_there(path)
    try:
        store = Store.open(path)
    except StoreLockedError as error:
        raise StoreLockedError(
            f"{path}: another process writes to it (pid {owner_of(path / LOCK) or 'gone now'}), and a store has one "
            f"writer; let that one call {call}, or end it and do this again"
        ) from error
    with store:
        yield store
