"""The README's curl examples, as they stand there, against a real server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import sona
from tests.service.process import ROOT, serving


def examples() -> str:
    """The block of the section that asks a server."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## As a server\n")[1].split("\n## ")[0]
    (block,) = [one for one in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if "curl" in one]
    return str(block)


@pytest.mark.timeout(120)
def test_the_curl_examples_run(tmp_path: Path) -> None:
    block = examples()
    with serving(tmp_path / "S") as server:
        script = block.replace("http://127.0.0.1:8000", server.url)
        # Each status on a line of its own; a stream that --max-time ends is no failure.
        loud = script.replace("curl ", "curl -w '\\nSTATUS %{http_code}\\n' ")
        done = subprocess.run(
            ["bash", "-u", "-c", loud], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.stderr == ""
        statuses = re.findall(r"STATUS (\d+)", done.stdout)
        assert statuses == ["200"] * block.count("curl "), done.stdout
        assert '"content":"blue river stone"' in done.stdout
        assert "data: [DONE]" in done.stdout
        assert '"status":"recorded"' in done.stdout
        assert "total_logprob" in done.stdout
        assert ": events of sona" in done.stdout
        assert "sona_http_request_duration_seconds_bucket" in done.stdout
        header = re.search(r"x-sona-trajectory: (\w+)", (tmp_path / "headers.txt").read_text())
    assert header is not None
    with sona.open_sync(tmp_path / "S") as engine:
        kept = engine.get(header.group(1))
        assert (kept.trajectory.source, kept.quality) == ("support-bot", 1.0)
        assert len(engine.feedback_of(header.group(1))) == 3


def test_every_path_is_shown() -> None:
    from sona.service.routes import ENDPOINTS

    block = examples()
    for one in ENDPOINTS:
        shown = one.path.replace("{id}", "1" if one.path.startswith("/candidates") else "v0")
        assert shown in block or one.path.startswith("/v1/models/"), one.path
