"""The commands that look after a store, none of which needs a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from msgspec import to_builtins
from msgspec.structs import asdict
from rich.table import Table

from sona.cli_bank import heaviest, print_patterns
from sona.config import CandidatesConfig, StoreConfig, settings_of
from sona.errors import ConfigError, InvalidInputError, StoreError, StoreFullError, StoreLockedError, UnknownIdError
from sona.reviewed import open_requests, read_unconfirmed
from sona.terminal import (
    AsJson,
    ConfigPath,
    StorePath,
    as_json,
    err,
    megabytes,
    number,
    out,
    plain,
    say,
    stopped_code,
    trajectories,
    when,
    whole,
)
from sona.types import CycleReport

if TYPE_CHECKING:
    from sona.serving.remote.state import RemoteStatus
    from sona.storage.backup import Backup
    from sona.storage.retention import Pruned
    from sona.storage.store import Store

SHOWN_BYTES = 50_000
"""Less is shown as 0.0 MB."""


def open_store(path: Path, config: StoreConfig) -> Store:
    """A store that is there, for writing.

    Raises:
        StoreError: it is not there; StoreLockedError and others, as :meth:`sona.storage.store.Store.open` does.
    """
    from sona.storage.presence import check_there
    from sona.storage.store import Store

    check_there(path)
    return Store.open(path, config=config)


def status(store: StorePath, *, json: AsJson = False) -> None:
    """What a store holds: sources, steps, rewards, patterns, versions. Works beside a running agent."""
    from sona.loops.version_files import read_bank
    from sona.sending import Sending
    from sona.serving.remote.shelf import Shelf
    from sona.storage.layout import REMOTE
    from sona.storage.mapped import waiting_in
    from sona.storage.store import Store
    from sona.storage.versions import Versions
    from sona.version_upkeep import ways_out

    with Store.open(store, read_only=True) as opened:
        counts, sources, version, cycles = opened.counts(), opened.sources(), opened.current(), opened.reports(5)
        sizes, arrivals, waiting = opened.sizes(), opened.arrivals(), waiting_in(store)
        erasing = opened.erasure_under_way()
        unconfirmed, trouble = read_unconfirmed(Sending(opened, CandidatesConfig()).unconfirmed)
        try:
            with ways_out(opened):
                patterns = heaviest(read_bank(Versions(store), version))
        except (StoreError, UnknownIdError) as error:  # the counts are true all the same
            say(f"[yellow]{version.id} can't be read:[/] {plain(str(error))}", err)
            patterns = []
    remote = Shelf(store / REMOTE).read()
    if json:
        rows = [
            {"id": p.id, "count": p.count, "quality_mean": p.verdict.mean if p.verdict.count else None}
            for p in patterns
        ]
        told = {
            "store": counts,
            "waiting_in_journal": waiting,
            "erasure_under_way": erasing is not None,
            "sizes": sizes,
            "arrivals": arrivals,
            "sources": sources,
            "version": version.id,
            "remote": remote,
            "unconfirmed": unconfirmed,
            "review_trouble": trouble,
        }
        print(as_json({**told, "patterns": rows, "cycles": cycles}))
        return
    say(
        f"[bold]{plain(str(store))}[/]: version [bold]{version.id}[/], {megabytes(sum(asdict(sizes).values()))}: "
        f"database {megabytes(sizes.database)}, its log {megabytes(sizes.log)}, "
        + (f"blobs {megabytes(sizes.blobs)}, " if sizes.blobs else "")
        + f"journal {megabytes(sizes.journal)}, versions {megabytes(sizes.versions)}"
        + (f", full-weight training {megabytes(sizes.training)}" if sizes.training else "")
        + (f", other {megabytes(sizes.other)}" if sizes.other >= SHOWN_BYTES else "")
    )
    _print_waiting(store, waiting)
    if erasing is not None:
        say(f"[yellow]{plain(erasing.name)} is under way[/]; if it was cut short, {plain(erasing.end)} ends it")
    came = [f"{one.trajectories} and {one.feedback} in the last {name}" for name, one in arrivals.items()]
    say(f"trajectories and feedbacks that came in: {', '.join(came)}")
    say(
        f"{trajectories(counts.trajectories)}, {number(counts.feedback, 'feedback', 'feedbacks')}: "
        f"{counts.trained} trained on, "
        f"{counts.held_out} held out, {counts.left_out} left out, {counts.uncollected} new, "
        f"{counts.waiting_for_feedback} without a quality"
    )
    if remote is not None:
        _print_remote(remote)
    if trouble is not None:
        say(f"[yellow]what was sent for training can't be read:[/] {plain(trouble)}", err)
    for line in open_requests(unconfirmed or ()):
        out.print(plain(line), highlight=False, soft_wrap=True)
    _print_sources(sources)
    print_patterns(patterns, 10)
    _print_cycles(cycles)


def backup(
    target: Annotated[Path, Parameter(help="Folder to make; it must not exist.")],
    *,
    store: StorePath,
    json: AsJson = False,
) -> None:
    """Copy a store, with its versions, to the folder TARGET, which is a store itself. Works beside a running agent,
    and where there is none stores first what one that was killed left waiting in the journal.
    Exit code 0: all of it is whole; 1: made, and something is damaged, or waits and could not be stored; 2: not made.
    """
    from sona.storage.mapped import waiting_in
    from sona.storage.store import Store

    with Store.open(store, read_only=True) as opened:
        trouble = _store_waiting(store)
        try:
            made = opened.backup(target)
        except StoreFullError as error:  # the store itself is only read
            sizes = opened.sizes()
            size = megabytes(sizes.database + sizes.log + sizes.versions + sizes.training)
            raise StoreFullError(
                f"{target}: its disk has no room for a backup of {store}, up to {size}; free space there, or name a "
                "folder on another disk"
            ) from error
    waiting = waiting_in(store)
    _print_left_waiting(store, waiting, trouble)
    _print_damaged(made, store)
    beside_agent = isinstance(trouble, StoreLockedError)
    is_whole = not made.damaged and not made.damaged_rows and (trouble is None or beside_agent)
    if json:
        print(as_json({**to_builtins(made), "waiting_in_journal": waiting}))
        sys.exit(0 if is_whole else 1)
    say(
        f"{plain(made.path)}: {trajectories(made.trajectories)}, version [bold]{made.version}[/], "
        f"the files of {number(len(made.versions), 'version', 'versions')}, "
        + (f"{number(len(made.checkpoints), 'checkpoint', 'checkpoints')}, " if made.checkpoints else "")
        + megabytes(made.size_bytes)
    )
    sys.exit(0 if is_whole else 1)


def prune(
    store: StorePath,
    *,
    days: Annotated[float | None, Parameter(help="Delete what is older (store.keep_days).")] = None,
    newest: Annotated[
        int | None, Parameter(help="Keep only the newest so many (store.keep_trajectories).", converter=whole)
    ] = None,
    per_source: Annotated[
        int | None, Parameter(help="... of each source (store.keep_per_source).", converter=whole)
    ] = None,
    unlearned: Annotated[
        bool | None, Parameter(help="Delete also what no cycle has taken yet (store.keep_unlearned = false).")
    ] = None,
    versions: Annotated[
        int | None,
        Parameter(
            help="Remove the files of all versions but the one in force, those that so many rollbacks lead to, and "
            "pinned ones (store.keep_versions, but by this option alone).",
            converter=whole,
        ),
    ] = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Delete trajectories beyond the limits, and what hangs on them; and versions' files. A running agent does so after
    each cycle.
    """
    from sona.storage.mapped import open_journal
    from sona.storage.retention import Limits
    from sona.storage.version_retention import prune_versions
    from sona.storage.writer import Writer

    given = {
        "keep_days": days,
        "keep_trajectories": newest,
        "keep_per_source": per_source,
        "keep_unlearned": None if unlearned is None else not unlearned,
    }
    settings = settings_of(config).store
    limits = Limits.of(StoreConfig(**{**asdict(settings), **{k: v for k, v in given.items() if v is not None}}))
    if versions == 0:  # in the settings it keeps all, which is nothing to ask for here
        raise ConfigError("--versions 0; 1 or more is allowed: so many rollbacks keep their files")
    if versions is not None:
        StoreConfig(keep_versions=versions)  # raises where it is out of its range
    if not limits and not versions:
        raise ConfigError(
            "no limit is set (0 is none): give --days, --newest, --per-source, --versions, or a --config with "
            "store.keep_days"
        )
    with (
        _stopped("what was deleted by then is gone; the same command again deletes the rest"),
        open_store(store, settings) as opened,
        closing(Writer(opened, opened.config, open_journal(opened.path, opened.config))) as writer,
    ):
        writer.settle()  # or what a killed agent left in the journal could give back what is deleted
        done = opened.prune(limits) if limits else None
        gone = prune_versions(opened, versions) if versions else None
    if json:
        told = {"versions": gone.versions, "versions_freed_bytes": gone.freed_bytes} if gone is not None else {}
        print(as_json({**(to_builtins(done) if done is not None else {}), **told}))
        return
    if done is not None:
        _print_pruned(done)
    if gone is not None:
        say(
            f"the files of {number(len(gone.versions), 'version', 'versions')} removed"
            f"{': ' + ', '.join(gone.versions) if gone.versions else ''}; {megabytes(gone.freed_bytes)} given back"
        )


