"""Python in a process of its own, for what can only be seen from outside or after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(script: str, *args: object) -> subprocess.Popen[str]:
    """Run ``script`` with ``args`` in ``sys.argv[1:]``; its output is read from ``.stdout``."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: str, *args: object) -> str:
    """What ``script`` printed; it must end well."""
    process = start(script, *args)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.strip()


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for the first line that ``process`` prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> str:
    """End it as a crash would, and return what it had printed."""
    process.kill()
    return process.communicate(timeout=60)[0]
