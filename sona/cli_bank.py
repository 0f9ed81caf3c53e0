"""The commands that show the reasoning bank. They only read, and work beside a running agent."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from sona.errors import InvalidInputError, UnknownIdError
from sona.output_file import check_target, write_file
from sona.patterns import Pattern, PatternChange, Verdict
from sona.terminal import AsJson, StorePath, as_json, number, out, plain, trajectories, when
from sona.types import Record, Version

if TYPE_CHECKING:
    from sona.bank.bank import Bank

# Without version_flags: --version says which version's bank to read.
bank = cyclopts.App(name="bank", help="What the agent is asked, and what has worked.", version_flags=[])

VersionName = Annotated[str | None, Parameter(name="--version", help="Of this version; else of the one in force.")]
MOST = 20
"""Patterns in a table, unless told."""
NEWEST = 50
"""Lines of history, unless told."""


@bank.command
def show(
    pattern: Annotated[str | None, Parameter(help="Everything about this one.")] = None,
    *,
    store: StorePath,
    version: VersionName = None,
    routes: Annotated[bool, Parameter(negative="", help="Each route, rather than the best and the worst.")] = False,
    most: Annotated[int | None, Parameter(help=f"So many patterns; else {MOST} in a table, all in JSON.")] = None,
    json: AsJson = False,
) -> None:
    """The patterns, heaviest first, or all about PATTERN. What came long ago weighs less (bank.half_life)."""
    from sona.bank_view.table import pattern_details

    _check_positive(most, "--most")
    held = _read(store, version)
    if pattern is not None:
        one, history = held.pattern(pattern), held.history(pattern)
        if json:
            print(as_json({"version": held.version.id, **_told(one), "history": _whole(history)}))
        else:
            out.print(pattern_details(one, history, held.bank.weight(one)))
        return
    patterns = heaviest(held.bank)
    if json:
        head = {"version": held.version.id, "learned": held.bank.learned, "strays": held.bank.strays}
        print(as_json({**head, "patterns": [_told(one) for one in patterns[:most]]}))
        return
    if patterns:
        out.print(f"[bold]{held.version.id}[/]: {held.summary()}", highlight=False)
    print_patterns(patterns, most or MOST, routes=routes)


@bank.command
def log(
    store: StorePath,
    *,
    pattern: Annotated[str | None, Parameter(help="Only what this one had a part in.")] = None,
    newest: Annotated[int | None, Parameter(help=f"The newest so many; else {NEWEST} in a table, all in JSON.")] = None,
    version: VersionName = None,
    json: AsJson = False,
) -> None:
    """The history of the patterns: births, splits, merges and deaths, the newest last. Up to 2,000 are kept."""
    from sona.bank_view.table import history_table

    _check_positive(newest, "--newest")
    held = _read(store, version, moments=not json)
    changes = held.bank.changes if pattern is None else held.history(pattern)
    if json:
        lines = changes[-newest:] if newest else changes
        print(as_json({"version": held.version.id, "changes": _whole(lines)}))
        return
    if not changes:
        out.print("no history yet: the first cycle makes patterns ('sona learn')")
        return
    lines = changes[-(newest or NEWEST) :]
    if len(lines) < len(changes):
        out.print(
            f"... after {number(len(changes) - len(lines), 'earlier change', 'earlier changes')}", highlight=False
        )
    out.print(history_table(lines, held.by_id, held.moments, out.width))


@bank.command(name="map")
def map_(
    store: StorePath,
    *,
    page: Annotated[Path, Parameter(name="--out", help="The page to write.")] = Path("bank-map.html"),
    png: Annotated[Path | None, Parameter(name="--png", help="Write the picture here too; needs matplotlib.")] = None,
    version: VersionName = None,
) -> None:
    """Draw the patterns as a page: near means alike, the area is the traffic, the colour the quality."""
    from sona.bank_view.page import TITLE, map_page
    from sona.bank_view.png import bank_png, check_drawable

    for target in (page, *([png] if png else [])):
        check_target(target, store)
    if png is not None:
        check_drawable()
        if png.resolve() == page.resolve():
            raise InvalidInputError(f"--png {str(png)!r}: that is the page; name another file")
    held = _read(store, version)
    patterns = held.bank.patterns
    about = f"{store.resolve().name}, version {held.version.id}"
    write_file(page, map_page(patterns, TITLE, f"{about}: {held.summary()}.").encode())
    if png is not None:
        write_file(png, bank_png(patterns, f"{TITLE}: {about}"))
    for target in (page, *([png] if png else [])):
        out.print(
            f"{plain(str(target))}: {number(len(patterns), 'pattern', 'patterns')}", highlight=False, soft_wrap=True
        )


def heaviest(bank: Bank) -> list[Pattern]:
    """The patterns, those of the most weight first."""
    return sorted(bank.patterns, key=lambda one: (-bank.weight(one), -one.count))


def print_patterns(patterns: Sequence[Pattern], most: int, *, routes: bool = False) -> None:
    """The first ``most`` of them as a table, and how many more there are."""
    from sona.bank_view.table import pattern_table

    if not patterns:
        out.print("no patterns yet: the first cycle makes them ('sona learn')")
        return
    out.print(pattern_table(patterns[:most], out.width, routes=routes))
    if len(patterns) > most:
        out.print(f"... and {number(len(patterns) - most, 'more pattern', 'more patterns')}", highlight=False)


@dataclass(frozen=True)
class _Held:
    """A version's bank, and when its cycles were."""

    version: Version
    bank: Bank
    moments: Mapping[int, str]
    """Empty where they were not asked for."""

    @property
    def by_id(self) -> dict[str, Pattern]:
        return {one.id: one for one in self.bank.patterns}

    def pattern(self, name: str) -> Pattern:
        """By its id; UnknownIdError says which known one is nearest, and what became of one that is gone."""
        if (found := self.by_id.get(name)) is None:
            raise self._unknown(name, self.by_id)
        return found

    def history(self, name: str) -> list[PatternChange]:
        """What ``name`` had a part in; UnknownIdError where nobody has heard of it."""
        lines = [line for line in self.bank.changes if name in (line.pattern, line.other)]
        if not lines and name not in self.by_id:
            raise self._unknown(name, [*self.by_id, *(line.pattern for line in self.bank.changes)])
        return lines

    def summary(self) -> str:
        """How many there are, and of how many trajectories."""
        far = f", {self.bank.strays} of them far from every pattern" if self.bank.strays else ""
        count = number(len(self.bank.patterns), "pattern", "patterns")
        return f"{count} from {trajectories(self.bank.learned)}{far}"

    def _unknown(self, name: str, known: Collection[str]) -> UnknownIdError:
        from sona.bank_view.words import what_happened

        gone = [line for line in self.bank.changes if line.pattern == name and line.change in ("merged", "pruned")]
        if gone:
            return UnknownIdError(f"pattern {name!r} is gone since cycle {gone[-1].cycle}: {what_happened(gone[-1])}")
        begun = [one for one in known if one.startswith(name)]  # "p1" is nearer to "p1-0" than to "p9-1"
        close = begun or difflib.get_close_matches(name, known, 1, cutoff=0.0)
        near = f"; the nearest is {close[0]!r}" if close else ""
        return UnknownIdError(f"pattern {name!r} is not in {self.version.id}{near}; 'sona bank show' lists them")


