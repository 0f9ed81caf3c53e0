"""``sona score``: which memories mattered to which responses."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.text import Text

from sona.config import settings_of
from sona.errors import InvalidInputError
from sona.excerpt import printable
from sona.output_file import check_target, write_file
from sona.scored_context import context_of
from sona.scoring_model import NO_SERVER, Opened, ServerOptions, local_scorer, server_scorer
from sona.terminal import (
    AsJson,
    ConfigPath,
    ModelName,
    StorePath,
    as_json,
    err,
    number,
    out,
    plain,
    progress_bars,
    say,
    show_on,
    stopped_code,
)

if TYPE_CHECKING:
    from sona.attribution.context import Context
    from sona.attribution_view.chart import Chart, Method

MOST = 30
"""Memories in a table, unless told."""


@dataclass(frozen=True)
class Ablation:
    """Of --method ablate."""

    runs: Annotated[int, Parameter(name="--runs", help="Random variants, with --method ablate.")] = 64
    seed: Annotated[int, Parameter(name="--seed", help="Of the random variants.")] = 0


@dataclass(frozen=True)
class Pictures:
    """Files to draw."""

    html: Annotated[Path | None, Parameter(name="--html", help="Write a page with the heat map here.")] = None
    png: Annotated[Path | None, Parameter(name="--png", help="Write the heat map here; needs matplotlib.")] = None

    @property
    def targets(self) -> tuple[Path, ...]:
        """Those that are wanted."""
        return tuple(target for target in (self.html, self.png) if target is not None)

    def check(self, store: Path | None) -> None:
        """Raises InvalidInputError where one can't be written: before the model is loaded."""
        for target in self.targets:
            check_target(target, store)
        if len({target.resolve() for target in self.targets}) < len(self.targets):
            raise InvalidInputError(f"--png {str(self.png)!r}: that is the page; name another file")
        if self.png is not None:
            from sona.bank_view.png import check_drawable

            check_drawable()

    def write(self, chart: Chart, about: str) -> None:
        """Draw them."""
        from sona.attribution_view.page import heat_page
        from sona.attribution_view.png import heat_png

        if self.html is not None:
            write_file(self.html, heat_page(chart, f"{about}.").encode())
        if self.png is not None:
            write_file(self.png, heat_png(chart, about + (f" (stopped: {chart.note})" if chart.note else "")))
        for target in self.targets:
            say(f"{plain(str(target))} written", err)


ABLATION, NO_PICTURES = Ablation(), Pictures()


def score(
    what: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Id of a trajectory of the store, or a JSON file with messages and memories; '-' is stdin.",
        ),
    ],
    /,
    *,
    model: ModelName,
    store: StorePath | None = None,
    method: Annotated[
        Literal["loo", "strip_all", "ablate"],
        Parameter(
            help="Leave out each by itself, all at once, or many at random, which finds those that say the same."
        ),
    ] = "loo",
    ablation: Annotated[Ablation, Parameter(name="*")] = ABLATION,
    most: Annotated[int, Parameter(help="So many memories in the table, the heaviest first.")] = MOST,
    pictures: Annotated[Pictures, Parameter(name="*")] = NO_PICTURES,
    server: Annotated[ServerOptions, Parameter(name="*")] = NO_SERVER,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Weigh the memories in a conversation: how much likelier each made each response. Works beside a running agent.

    With --store the version in force scores. Ctrl-C shows what is done by then. Exit code 1: some scores failed.
    """
    if most < 1:
        raise InvalidInputError(f"--most {most}; 1 or more is allowed")
    server.check()
    pictures.check(store)
    settings = settings_of(config).serve
    context = context_of(what, store)
    with ExitStack() as stack:
        if server.url is None:
            opened = stack.enter_context(local_scorer(model, settings, store, context))
        else:
            opened = server_scorer(model, settings, server, store)
        chart, stopped = _scored(context, opened, method, ablation)
    about = printable(f"{'stdin' if what == '-' else what}, scored by {opened.name}")
    if json:
        from sona.attribution_view.chart_json import as_builtins

        print(as_json({"scored": about, **as_builtins(chart)}))
    else:
        _print(chart, about, most)
    pictures.write(chart, about)
    if stopped is not None:
        note = chart.note or "all was done by then"
        say(f"[yellow]sona: stopped; what is shown is partial:[/] {note}", err)
        sys.exit(stopped_code(stopped))
    sys.exit(1 if chart.failed else 0)


def _scored(
    context: Context, opened: Opened, method: Method, ablation: Ablation
) -> tuple[Chart, KeyboardInterrupt | None]:
    """The chart, and what stopped it before it was whole."""
    from sona.attribution_view.chart_run import ChartRun

    stopped = None
    with progress_bars() as bars:
        run = ChartRun(
            context,
            opened.codec,
            opened.scorer,
            method,
            runs=ablation.runs,
            seed=ablation.seed,
            report=show_on(bars),
        )
        try:
            run.run()
        except KeyboardInterrupt as stop:
            stopped = stop
    chart = run.chart()
    if not chart.columns:
        raise InvalidInputError("context: no response has a token of its own outside its thinking; nothing to score")
    return chart, stopped


def _print(chart: Chart, about: str, most: int) -> None:
    from sona.attribution_view import words
    from sona.attribution_view.chart import TITLES
    from sona.attribution_view.table import chart_table, fitting, response_table

    places = fitting(chart, out.width)
    lines = [*chart.ranked[:most], *([chart.together] if chart.together else [])]
    partial = f" [yellow](partial: {chart.note})[/]" if chart.note else ""
    say(f"[bold]{plain(about)}[/]: {TITLES[chart.method]}{partial}")
    out.print(chart_table(chart, lines, places))
    if len(chart.lines) > most:
        out.print(f"... and {number(len(chart.lines) - most, 'lighter memory', 'lighter memories')}", highlight=False)
    if len(places) < len(chart.columns):
        left = number(len(chart.columns) - len(places), "response", "responses")
        out.print(f"... and {left} that depend on memories less: --json or --html shows all", highlight=False)
    say(Text(words.key(chart), "dim"))
    out.print()
    out.print(response_table(chart, places))
    if summary := words.summary(chart):
        out.print("\n[bold]the heaviest[/]")
        for line in summary:
            say(plain(line))
    for one in chart.warnings:
        say(f"[yellow]warning:[/] {plain(words.warning(chart, one))}", err)
    if chart.failed:
        failed = number(len(chart.failed), "row has", "rows have")
        err.print(f"[yellow]{failed} no or not all scores[/]; the table says why", highlight=False)