def erase(
    source: Annotated[str, Parameter(help="Who sent what is to be erased.")],
    *,
    store: StorePath,
    yes: Annotated[bool, Parameter(negative="", help="Erase; without it nothing is done.")] = False,
    json: AsJson = False,
) -> None:
    """Erase all that SOURCE has sent: trajectories, feedback, exemplars and lessons of the bank, features of
    the router; and name what has learned from it. An agent that has the store open calls engine.erase().
    """
    from sona.erasure import erase as erase_source
    from sona.storage.mapped import open_journal
    from sona.storage.versions import Versions
    from sona.storage.writer import Writer

    if not yes:
        raise InvalidInputError(f"erase {source!r}: it can't be undone; say --yes")
    with (
        _stopped(f"the erasure of {plain(repr(source))} may be half done; the same command again takes it to its end"),
        open_store(store, StoreConfig()) as opened,
        closing(Writer(opened, opened.config, open_journal(opened.path, opened.config))) as writer,
    ):
        writer.settle()  # a killed agent may have left some of it in the journal
        done = erase_source(opened, Versions(store), source, writer.wipe)
    if json:
        print(as_json(done))
        return
    say(
        f"{trajectories(done.trajectories)} of {plain(repr(source))} erased, with "
        f"{number(done.feedback, 'feedback', 'feedbacks')}, and {number(done.exemplars, 'exemplar', 'exemplars')} and "
        f"{number(done.lessons, 'lesson', 'lessons')} and the features of "
        f"{number(done.features, 'query', 'queries')} in {number(len(done.rewritten), 'version', 'versions')}"
        + ("; it was begun before, and what that had erased is not counted here" if done.goes_on else "")
    )
    for name in done.removed:
        out.print(f"{name} was damaged, so its files were removed", highlight=False)
    if done.learned:
        say(f"Learned from it all the same: {', '.join(done.learned)}")
        out.print("Weights can't be made to forget a source; a rollback takes them out of use.", highlight=False)
    if done.roll_back_to is not None:
        say(
            f"{done.in_force} is in force: 'sona versions rollback {done.roll_back_to} --store {store}' goes back to "
            "before it"
        )
    for path in done.not_covered:
        what = "may still tell whether a text was asked" if path.endswith(".safetensors") else "may hold texts of it"
        say(f"{what}: {plain(path)}")
    out.print("Backups are not covered: delete those that were made before.", highlight=False)


