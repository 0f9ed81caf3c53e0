"""What differs between two versions: adapters, skills, bank, metrics, settings."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sona.bank.bank import Bank
from sona.bank.shelf import MOST_CHANGES
from sona.bank.skills import SkillSet
from sona.history import SettingChange, find_version, settings_changed
from sona.loops.adapter_change import CONFIG_FILE, WEIGHTS_FILE, LayerChange, layer_changes
from sona.loops.skill_files import read_skills
from sona.loops.version_files import ADAPTER, adapter_names, adapter_root, read_bank
from sona.patterns import PatternChange
from sona.storage.store import Store
from sona.storage.version_retention import ancestors
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, Version

AdapterState = Literal["same", "changed", "new", "gone"]
SkillState = Literal["same", "changed", "new", "merged", "gone"]


class AdapterChange(Record, kw_only=True):
    """One adapter in two versions, by Frobenius norms of what it adds to the model's weights, over all layers."""

    name: str
    state: AdapterState
    one_file: bool
    """Whether the two versions share its file on the disk."""
    norm_before: float
    norm_now: float
    norm_change: float
    layers: tuple[LayerChange, ...]
    """None of an adapter that is the same."""


class SkillChange(Record, kw_only=True):
    """One skill in two versions."""

    id: str
    state: SkillState
    into: str
    """The skill that it was merged into; "" for the other states."""
    adapter_before: str
    """The adapter that answers for it; "" where there is no such skill."""
    adapter_now: str
    count_before: int
    """Trajectories learned from."""
    count_now: int


class BankSize(Record, kw_only=True):
    """How much a version's bank holds."""

    patterns: int
    learned: int
    """Trajectories that it has seen."""
    strays: int
    """... that lie far from every pattern."""


class BankChange(Record, kw_only=True):
    """The banks of two versions."""

    before: BankSize
    now: BankSize
    appeared: tuple[str, ...]
    """Ids of patterns that only the second one has."""
    disappeared: tuple[str, ...]
    """... that only the first one has."""
    changes: tuple[PatternChange, ...]
    """What happened to patterns on the way from the versions' nearest common ancestor to the second one."""
    undone: tuple[PatternChange, ...]
    """... to the first one: nothing where the second one follows from it."""
    is_whole: bool
    """Whether a bank keeps all of it: only its newest 2,000 lines are kept."""


class MetricChange(Record, kw_only=True):
    """A figure of the cycles that made two versions; None where it was not measured."""

    name: str
    before: float | None
    now: float | None


class Comparison(Record, kw_only=True):
    """What differs between two versions."""

    before: str
    now: str
    common: str
    """Their nearest common ancestor, which may be one of them."""
    steps_before: int
    """How many versions the first one is away from that."""
    steps_now: int
    settings: tuple[SettingChange, ...]
    metrics: tuple[MetricChange, ...]
    without_files: tuple[str, ...]
    """Those of the two whose files retention has removed; what is compared of files is missing then."""
    adapters: tuple[AdapterChange, ...] | None
    skills: tuple[SkillChange, ...] | None
    bank: BankChange | None


def compare(store: Store, before_id: str, now_id: str) -> Comparison:
    """Compare two versions; their files are compared with their digests first.

    Raises:
        UnknownIdError: there is no such version.
        StoreCorruptError: files of one are damaged.
        StoreError: the store can't be read.
    """
    before, now = find_version(store, before_id), find_version(store, now_id)
    versions, folders = store.versions(), Versions(store.path)
    lines = [[version.id, *ancestors(versions, version.id)] for version in (before, now)]
    common = next(name for name in lines[0] if name in lines[1])
    without = tuple(dict.fromkeys(version.id for version in (before, now) if not _has_files(folders, version)))
    adapters, skills, bank = None, None, None
    if not without:
        old, new = (_read(folders, version) for version in (before, now))
        since = next(version.cycle for version in versions if version.id == common)
        adapters, skills = _adapters(old.folder, new.folder), _skills(old.skills, new.skills)
        bank = _banks(old.bank, new.bank, since)
    return Comparison(
        before=before.id,
        now=now.id,
        common=common,
        steps_before=lines[0].index(common),
        steps_now=lines[1].index(common),
        settings=settings_changed(before, now),
        metrics=_metrics(before.metrics, now.metrics),
        without_files=without,
        adapters=adapters,
        skills=skills,
        bank=bank,
    )


