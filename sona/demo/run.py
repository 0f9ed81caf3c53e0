"""The demo from its options to its results."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import sona.sync
from sona.demo.folder import PICTURE, REPORT, STORE, ResultsFolder, results_folder
from sona.demo.options import DemoOptions
from sona.demo.picture import draw_picture
from sona.demo.report import report_page
from sona.demo.result import DemoResult
from sona.demo.screen import Screen
from sona.demo.story import Story
from sona.errors import InvalidInputError
from sona.output_file import write_file


def run_demo(options: DemoOptions) -> DemoResult:
    """Run the demo, tell it on ``options.console``, and write its results into ``options.out``.

    Returns:
        What was found out. For the same options on the same machine it is the same, but for ids and times.

    Raises:
        ConfigError: a seed that is out of range.
        InvalidInputError: the results can't be written where they are wanted; nothing has been done.
        StoreLockedError: another process uses the results of an earlier run.
        KeyboardInterrupt: after a line that says so; what an earlier run left in ``options.out`` is still there.
    """
    started = time.perf_counter()
    screen = Screen(options.console)
    _check_json_path(options.json_path, options.out)
    try:
        with results_folder(options.out) as folder:
            result, kept = _run(options, screen, folder, started)
    except KeyboardInterrupt:
        screen.say(f"\nStopped. Nothing of this run is kept, and {options.out} is as it was before.")
        raise
    if options.json_path is not None:
        write_file(options.json_path, (json.dumps(result.figures(), indent=2) + "\n").encode())
    screen.result(result, kept)
    return result


def _run(options: DemoOptions, screen: Screen, folder: ResultsFolder, started: float) -> tuple[DemoResult, list[Path]]:
    config = options.config()
    with ExitStack() as stack:
        with screen.waiting("loading the model"):
            engine = stack.enter_context(sona.sync.open_sync(folder.draft / STORE, model="tiny", config=config))
        story = Story(engine, options, screen)
        story.tell()
    picture = draw_picture(story.rows)
    result = DemoResult(
        rows=tuple(story.rows),
        traffic=tuple(story.traffic),
        cycles=tuple(story.cycles),
        returns=tuple(story.returns),
        comparisons=story.comparisons(),
        versions=tuple(story.versions),
        patterns=story.patterns,
        trajectories=story.trajectories,
        seed=options.seed,
        seconds=time.perf_counter() - started,
        store=folder.path / STORE,
        report=folder.path / REPORT,
        picture=None if picture is None else folder.path / PICTURE,
    )
    if picture is not None:
        (folder.draft / PICTURE).write_bytes(picture)
    (folder.draft / REPORT).write_text(report_page(result, picture), encoding="utf-8")
    return result, folder.publish()


def _check_json_path(path: Path | None, out: Path) -> None:
    """Better now than when all is done."""
    if path is None or (path.parent == out and not path.exists()):  # the results folder is there by then
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInputError(f"JSON file {str(path)!r}: it can't be written; name a file in a folder that exists")