@contextmanager
def _stopped(left: str) -> Iterator[None]:
    """Say what a Ctrl-C in the block has left behind, and end the program."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say(f"sona: stopped; {left}", err)
        sys.exit(stopped_code(stop))


def doctor(
    store: StorePath,
    *,
    repair: Annotated[
        bool, Parameter(negative="", help="Repair what can be; what was there is kept beside it.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Say what is wrong with a store: every row, every count, every version's files. Works beside a running agent, but
    for --repair. Exit code 0: nothing is wrong; 1: something; 2: it can't be used.
    """
    from sona.storage.doctor import diagnose
    from sona.storage.repair import repair as repair_store

    found = repair_store(store) if repair else diagnose(store)
    if json:
        print(as_json({**to_builtins(found), "exit_code": found.exit_code}))
        sys.exit(found.exit_code)
    for line in found.done:
        say(f"repaired: {plain(line)}")
    colours = {"fatal": "bold red", "damaged": "red", "repairable": "yellow", "note": "dim"}
    for one in found.findings:
        say(
            f"[{colours[one.severity]}]{one.severity}[/] {plain(one.where)}: {plain(one.what)}"
            + (f"; --repair {one.repair}" if one.repair else "")
        )
    if found.exit_code == 0:
        out.print("[green]nothing is wrong[/]")
    sys.exit(found.exit_code)


