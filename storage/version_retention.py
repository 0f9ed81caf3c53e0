"""Retention of versions: which of them keep their files, and the removal of the others'. Their rows stay for good."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sona.storage.sizes import bytes_in
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, Version


class PrunedVersions(Record, kw_only=True):
    """What retention removed."""

    versions: tuple[str, ...]
    """Those that have no files any more, oldest first. Nothing can be rolled back to them."""
    freed_bytes: int
    """Of files that no other version shares."""


def ancestors(versions: Sequence[Version], version_id: str) -> list[str]:
    """The ids of a version's ancestors, its parent first and the base last."""
    parents = {version.id: version.parent for version in versions}
    found: list[str] = []
    at = parents.get(version_id)
    while at is not None:
        found.append(at)
        at = parents.get(at)
    return found


def worth_keeping(versions: Sequence[Version], current: str, pinned: Collection[str], steps: int) -> set[str]:
    """Ids of the versions whose files stay.

    These are the one in force; its ``steps`` nearest ancestors, which that many rollbacks lead to; and all that are
    pinned. Where there are fewer ancestors, the newest of the other versions make up the number, so that what was just
    rolled back from can be put in force again. The base counts as none: it has no files.

    Args:
        versions: all, oldest first.
        current: the id of the one in force.
        pinned: ids.
        steps: at least 1.
    """
    lineage = [current, *ancestors(versions, current)]
    others = [version.id for version in reversed(versions) if version.id not in lineage]
    with_files = [name for name in (*lineage[1:], *others) if name != BASE_VERSION]
    return {current, *with_files[:steps], *pinned}


def prune_versions(store: Store, steps: int) -> PrunedVersions:
    """Remove the files of all versions but those that are :func:`worth_keeping`; 0 keeps all. Only the store's writer
    may call it, and nothing else may be put in force meanwhile.

    Cut short anywhere, it leaves each version with all of its files or with none.

    Raises:
        StoreCorruptError: a pin or a version's row is damaged; nothing was removed.
        StoreReadOnlyError, StoreError: the disk's trouble; the next start removes what is left of what was begun.
    """
    if not steps:
        return PrunedVersions(versions=(), freed_bytes=0)
    folders, versions = Versions(store.path), store.versions()
    keep = worth_keeping(versions, store.current().id, store.pinned(), steps)
    going = [version.id for version in versions if version.id not in keep]
    freed = bytes_in(folders.folder / name for name in going).own
    removed = set(folders.prune(keep))
    return PrunedVersions(versions=tuple(name for name in going if name in removed), freed_bytes=freed)
