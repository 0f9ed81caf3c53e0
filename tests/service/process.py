"""``sona serve`` as a person starts it: a process, a socket, a token in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from sona.service.bearer import FILE

ROOT = Path(__file__).parents[2]
SMALL = """
[serve]
device = "cpu"
threads = 1
"""


class Server:
    """One process, from the moment that it answers."""

    def __init__(self, process: subprocess.Popen[str], store: Path) -> None:
        self._process, self.store = process, store
        self.said = ""
        assert process.stdout is not None
        while not (found := re.search(r"answers on (http://\S+);", self.said)):
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait(30)}: {self.said}"
            self.said += line
        self.url = found.group(1)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def learner(self) -> int | None:
        """The process that it learns in; None where there is none just now."""
        for tasks in Path(f"/proc/{self.pid}/task").glob("*/children"):
            for child in tasks.read_text().split():
                with suppress(FileNotFoundError):
                    if b"sona.loops.learner" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return None

    @property
    def token(self) -> str:
        return (self.store / FILE).read_text().strip()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.token}"}, timeout=60)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended; what it printed is in :attr:`said`."""
        rest, _ = self._process.communicate(timeout=60)
        self.said += rest
        return self._process.returncode


def launch(store: Path, *words: object) -> subprocess.Popen[str]:
    settings = store.with_name(f"{store.name}.toml")
    if not settings.exists():
        settings.write_text(SMALL)
    return subprocess.Popen(
        [
            *(sys.executable, "-c", "from sona.cli import main; main()", "serve", "--store", str(store)),
            *("--model", "tiny", "--config", str(settings), *(() if "--learn" in words else ("--no-learn",))),
            *map(str, words),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serving(store: Path, *words: object) -> Iterator[Server]:
    """A server on a free port; ended with the block, if it has not ended before."""
    process = launch(store, *(words if "--port" in words else ("--port", 0, *words)))
    try:
        yield Server(process, store)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)
