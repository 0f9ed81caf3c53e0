"""``transformers serve``, the peer over HTTP, with the same weights."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

import sona.tiny

NEEDS = ("fastapi", "multipart")
START_S = 120.0
COMMAND = "from transformers.cli.transformers import main; main()"


def is_installed() -> bool:
    """Whether it can be started: it takes two packages that sona does not."""
    return all(importlib.util.find_spec(name) for name in NEEDS)


class TransformersServe:
    """One of its servers with continuous batching, on a free port of this machine; it ends with the block."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "weights"
        shutil.copytree(Path(sona.tiny.__file__).parent / "weights", self.model)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = ["serve", str(self.model), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
        words += ["--port", str(port), "--continuous-batching"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.2)
        self._end()
        raise RuntimeError(f"transformers serve does not answer after {START_S} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