class _Files(NamedTuple):
    """What is compared of a version's files."""

    folder: Path | None
    """None for the base."""
    bank: Bank
    skills: SkillSet


def _has_files(folders: Versions, version: Version) -> bool:
    return version.id == BASE_VERSION or (folders.folder / version.id).is_dir()


def _read(folders: Versions, version: Version) -> _Files:
    if version.id == BASE_VERSION:
        return _Files(None, Bank(), SkillSet())
    bank = read_bank(folders, version)  # which compares all files with the digest
    folder = folders.path(version.id)
    return _Files(folder, bank, read_skills(folder))


def _adapters(before: Path | None, now: Path | None) -> tuple[AdapterChange, ...]:
    names = [adapter_names(folder) if folder is not None else [] for folder in (before, now)]
    return tuple(
        _adapter(
            name,
            adapter_root(before, name) / ADAPTER if before is not None and name in names[0] else None,
            adapter_root(now, name) / ADAPTER if now is not None and name in names[1] else None,
        )
        for name in dict.fromkeys([*names[0], *names[1]])
    )


def _adapter(name: str, before: Path | None, now: Path | None) -> AdapterChange:
    state, one_file = _state(before, now)
    layers = layer_changes(before, now)
    return AdapterChange(
        name=name,
        state=state,
        one_file=one_file,
        norm_before=math.hypot(*(layer.norm_before for layer in layers)),
        norm_now=math.hypot(*(layer.norm_now for layer in layers)),
        norm_change=0.0 if state == "same" else math.hypot(*(layer.norm_change for layer in layers)),
        layers=() if state == "same" else layers,
    )


def _state(before: Path | None, now: Path | None) -> tuple[AdapterState, bool]:
    """How two PEFT folders differ, and whether they share their file of weights."""
    if before is None or now is None:
        return "new" if before is None else "gone", False
    same = all(filecmp.cmp(before / name, now / name, shallow=False) for name in (CONFIG_FILE, WEIGHTS_FILE))
    return "same" if same else "changed", (before / WEIGHTS_FILE).samefile(now / WEIGHTS_FILE)


def _skills(before: SkillSet, now: SkillSet) -> tuple[SkillChange, ...]:
    old = {skill.id: skill for skill in before.skills}
    new = {skill.id: skill for skill in now.skills}
    found = []
    for name in dict.fromkeys([*old, *new]):
        was, is_now, whole = old.get(name), new.get(name), now.get(name)
        state: SkillState = "same" if was == is_now else "changed"
        if was is None or is_now is None:
            state = "new" if was is None else "gone" if whole is None else "merged"
        found.append(
            SkillChange(
                id=name,
                state=state,
                into=whole.id if whole is not None and state == "merged" else "",
                adapter_before=was.adapter if was is not None else "",
                adapter_now=whole.adapter if whole is not None else "",
                count_before=was.count if was is not None else 0,
                count_now=is_now.count if is_now is not None else 0,
            )
        )
    return tuple(found)


def _banks(before: Bank, now: Bank, since: int) -> BankChange:
    """``since`` is the cycle of the nearest common ancestor."""
    old, new = ({pattern.id: None for pattern in bank.patterns} for bank in (before, now))
    undone, changes = (tuple(line for line in bank.changes if line.cycle > since) for bank in (before, now))
    return BankChange(
        before=_size(before),
        now=_size(now),
        appeared=tuple(name for name in new if name not in old),
        disappeared=tuple(name for name in old if name not in new),
        changes=changes,
        undone=undone,
        is_whole=all(_reaches(bank.changes, since) for bank in (before, now)),
    )


def _reaches(changes: Sequence[PatternChange], since: int) -> bool:
    """Whether a bank's history goes back to a cycle, as one does that is not cut off."""
    return len(changes) < MOST_CHANGES or changes[0].cycle <= since


def _size(bank: Bank) -> BankSize:
    return BankSize(patterns=len(bank.patterns), learned=bank.learned, strays=bank.strays)


def _metrics(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[MetricChange, ...]:
    return tuple(
        MetricChange(name=name, before=before.get(name), now=now.get(name)) for name in dict.fromkeys([*now, *before])
    )
