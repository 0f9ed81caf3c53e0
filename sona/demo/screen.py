"""What a person sees while the demo runs: bars on a terminal, the same lines without them in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from sona.demo.result import DemoResult, Row
from sona.tiny import AGENT_TASKS
from sona.types import CycleReport


class Bar:
    """Something long that is being done."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.summary = ""
        """What came of it."""

    def move(self, done: int, total: int, note: str = "") -> None:
        """So much is done of so much, and this is being done now. May be called from any thread."""
        self._progress.update(self._task, completed=done, total=total, note=escape(note))


class Screen:
    """Tells the story on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """One line, in rich's markup."""
        self._console.print(line, highlight=False, soft_wrap=True)  # a path that is broken in two cannot be copied

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Something whose length nobody knows."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(what):
            yield

    def heading(self, title: str, note: str) -> None:
        """A chapter begins."""
        self._console.print()
        self.say(f"[bold]{escape(title)}[/]  {escape(note)}")

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """A bar while something long is done; afterwards a line with its summary and how long it took."""
        started = time.perf_counter()
        columns = (
            TextColumn("  {task.description:<12}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}", markup=True),
        )
        # Without a terminal nothing is drawn: a log would get every frame.
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as progress:
            bar = Bar(progress, progress.add_task(name, total=total, note=""))
            yield bar
        took = time.perf_counter() - started
        self.say(f"  [dim]{name:<12}[/] {escape(bar.summary)} [dim]· {took:.1f} s[/]")

    def verdict(self, cycle: CycleReport) -> None:
        """What the gate decided, and what of."""
        if cycle.status == "published" and cycle.gate is None:
            self.say(f"  [green]{'published':<12}[/] [bold]{cycle.version}[/]: {escape(cycle.reason)}")
        elif cycle.status == "published":
            self.say(f"  [green]{'admitted':<12}[/] the gate lets [bold]{cycle.version}[/] answer from now on")
        elif cycle.status == "rejected":
            self.say(
                f"  [yellow]{'rejected':<12}[/] the gate keeps {cycle.parent}; its answers are replayed in later cycles"
            )
        else:
            self.say(f"  [yellow]{'skipped':<12}[/] {escape(cycle.reason)}; nothing is lost, the next cycle takes it")
        for check in cycle.gate.checks if cycle.gate else ():
            mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
            self.say(f"  {'':<12} {mark} {check.name}: {check.value:.3g} [dim]({check.needed})[/]")

    def returned(self, version: str, identical: bool) -> None:
        """An earlier version answered again."""
        same = "[green]✓[/] the same answers as before" if identical else "[red]✗[/] other answers than before"
        self.say(f"  {'':<12} {same} [dim]({version}, compared token for token)[/]")

    def result(self, result: DemoResult, kept: Sequence[Path]) -> None:
        """What came of it all, and where it is."""
        self._matrix(result.rows)
        self._figures(result)
        self._places(result, kept)

    def _matrix(self, rows: Sequence[Row]) -> None:
        table = Table(title="Right answers to held-out queries", title_justify="left", title_style="bold")
        table.add_column("")
        for column in (*AGENT_TASKS, "old skills"):
            table.add_column(column, justify="right")
        for row in rows:
            shares = [*(row.answers.accuracy[task] for task in AGENT_TASKS), row.answers.skills]
            table.add_row(row.name, *(f"{share:.0%}" for share in shares))
        self._console.print()
        self._console.print(table)

    def _figures(self, result: DemoResult) -> None:
        self.say(f"\n  {'new tasks':<12} {result.before:.0%} → [bold]{result.after:.0%}[/] right")
        self.say(f"  {'old skills':<12} [bold]{result.kept:.0%}[/] of their accuracy kept")
        if result.rollback_identical is None:
            back = "not shown, as no version was published"
        else:
            back = "restores the same answers" if result.rollback_identical else "[red]gives other answers[/]"
        self.say(f"  {'roll-back':<12} {back}")
        self.say(f"  {'time':<12} {result.seconds:.0f} s")

    def _places(self, result: DemoResult, kept: Sequence[Path]) -> None:
        picture = "needs matplotlib: pip install 'sona[plots]', and run the demo again"
        self.say(f"\n  {'picture':<12} {escape(str(result.picture or picture))}")
        self.say(f"  {'report':<12} {escape(str(result.report))}")
        self.say(f"  {'store':<12} {escape(str(result.store))}")
        for path in kept:
            self.say(
                f"  {'moved':<12} what stood there had changed since the demo made it; it is now {escape(str(path))}"
            )
