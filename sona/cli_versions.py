"""The commands that show what was learned, lead back, and hand an adapter on. None needs a model; those that only read
work beside a running agent.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from msgspec import to_builtins

from sona.errors import InvalidInputError
from sona.terminal import AsJson, StorePath, as_json, number, out, plain

if TYPE_CHECKING:
    from sona.history import VersionEntry

# Without version_flags: VERSION is an argument here.
versions = cyclopts.App(name="versions", help="What was learned, and the way back.", version_flags=[])

VersionId = Annotated[str, Parameter(help="Its id, as 'sona versions list' shows it.")]
NEWEST = 50
"""Versions in a table, unless told."""


@versions.command(name="list")
def list_(
    store: StorePath,
    *,
    newest: Annotated[int | None, Parameter(help=f"The newest so many; else {NEWEST} in a table, all in JSON.")] = None,
    json: AsJson = False,
) -> None:
    """All versions, oldest first; the star is in force. 'right' are held-out answers, before and after its cycle."""
    from sona.version_table import version_table

    if newest is not None and newest < 1:
        raise InvalidInputError(f"--newest {newest}; 1 or more is allowed")
    entries = _history(store)
    if json:
        current = next(one.id for one in entries if one.in_force)
        shown = entries[-newest:] if newest else entries
        print(as_json({"current": current, "versions": [to_builtins(one) for one in shown]}))
        return
    first = len(entries) - (newest or NEWEST)
    shown = [one for place, one in enumerate(entries) if place >= first or one.in_force or one.pinned_ns is not None]
    if len(shown) < len(entries):
        left = number(len(entries) - len(shown), "older version", "older versions")
        out.print(f"without {left} (--newest)", highlight=False)
    out.print(version_table(shown, out.width))


@versions.command
def show(version: VersionId, /, *, store: StorePath, json: AsJson = False) -> None:
    """All about one version: what made it, from what, on which evidence, with which figures and settings."""
    from sona.history import find_version, read_history, reports_of
    from sona.storage.store import Store
    from sona.version_table import version_details

    with Store.open(store, read_only=True) as opened:
        found = find_version(opened, version)
        entries = {one.id: one for one in read_history(opened)}
        report, trained_on = reports_of(opened).get(version), opened.trained_on(found.cycle)
    entry = entries[version]
    if json:
        told: dict[str, Any] = to_builtins(entry)
        print(as_json({**told, "trained_on": list(trained_on), "settings": found.settings, "report": report}))
        return
    parent = entries[entry.parents[0]] if entry.parents else None
    out.print(version_details(entry, parent, Counter(trained_on.values())))


@versions.command
def diff(before: VersionId, now: VersionId, /, *, store: StorePath, json: AsJson = False) -> None:
    """What differs between two versions: adapters, skills, patterns, figures, settings."""
    from sona.comparison import compare
    from sona.storage.store import Store
    from sona.version_table import comparison_details

    with Store.open(store, read_only=True) as opened:
        found = compare(opened, before, now)
    if json:
        print(as_json(found))
    else:
        out.print(comparison_details(found))


@versions.command
def rollback(version: VersionId | None = None, /, *, store: StorePath, json: AsJson = False) -> None:
    """Put an earlier version in force: VERSION, or the one before. An agent that has the store open calls
    engine.roll_back(), and 'sona serve' is asked by POST /versions/VERSION/rollback.
    """
    from sona.version_upkeep import roll_back_store

    before, now = roll_back_store(store, version)
    if json:
        print(as_json({"version": now, "before": before}))
    else:
        out.print(f"[bold]{now}[/] is in force; it was {before}", highlight=False)


@versions.command
def pin(version: VersionId, /, *, store: StorePath, json: AsJson = False) -> None:
    """Keep a version's files, however many versions follow. An agent that has the store open calls engine.pin();
    'sona serve' is ended first.
    """
    from sona.version_upkeep import pin_store

    pin_store(store, version)
    _tell_pinned(version, "is pinned: its files stay", is_pinned=True, json=json)


@versions.command
def unpin(version: VersionId, /, *, store: StorePath, json: AsJson = False) -> None:
    """Let go of a pinned version. An agent that has the store open calls engine.unpin(); 'sona serve' is ended
    first.
    """
    from sona.version_upkeep import unpin_store

    unpin_store(store, version)
    _tell_pinned(
        version, "is not pinned: its files go with their turn (store.keep_versions)", is_pinned=False, json=json
    )


@versions.command
def export(
    version: VersionId,
    target: Annotated[Path, Parameter(help="Folder to make.")],
    /,
    *,
    store: StorePath,
    format: Annotated[Literal["peft"], Parameter(help="Two files that PEFT, vLLM and SGLang read.")] = "peft",
    adapter: Annotated[str | None, Parameter(help="Which one, where there are several.")] = None,
    json: AsJson = False,
) -> None:
    """Copy an adapter of a version to a folder of its own, with a record of where it is from (sona.json)."""
    from sona.export import export_peft
    from sona.serving.remote.folder import vllm_rank
    from sona.storage.store import Store

    with Store.open(store, read_only=True) as opened:
        made = export_peft(opened, version, target, adapter)
    if json:
        print(as_json({"path": str(target.absolute()), "format": format, **to_builtins(made)}))
        return
    out.print(
        f"{plain(str(target))}: adapter [bold]{plain(made.adapter)}[/] of {made.version}, rank {made.rank}, whole by "
        f"its digest {made.digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )
    if made.routed:
        out.print(
            f"In the store a router gives it the queries of {plain(', '.join(made.skills)) or 'no skill'} alone; the "
            "router is not in the folder.",
            highlight=False,
            soft_wrap=True,
        )
    limit = vllm_rank(made.rank)
    if limit is None:
        out.print(f"vLLM takes no adapter of rank {made.rank}: 512 is its highest.", highlight=False, soft_wrap=True)
        return
    out.print(
        f"vllm serve BASE --enable-lora --max-lora-rank {limit} --lora-modules "
        f"{plain(f'{made.version}-{made.adapter}={target.absolute()}')}",
        highlight=False,
        soft_wrap=True,
    )


def _history(store: Path) -> list[VersionEntry]:
    from sona.history import read_history
    from sona.storage.store import Store

    with Store.open(store, read_only=True) as opened:
        return read_history(opened)


def _tell_pinned(version: str, what: str, *, is_pinned: bool, json: bool) -> None:
    if json:
        print(as_json({"version": version, "pinned": is_pinned}))
    else:
        out.print(f"[bold]{plain(version)}[/] {what}", highlight=False)
