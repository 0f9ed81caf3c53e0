"""The command line: ``sona --help``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from msgspec.structs import replace
from rich.table import Table

import sona
from sona import cli_bank, cli_candidates, cli_checkpoints, cli_score, cli_serve, cli_store, cli_versions, review
from sona.config import settings_of
from sona.errors import SonaError, StoreError
from sona.hooks.jsonl import check_file
from sona.storage.presence import check_there
from sona.terminal import (
    AsJson,
    ConfigPath,
    ModelName,
    StorePath,
    as_json,
    end_in_order,
    err,
    number,
    out,
    plain,
    print_anything,
    progress_bars,
    say,
    show_on,
    stopped_code,
)
from sona.types import CycleReport

app = cyclopts.App(
    name="sona",
    help="Make the model behind an agent better from its own use.",
    version=sona.__version__,
    suppress_keyboard_interrupt=False,  # main() says what Ctrl-C left behind
)
app.command(cli_versions.versions)
app.command(cli_checkpoints.checkpoints)
app.command(cli_bank.bank)
app.command(cli_serve.serve)
app.command(review.review)
app.command(cli_candidates.candidates)
app.command(cli_score.score)
for command in (cli_store.status, cli_store.doctor, cli_store.backup, cli_store.prune, cli_store.erase):
    app.command(command)


def main() -> None:
    """Entry of the ``sona`` command. Errors that a user can cause are one line on stderr and exit code 2."""
    # peft 0.21 asks transformers for a property that 5.x has renamed; nothing that a user of the command can mend
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        end_in_order()
        print_anything()
        app()
    except SonaError as error:
        say(f"[bold red]sona:[/] {plain(str(error))}", err)
        sys.exit(2)
    except PermissionError as error:  # of another user's files, wherever they are met
        where = "" if error.filename is None else f"{plain(repr(os.fsdecode(error.filename)))}: "
        say(f"[bold red]sona:[/] {where}{error.strerror}; see to it that you may use it, or name another place", err)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        err.print("sona: stopped; what was recorded is stored, now or at the next start, and nothing else has changed")
        sys.exit(stopped_code(stop))


@app.command
def demo(
    *,
    out_dir: Annotated[Path, Parameter(name="--out", help="Folder for the store, the picture and the report.")] = Path(
        "sona-demo"
    ),
    seed: int = 0,
    learning: Annotated[bool, Parameter(help="Without learning the same script shows no rise.")] = True,
    json_path: Annotated[Path | None, Parameter(name="--json", help="Write the figures to this file.")] = None,
) -> None:
    """Watch the small model that comes with sona learn three tasks from its own traffic, and take one back."""
    from sona.demo import DemoOptions, run_demo

    try:
        run_demo(DemoOptions(out=out_dir, seed=seed, learning=learning, json_path=json_path, console=out))
    except KeyboardInterrupt as stop:  # the demo has said what it left behind
        sys.exit(stopped_code(stop))


@app.command
def learn(
    store: StorePath,
    *,
    model: ModelName,
    trajectories: Annotated[Path | None, Parameter(help="JSON lines to import first.")] = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run one cycle: learn what is new, judge it, publish it if it holds."""
    if trajectories is not None:
        check_file(trajectories)  # before there is a store
    settings = settings_of(config)
    if trajectories is None:
        if not os.path.lexists(store):
            raise StoreError(f"{store}: no store; see that the path is right, or begin one with --trajectories")
        check_there(store)
    here = replace(settings, learner=replace(settings.learner, mode="thread"))  # no requests wait meanwhile
    before: int | None = None
    try:
        with sona.open_sync(store, model=model, config=here) as engine:
            before = engine.status().store.cycles
            if trajectories is not None:
                _import(engine, trajectories, None)
            with progress_bars(json) as bars:
                report = engine.learn(show_on(bars))
        if json:
            print(as_json(report))
        else:
            _print_report(report)
    except (
        KeyboardInterrupt
    ) as stop:  # the cycle has come to an end all the same, or was given up: closing waits for that
        if before is None or (ended := _ended_since(store, before)) is None:
            raise
        said = f"{ended.status}{f' {ended.version}, which is in force' if ended.version else ''}: {ended.reason}"
        say(f"sona: stopped, but cycle {ended.cycle} was at its end by then: {plain(said)}", err)
        sys.exit(stopped_code(stop))


def _ended_since(path: Path, before: int) -> CycleReport | None:
    """The cycle that a store holds beyond ``before`` of them; None where there is none."""
    from sona.storage.store import Store

    with Store.open(path, read_only=True) as opened:
        newest = next(iter(opened.reports(1)), None)
        return newest if opened.counts().cycles > before else None


@app.command(name="import")
def import_(
    file: Annotated[
        Path,
        Parameter(
            allow_leading_hyphen=True,
            help="JSON lines; the form is in the docstring of sona.hooks.jsonl and in the README.",
        ),
    ],
    *,
    store: StorePath,
    source: Annotated[str | None, Parameter(help="Who sent them; otherwise each line says so.")] = None,
    config: ConfigPath = None,
) -> None:
    """Store trajectories from a file of JSON lines. Importing the same lines again changes nothing."""
    check_file(file)  # before there is a store
    with sona.open_sync(store, config=config) as engine:
        _import(engine, file, source)


def _import(engine: sona.SyncEngine, file: Path, source: str | None) -> None:
    counts = engine.import_jsonl(file, source=source)
    new = number(counts.new, "new trajectory", "new trajectories")
    known = f", {counts.known} known already" if counts.known else ""
    left = f"; {counts.left_out} left out, because other content has the same id" if counts.left_out else ""
    if counts.elsewhere:
        there = ", ".join(f"{count} of {plain(repr(name))}" for name, count in sorted(counts.elsewhere.items()))
        left += f". The same ids are there under another source: {there}; a trajectory keeps the source it came with"
    say(f"{plain(file.name)}: {new}, {counts.rated} with a quality{known}{left}", err)


def _print_report(report: CycleReport) -> None:
    colour = {"published": "green", "rejected": "yellow", "skipped": "dim"}[report.status]
    name = f" {report.version}" if report.version else ""
    out.print(f"[bold {colour}]{report.status}{name}[/]: {plain(report.reason)}", highlight=False)
    table = Table("trajectories", "", box=None)
    table.add_row("new with a quality", str(report.funnel.collected))
    table.add_row("  trained on", str(report.funnel.trained))
    table.add_row("  held out", str(report.funnel.held_out))
    for reason, count in sorted(report.funnel.left_out.items()):
        table.add_row(f"  {plain(reason)}", str(count))
    table.add_row("waiting for feedback", str(report.funnel.waiting_for_feedback))
    out.print(table)
    for part, name in (
        ("new", "held-out answers"),
        ("earlier", "earlier held-out answers that could change"),
        ("probes", "base answers that an adapter would give now"),
    ):
        if (after := report.metrics.get(f"{part}_exact_after")) is not None:
            before = report.metrics[f"{part}_exact_before"]
            out.print(f"right word for word, {name}: {before:.0%} before, {after:.0%} after", highlight=False)
    for check in report.gate.checks if report.gate else ():
        mark = "[green]passed[/]" if check.passed else "[red]failed[/]"
        out.print(
            f"gate: {check.name} {check.value:.4g}, {check.needed} passes: {mark} ({plain(check.detail)})",
            highlight=False,
        )
