"""Versions in a terminal, as rich's renderables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sona.bank_view.words import what_happened
from sona.comparison import AdapterChange, BankChange, Comparison, SkillChange
from sona.excerpt import excerpt
from sona.history import SettingChange, VersionEntry
from sona.terminal import megabytes, number, trajectories, when
from sona.types import BASE_VERSION, Funnel, GateDecision

WIDE = 110
"""From so many columns on the list has each version's cycle, digest, and what its removal would give back."""
MOST = 12
"""Ids or layers in one line; the others are counted."""
DASH = "-"


def version_table(entries: Sequence[VersionEntry], width: int) -> Table:
    """A line for each version; of a ``width`` below :data:`WIDE` columns with less on it."""
    is_wide = width >= WIDE
    table = _table("", "version", "parent")
    _numbers(table, *(["cycle"] if is_wide else []))
    table.add_column("made", no_wrap=True)
    _numbers(table, "learned", "right", "size", *(["its own"] if is_wide else []))
    for name in ["", "digest"] if is_wide else [""]:
        table.add_column(name, no_wrap=True)
    for one in entries:
        cells = ["*" if one.in_force else "", one.id, one.parents[0] if one.parents else DASH]
        cells += [str(one.cycle)] if is_wide else []
        cells += [when(one.created_ns), str(one.trajectories) if one.parents else DASH, _right(one.metrics)]
        cells += _sizes(one) if is_wide else _sizes(one)[:1]
        cells += [_kept(one), one.digest[:12] or DASH] if is_wide else [_kept(one)]
        table.add_row(*map(Text, cells), style="bold" if one.in_force else None)
    return table


def version_details(entry: VersionEntry, parent: VersionEntry | None, skills: Mapping[str, int]) -> RenderableType:
    """Everything about one version.

    Args:
        entry: it.
        parent: whose figures stand beside its own; None for the base.
        skills: how many of the trajectories that it was trained on are still stored, by skill.
    """
    states = ["in force"] if entry.in_force else []
    states += [f"pinned since {when(entry.pinned_ns)}"] if entry.pinned_ns is not None else []
    states += [] if entry.has_files else ["its files were removed: it can't be put in force"]
    head = Text.assemble((entry.id, "bold"), f": {', '.join(states)}" if states else "")
    lines: list[RenderableType] = [head, Text(_from(entry)), Text(_files(entry))]
    if entry.funnel is not None:
        lines.append(Text(_learned(entry.funnel, skills)))
    if entry.children:
        lines.append(Text(f"made from it: {_some(entry.children)}"))
    if entry.gate is not None:
        lines += ["", _gate(entry.gate)]
    elif entry.reason:
        lines += ["", Text(f"not judged: {excerpt(entry.reason, 200)}")]
    if entry.settings_changed and parent is not None:
        against = "the defaults" if parent.id == BASE_VERSION else f"{parent.id}'s"
        lines += [
            "",
            Text(f"settings that are not {against}"),
            setting_table(entry.settings_changed, against, entry.id),
        ]
    elif parent is not None:
        lines += ["", Text(f"settings: as {'by default' if parent.id == BASE_VERSION else parent.id}")]
    if entry.metrics:
        before = {} if parent is None else parent.metrics
        rows = [(name, before.get(name), value) for name, value in entry.metrics.items()]
        lines += ["", metric_table(rows, "" if parent is None else parent.id, entry.id)]
    return Group(*lines)


