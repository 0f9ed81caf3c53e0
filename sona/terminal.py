"""What the commands share: where they print, the names of their parameters, the forms of what they show."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sona.checks import folder_of
from sona.errors import InvalidInputError
from sona.excerpt import printable
from sona.types import Progress as Stage

out = Console()
err = Console(stderr=True)


AGAIN_S = 0.05
"""After so long a finaliser has ended, most often."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a command ends as in order as by a Ctrl-C."""


def end_in_order() -> None:
    """From now on SIGTERM raises :class:`Terminated` in the main thread, which calls this, as a Ctrl-C raises
    KeyboardInterrupt. What ends then may take a while, such as a model that is being loaded; the same signal once more
    ends the process at once, and loses nothing that was flushed. Python drops what is raised in a finaliser; then it is
    raised once more.
    """
    unraisable = sys.unraisablehook

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.isatty(2):  # not by rich, which may be in the middle of a line
            os.write(2, b"\nsona: stopping; the same once more ends it at once\n")
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if (
            not isinstance(what.exc_value, KeyboardInterrupt)
            or threading.current_thread() is not threading.main_thread()
        ):
            unraisable(what)
            return
        number = signal.SIGTERM if isinstance(what.exc_value, Terminated) else signal.SIGINT
        if signal.getsignal(number) is signal.SIG_DFL:  # nobody else has taken it over meanwhile
            signal.signal(number, end)
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = dropped
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell has it ignored in the background
        signal.signal(signal.SIGINT, end)


ESCAPED = "sona.escaped"


def print_anything() -> None:
    """From now on what the terminal's encoding lacks (``LANG=C``) is printed as JSON escapes it, with a backslash, a u
    and four digits, and ends no command with an error.
    """
    codecs.register_error(ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)), error.end


def stopped_code(by: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal has stopped, as shells count them: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(by, Terminated) else signal.SIGINT)


def _folder(_: Any, tokens: Any) -> Path:
    """A path as it was typed: made into a Path first, an empty one (an unset variable) would be the working folder."""
    return folder_of(tokens[0].value, "path")


def whole(_: Any, tokens: Any) -> int:
    """A whole number as it was typed; of 3.4, cyclopts would make 3 without a word."""
    given = tokens[0]
    if not given.value.removeprefix("-").isdecimal():
        raise InvalidInputError(f"{given.keyword or 'a number'} {given.value!r}: a whole number is allowed")
    return int(given.value)


StorePath = Annotated[Path, Parameter(name="--store", help="Folder of the store.", converter=_folder)]
ConfigPath = Annotated[Path | None, Parameter(name="--config", help="TOML file with settings.")]
ModelName = Annotated[str, Parameter(name="--model", help="Folder or hub id of a causal language model, or 'tiny'.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of tables.")]


def say(text: str | Text, on: Console = out) -> None:
    """Print ``text``, with rich's markup, as prose: a terminal gets it wrapped between words, a program in one line."""
    on.print(text, highlight=False, soft_wrap=not on.is_terminal)


def when(at_ns: int) -> str:
    """A moment, in nanoseconds since 1970, on the clock of the machine; a dash for 0."""
    return datetime.fromtimestamp(at_ns / 1e9, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M") if at_ns else "-"


def as_json(value: object) -> str:
    """``value`` as JSON, on several lines."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def plain(text: str) -> str:
    """Text of a user's, in which rich must not look for markup, nor the terminal for escape sequences."""
    return escape(printable(text))


def megabytes(size_bytes: int) -> str:
    """A size in MB of 10^6 bytes."""
    return f"{size_bytes / 1e6:.1f} MB"


def trajectories(count: int, kind: str = "") -> str:
    """So many, as one says it; ``kind`` such as ``"new "``."""
    return number(count, f"{kind}trajectory", f"{kind}trajectories")


def number(count: int, one: str, many: str) -> str:
    """So many of something, as one says it."""
    return f"{count} {one if count == 1 else many}"


def progress_bars(quiet: bool = False) -> Progress:
    """Bars on stderr; none where that is no terminal."""
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=err, disable=quiet or not err.is_terminal)


def show_on(bars: Progress) -> Callable[[Stage], None]:
    """A progress callback that draws one bar a stage."""
    tasks: dict[str, TaskID] = {}

    def show_stage(stage: Stage) -> None:
        if stage.stage not in tasks:
            tasks[stage.stage] = bars.add_task(stage.stage, total=stage.total, note="")
        bars.update(tasks[stage.stage], completed=stage.done, total=stage.total, note=plain(stage.note))

    return show_stage