def _read(store: Path, version_id: str | None, *, moments: bool = False) -> _Held:
    """The bank of a version, the one in force for None, and the ``moments`` of its cycles if they are asked for.

    Raises:
        StoreError: the store can't be read.
        UnknownIdError: it has no such version, or its files were pruned.
    """
    from sona.loops.version_files import read_bank
    from sona.storage.store import Store
    from sona.storage.versions import Versions
    from sona.version_upkeep import ways_out

    with Store.open(store, read_only=True) as opened:
        current, versions = opened.current(), {one.id: one for one in opened.versions()}
        reports = opened.reports(1_000_000) if moments else []
        version = current if version_id is None else versions.get(version_id)
        if version is None:
            raise UnknownIdError(f"version {version_id!r} is not in {store}; 'sona versions list' shows those that are")
        with ways_out(opened) if version.id == current.id else nullcontext():
            held = read_bank(Versions(store), version)
    times = {report.cycle: when(report.finished_ns) for report in reports}
    return _Held(version, held, times)


def _told(one: Pattern) -> dict[str, Any]:
    """A pattern for a program: with what is worked out, and without its vector."""
    whole: dict[str, Any] = _whole(one)
    del whole["centroid"], whole["verdict"]
    routes = {name: _figures(verdict) for name, verdict in one.routes.items()}
    return {**whole, **_figures(one.verdict), "routes": routes}


def _figures(verdict: Verdict) -> dict[str, Any]:
    """Of a verdict; null where nothing is known."""
    from sona.bank_view.words import trend_of

    known = {"quality_mean": verdict.mean, "quality_interval": verdict.interval} if verdict.count else {}
    nothing: dict[str, Any] = {"quality_mean": None, "quality_interval": None}
    return {"rated": verdict.count, **nothing, **known, "trend": trend_of(verdict)}


def _whole(value: object) -> Any:
    """A record with all its fields, those too that have their default, and the records in it."""
    if isinstance(value, Record):
        return {name: _whole(getattr(value, name)) for name in value.__struct_fields__}
    return [_whole(one) for one in value] if isinstance(value, (tuple, list)) else value


def _check_positive(value: int | None, name: str) -> None:
    if value is not None and value < 1:
        raise InvalidInputError(f"{name} {value}; 1 or more is allowed")