def comparison_details(found: Comparison) -> RenderableType:
    """What differs between two versions."""
    lines: list[RenderableType] = [Text.assemble((f"{found.before} → {found.now}", "bold"), f": {_way(found)}")]
    for name in found.without_files:
        lines.append(Text(f"the files of {name} were removed: adapters, skills and bank can't be compared", "yellow"))
    if found.adapters is not None:
        lines += ["", _adapters(found.adapters)]
    if found.skills is not None:
        lines += ["", _skills(found.skills)]
    if found.bank is not None:
        lines += ["", *map(Text, _bank(found.bank, found.before, found.now))]
    lines.append("")
    if found.settings:
        names = ["the defaults" if name == BASE_VERSION else name for name in (found.before, found.now)]
        lines.append(setting_table(found.settings, *names))
    else:
        lines.append(Text("settings: the same"))
    if found.metrics:
        rows = [(one.name, one.before, one.now) for one in found.metrics]
        lines += ["", metric_table(rows, found.before, found.now)]
    return Group(*lines)


def metric_table(rows: Iterable[tuple[str, float | None, float | None]], before: str, now: str) -> Table:
    """Figures side by side, and by how much they differ."""
    table = _table("figure")
    _numbers(table, before or "before", now, "change")
    for name, old, new in rows:
        table.add_row(Text(name), _figure(old), _figure(new), _change(old, new))
    return table


def setting_table(changes: Iterable[SettingChange], before: str, now: str) -> Table:
    """Settings side by side."""
    table = _table("setting", before, now)
    for one in changes:
        table.add_row(Text(one.name), Text(_value(one.before)), Text(_value(one.now)))
    return table


def _from(entry: VersionEntry) -> str:
    if not entry.parents:
        return f"the base model, as it was loaded; the store was made {when(entry.created_ns)}"
    return f"made {when(entry.created_ns)} by cycle {entry.cycle} from {_some(entry.parents)}"


def _files(entry: VersionEntry) -> str:
    if not entry.parents:
        return "no files of its own"
    sizes = f"{megabytes(entry.size_bytes)}, {megabytes(entry.own_bytes)} of it its own\n" if entry.has_files else ""
    return f"{sizes}digest {entry.digest}"


def _learned(funnel: Funnel, skills: Mapping[str, int]) -> str:
    told = f"{trajectories(funnel.collected)} came in: {funnel.trained} trained on, {funnel.held_out} held out"
    left = ", ".join(f"{count} {excerpt(reason)}" for reason, count in sorted(funnel.left_out.items()))
    told += f"; left out: {left}" if left else ""
    if skills:
        of = ", ".join(f"{count} for {excerpt(name) or 'no skill'}" for name, count in skills.items())
        told += f"\nstill stored of what was trained on: {of}"
    return told


def _gate(gate: GateDecision) -> Group:
    table = _table("gate")
    _numbers(table, "measured", "at least")
    table.add_column("")
    table.add_column("", ratio=1)
    for check in gate.checks:
        mark = Text("passed", "green") if check.passed else Text("failed", "red")
        table.add_row(
            Text(check.name), _figure(check.value), _figure(check.bound), mark, Text(excerpt(check.detail, 200))
        )
    if not gate.passed or all(check.passed for check in gate.checks):
        return Group(table)
    return Group(table, Text("the gate was switched off, and let it through all the same", "yellow"))


def _way(found: Comparison) -> str:
    """How the two are related."""
    if found.steps_before == found.steps_now == 0:
        return "one and the same"
    if not found.steps_before or not found.steps_now:
        steps = number(max(found.steps_before, found.steps_now), "version", "versions")
        late, early = (found.now, found.before) if found.steps_now else (found.before, found.now)
        return f"{late} is {steps} after {early}"
    return f"both come from {found.common}, {found.steps_before} and {found.steps_now} versions back"


def _adapters(changes: Sequence[AdapterChange]) -> RenderableType:
    if not changes:
        return Text("no adapters")
    table = _table("adapter", "")
    _numbers(table, "norm added", "change")
    table.add_column("most in", overflow="fold")
    words = {"same": "the same", "changed": "changed", "new": "new", "gone": "gone"}
    for one in changes:
        word = "one file" if one.one_file and one.state == "same" else words[one.state]
        norms = [f"{value:.4g}" for value in (one.norm_before, one.norm_now)]
        norm = {"new": norms[1], "gone": norms[0], "same": norms[1]}.get(one.state, " → ".join(norms))
        share = f" ({one.norm_change / one.norm_before:.0%})" if one.state == "changed" and one.norm_before else ""
        change = f"{one.norm_change:.4g}{share}" if one.state == "changed" else ""
        table.add_row(Text(excerpt(one.name)), word, norm, change, Text(_layers(one)))
    return table


