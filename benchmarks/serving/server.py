"""``sona serve`` in a process of its own, as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from sona.service.bearer import FILE

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


class Server:
    """A server on a free port of this machine; it ends with the block."""

    def __init__(self, store: Path, settings: str, *words: str) -> None:
        """``settings``: the text of its TOML file; ``words``: more of its command line."""
        self._store = store
        toml = store.with_suffix(".toml")
        toml.write_text(settings, encoding="utf-8")
        command = [sys.executable, "-c", "from sona.cli import main; main()", "serve", "--store", str(store)]
        command += ["--model", "tiny", "--port", "0", "--config", str(toml), *words]
        self._log = store.with_suffix(".log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.url = self._where()

    def _where(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"answers on (http://\S+);", line):
                return found.group(1)
        raise RuntimeError(f"the server ended with {self._process.wait(PATIENCE_S)}: {self.log()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def headers(self) -> dict[str, str]:
        """That let a client in."""
        return {"authorization": f"Bearer {(self._store / FILE).read_text().strip()}"}

    def client(self) -> httpx.AsyncClient:
        """A client of one connection."""
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=PATIENCE_S)

    @property
    def learner(self) -> int | None:
        """The process that learns; None where there is none just now."""
        for tasks in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for child in tasks.read_text().split():
                if b"sona.loops.learner" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return None

    def log(self) -> str:
        """What it has logged."""
        self._log.seek(0)
        return self._log.read()
