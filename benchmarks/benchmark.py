"""What a ``bench_<claim>.py`` declares of itself, and how it is run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.call import Call
from benchmarks.dataset import DataNeed
from benchmarks.options import OUT, add_data, add_model, new_parser

MISUSED = 2  # argparse's exit code for the same


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True)
class Benchmark:
    """One claim's measurement. Its file ends with ``sys.exit(BENCHMARK.main())`` when it is run as a program."""

    name: str
    """The file's, without ``.py``."""
    about: str | None
    """The file's docstring: the question, the method, and what would make the figure misleading."""
    run: Callable[[Call], None]
    """Measures, and tells the call what came out."""
    data: DataNeed | None = None
    """What ``--data`` must hold; None where it makes its own."""
    data_is_optional: bool = False
    """Whether a part of it runs without ``--data``."""
    takes_model: bool = False
    """Whether ``--model`` chooses the model."""
    add_options: Callable[[argparse.ArgumentParser], None] = _nothing
    """Adds options of its own."""

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run it as ``arguments`` (None: the command line) say; returns the exit code."""
        parser = new_parser(self.about or "", OUT / f"{self.name}.json")
        if self.data is not None:
            add_data(parser, self.data.fields)
        if self.takes_model:
            add_model(parser)
        self.add_options(parser)
        options = parser.parse_args(arguments)
        if self.data is not None and (trouble := self.trouble(options.data)):
            print(f"{self.name}: {trouble}")
            return MISUSED
        began = time.perf_counter()
        call = Call(self.name, options)
        self.run(call)
        call.finish(time.perf_counter() - began)
        return 0

    def trouble(self, folders: Sequence[Path]) -> str:
        """Why it can't run on these folders of ``--data``; empty where it can."""
        if self.data is None:
            return ""
        if not folders and not self.data_is_optional:
            return f"it needs --data DIR, a folder whose dev/*.jsonl has rows with {self.data.fields}"
        unfit = [folder for folder in folders if not self.data.fits(folder)]
        return f"{unfit[0]} has no dev/*.jsonl with {self.data.fields}" if unfit else ""