def _layers(one: AdapterChange) -> str:
    most = sorted(one.layers, key=lambda layer: -layer.norm_change)[:2]
    return ", ".join(f"{layer.name} {layer.norm_change:.3g}" for layer in most if layer.norm_change)


def _skills(changes: Sequence[SkillChange]) -> RenderableType:
    if not changes:
        return Text("no skills")
    table = _table("skill", "", "adapter")
    _numbers(table, "learned from")
    for one in changes:
        word = {"same": "the same", "merged": f"part of {excerpt(one.into)}"}.get(one.state, one.state)
        names = [excerpt(name) for name in dict.fromkeys((one.adapter_before, one.adapter_now)) if name]
        counts = [one.count_before, one.count_now]
        shown = (
            [counts[1]] if one.state in ("new", "same") else counts[:1] if one.state in ("gone", "merged") else counts
        )
        table.add_row(Text(excerpt(one.id)), Text(word), Text(" → ".join(names)), " → ".join(map(str, shown)))
    return table


def _bank(bank: BankChange, before: str, now: str) -> Iterable[str]:
    old, new = bank.before, bank.now
    yield (
        f"bank: {old.patterns} → {number(new.patterns, 'pattern', 'patterns')}, from {old.learned} → "
        f"{trajectories(new.learned)}; {old.strays} → {new.strays} far from every pattern"
    )
    if bank.appeared or bank.disappeared:
        yield f"  only in {now}: {_some(bank.appeared)}"
        yield f"  only in {before}: {_some(bank.disappeared)}"
    for changes, where in ((bank.changes, f"on the way to {now}"), (bank.undone, f"on the way to {before}, undone")):
        if changes:
            kinds = ("born", "split", "merged", "pruned")
            counts = ", ".join(f"{sum(line.change == kind for line in changes)} {kind}" for kind in kinds)
            yield f"  {where}: {counts}"
            told = [line for line in changes if line.change != "born"]
            yield from (f"    cycle {line.cycle}: {what_happened(line)}" for line in told[:MOST])
            if len(told) > MOST:
                yield f"    ... and {len(told) - MOST} more; 'sona bank log --version' shows them"
    if not bank.is_whole:
        yield "  what happened longest ago is not kept any more"


def _sizes(one: VersionEntry) -> list[str]:
    if not one.has_files or not one.parents:
        return [DASH, DASH]
    return [megabytes(one.size_bytes), megabytes(one.own_bytes)]


def _kept(one: VersionEntry) -> str:
    if not one.has_files:
        return "no files"
    return "pinned" if one.pinned_ns is not None else ""


def _right(metrics: Mapping[str, float]) -> str:
    """How many held-out answers are right word for word, before and after the cycle."""
    before, after = metrics.get("new_exact_before"), metrics.get("new_exact_after")
    return DASH if before is None or after is None else f"{100 * before:.0f} → {after:.0%}"


def _figure(value: float | None) -> str:
    if value is None:
        return DASH
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _change(old: float | None, new: float | None) -> str:
    """By how much, with its sign; "" where it is none, or nobody can tell."""
    if old is None or new is None or not math.isfinite(new - old) or new == old:
        return ""
    return f"{'+' if new > old else ''}{_figure(new - old)}"


def _value(value: Any) -> str:
    if value is UNSET:
        return DASH
    return excerpt(repr(value) if isinstance(value, str) else str(value))


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(map(excerpt, names[:MOST])) + more if names else "none"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
