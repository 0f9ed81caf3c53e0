"""@ruvector/sona from npm, recording the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from benchmarks.fast_loop.caller import Latency

FOLDER = Path(__file__).resolve().parent.parent / "peers"
SCRIPT = Path(__file__).with_name("peer.mjs")


def trouble() -> str:
    """Why it can't be measured; empty where it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (FOLDER / "node_modules" / "@ruvector" / "sona").is_dir():
        return "@ruvector/sona is not installed; run `make peers`"
    return ""


def latency(width: int, calls: int, activations: int = 0, attention: int = 0) -> Latency:
    """Of begin, two steps and end; so many ``activations`` and ``attention`` weights go with each step."""
    command = ["node", str(SCRIPT), str(FOLDER), *map(str, (width, calls, activations, attention))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Latency(**json.loads(done.stdout.splitlines()[-1]))