def _print_waiting(store: Path, waiting: int) -> None:
    """What no reader of the database sees yet."""
    if waiting:
        say(
            f"[yellow]{number(waiting, 'record waits', 'records wait')} in {plain(str(store / 'journal'))}[/] for the "
            "agent that writes to it, or for the next start; not counted here",
            err,
        )


def _store_waiting(store: Path) -> StoreError | None:
    """Store what a killed agent left in the journal, where nobody else writes to the store; returns why it could not be
    stored, if so.
    """
    from sona.storage.mapped import open_journal, waiting_in
    from sona.storage.writer import Writer

    if not waiting_in(store):
        return None
    try:
        with (
            open_store(store, StoreConfig()) as opened,
            closing(Writer(opened, opened.config, open_journal(opened.path, opened.config))) as writer,
        ):
            writer.flush()
    except StoreError as error:
        return error
    return None


def _print_left_waiting(store: Path, waiting: int, trouble: StoreError | None) -> None:
    """What is not in a backup, and how to have it there."""
    if not waiting:
        return
    records = number(waiting, "record that waits", "records that wait")
    if trouble is None or isinstance(trouble, StoreLockedError):
        why = "the agent that writes to it has yet to store them; it has them in by 'engine.backup()', or try again"
    else:
        why = f"they could not be stored first: {trouble}. Then make another backup"
    say(f"[yellow]Not in the backup: {records} in {plain(str(store / 'journal'))}[/], as {plain(why)}", err)


def _print_damaged(made: Backup, store: Path) -> None:
    doctor = f"see 'sona doctor --store {plain(str(store))}'"
    for version in made.damaged:
        say(f"[yellow]{version} is damaged, and left out[/]; {doctor}", err)
    if made.damaged_rows:
        rows = number(made.damaged_rows, "damaged row is", "damaged rows are")
        say(f"[yellow]{rows} in it as in the store[/]; {doctor}", err)


def _print_pruned(done: Pruned) -> None:
    out.print(
        f"{trajectories(done.trajectories)} deleted, with {number(done.feedback, 'feedback', 'feedbacks')}; "
        f"{megabytes(done.freed_bytes)} given back",
        highlight=False,
    )
    for count, why in ((done.unlearned, "no cycle has taken them yet"), (done.damaged, "see 'sona doctor'")):
        if count:
            out.print(f"{count} beyond the limits were left: {why}", highlight=False)


def _print_remote(told: RemoteStatus) -> None:
    """As its engine wrote it down last; what became of the server since nobody knows."""
    where = f"the {told.kind} server at {plain(told.url)}"
    if told.version is None:
        say(f"[yellow]nothing is in force on {where}[/]")
    else:
        names = plain(", ".join(told.names.values()) or "the base alone")
        say(f"{told.version} is in force on {where} since {when(told.since_ns)}: {names}")
    if told.trouble is not None:
        what = "there is trouble" if told.wanted == told.version else f"{told.wanted} is not in force there"
        say(f"[yellow]{what}:[/] {plain(told.trouble)}")


def _print_sources(rows: list[Any]) -> None:
    table = Table("source", "number", "steps", "rewards", "mean", "rated", "quality", "outcomes", box=None)
    for row in rows:
        outcomes = ", ".join(f"{count} {name}" for name, count in row.outcomes.items() if count)
        reward, quality = (("-" if mean is None else f"{mean:.3f}") for mean in (row.mean_reward, row.mean_quality))
        name = row.source if row.source.isprintable() else repr(row.source)  # a line each
        table.add_row(
            plain(name),
            str(row.trajectories),
            str(row.steps),
            str(row.rewards),
            reward,
            str(row.rated),
            quality,
            outcomes,
        )
    out.print(table)


def _print_cycles(cycles: list[CycleReport]) -> None:
    for report in reversed(cycles):
        out.print(
            f"cycle {report.cycle}, {when(report.finished_ns)}: {report.status} {report.version or ''} "
            f"from {report.funnel.collected}: {plain(report.reason)}",
            highlight=False,
        )
