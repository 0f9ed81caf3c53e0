"""What a store knows of its versions: where each comes from, what it was made of, and why it was let through."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from sona.config import Config
from sona.errors import UnknownIdError
from sona.storage.sizes import bytes_in
from sona.storage.store import Store
from sona.storage.version_retention import ancestors
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, CycleReport, Funnel, GateDecision, Record, Version


class SettingChange(Record, kw_only=True):
    """A setting that two versions were made with differently."""

    name: str
    """As in a settings file, with the groups before it: ``train.batch_size``."""
    before: Any | UnsetType = UNSET
    """Absent where that version's sona had no such setting."""
    now: Any | UnsetType = UNSET


class VersionEntry(Record, kw_only=True):
    """One version, as people ask for it."""

    id: str
    in_force: bool
    pinned_ns: int | None
    """Since when it is pinned, in nanoseconds since 1970; None where it is not."""
    parents: tuple[str, ...]
    """Its ancestors: its parent first, the base last."""
    children: tuple[str, ...]
    """The versions that were made from it, oldest first."""
    cycle: int
    """The cycle that made it; 0 for the base."""
    created_ns: int
    reason: str
    """Of its cycle, in one line; "" where there is no report of it."""
    trajectories: int
    """Trained on as new in its cycle."""
    funnel: Funnel | None
    """Where all that came into its cycle went; None where there is no report of it, as for the base."""
    gate: GateDecision | None
    """The evidence that it was let through by; None where nothing was judged."""
    metrics: dict[str, float]
    settings_changed: tuple[SettingChange, ...]
    """Against its parent's; those of the first one after the base against the defaults."""
    digest: str
    """SHA-256 over the names and contents of its files; "" for the base, which has none."""
    has_files: bool
    """Whether it can be put in force: the base always can, any other until retention has removed its files."""
    size_bytes: int
    """Of its files."""
    own_bytes: int
    """Of those that no other version shares: what their removal would give back."""


def read_history(store: Store) -> list[VersionEntry]:
    """All versions of a store, oldest first. It may be open for reading only, beside a running agent.

    Raises:
        StoreCorruptError: a row is damaged.
        StoreError: the store can't be read.
    """
    pins, current = store.pinned(), store.current().id  # before the versions, which only become more
    versions, reports = store.versions(), reports_of(store)
    by_id = {version.id: version for version in versions}
    folders = Versions(store.path)
    return [
        _entry(
            version,
            reports.get(version.id),
            parents=tuple(ancestors(versions, version.id)),
            children=tuple(one.id for one in versions if one.parent == version.id),
            changed=settings_changed(by_id[version.parent] if version.parent is not None else None, version),
            in_force=version.id == current,
            pinned_ns=pins.get(version.id),
            folder=folders.folder / version.id,
        )
        for version in versions
    ]


def _entry(
    version: Version,
    report: CycleReport | None,
    *,
    parents: tuple[str, ...],
    children: tuple[str, ...],
    changed: tuple[SettingChange, ...],
    in_force: bool,
    pinned_ns: int | None,
    folder: Path,
) -> VersionEntry:
    size = bytes_in([folder])
    return VersionEntry(
        id=version.id,
        in_force=in_force,
        pinned_ns=pinned_ns,
        parents=parents,
        children=children,
        cycle=version.cycle,
        created_ns=version.created_ns,
        reason="" if report is None else report.reason,
        trajectories=version.trajectories,
        funnel=None if report is None else report.funnel,
        gate=None if report is None else report.gate,
        metrics=version.metrics,
        settings_changed=changed,
        digest=version.digest,
        has_files=version.id == BASE_VERSION or folder.is_dir(),
        size_bytes=size.all,
        own_bytes=size.own,
    )


def reports_of(store: Store) -> dict[str, CycleReport]:
    """By the id of each version the report of the cycle that made it."""
    return {report.version: report for report in store.reports(1_000_000) if report.version is not None}


def find_version(store: Store, version_id: str) -> Version:
    """The version of this id.

    Raises:
        UnknownIdError: there is none.
    """
    for version in store.versions():
        if version.id == version_id:
            return version
    raise UnknownIdError(f"version {version_id!r} is not in {store.path}; 'sona versions list' shows those that are")


def settings_changed(before: Version | None, now: Version) -> tuple[SettingChange, ...]:
    """The settings that differ. The base was made with none: in its place stand the defaults."""
    if before is None or not (before.settings or now.settings):
        return ()
    old, new = (_flat(version.settings) for version in (before, now))
    old, new = old or _defaults(new), new or _defaults(old)
    names = [*new, *(name for name in old if name not in new)]
    return tuple(
        SettingChange(name=name, before=old.get(name, UNSET), now=new.get(name, UNSET))
        for name in names
        if old.get(name, UNSET) != new.get(name, UNSET)
    )


def _flat(settings: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Nested settings by their whole names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{group}{name}.") if isinstance(value, Mapping) else {f"{group}{name}": value}
    return found


def _defaults(names: Container[str]) -> dict[str, Any]:
    """The default of each of these settings, in the form in which a version has it."""
    everything = _flat(msgspec.json.decode(msgspec.json.encode(Config())))
    return {name: value for name, value in everything.items() if name in names}
