"""The README's curl examples, as they stand there, against a real server."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
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


NEED_STATE = {
    ("GET", "/candidates/{id}"): "a candidate, which takes a scored turn",
    ("POST", "/candidates/{id}/approve"): "a candidate",
    ("POST", "/candidates/{id}/reject"): "a candidate",
    ("POST", "/candidates/send"): "a training service, and what is approved",
}
"""What no example can call on a fresh server, and what it needs."""


def test_every_path_is_called_or_needs_what_a_fresh_server_has_not() -> None:
    from sona.service.routes import ENDPOINTS

    calls = list(called(examples()))
    shown = {(one.method, one.path) for one in ENDPOINTS if any(calls_it(call, one.method, one.path) for call in calls)}
    known = {(one.method, one.path) for one in ENDPOINTS}
    assert known - shown == set(NEED_STATE)


def test_a_comment_calls_nothing() -> None:
    block = (
        'curl -s $URL/a -H "$AUTH"  # POST /b; curl $URL/c\n# curl $URL/d\ncurl $URL/e/v0 -d \'{\n "x": "$URL/f"}\'\n'
    )
    assert list(called(block)) == [("GET", "/a"), ("POST", "/e/v0")]
    assert calls_it(("POST", "/e/v0"), "POST", "/e/{id}")
    assert not calls_it(("POST", "/e/v0/more"), "POST", "/e/{id}")
    assert not calls_it(("POST", "/e/v0"), "GET", "/e/{id}")


def called(block: str) -> Iterator[tuple[str, str]]:
    """Method and path of each curl command, as a shell reads it."""
    words = shlex.split(block, comments=True)
    starts = [place for place, word in enumerate(words) if word == "curl"]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        command = words[start:end]
        (url,) = [word for word in command if word.startswith("$URL/")]
        method = command[command.index("-X") + 1] if "-X" in command else "POST" if "-d" in command else "GET"
        yield method, url.removeprefix("$URL")


def calls_it(call: tuple[str, str], method: str, path: str) -> bool:
    pattern = re.escape(path).replace(re.escape("{id}"), "[^/]+")
    return call[0] == method and re.fullmatch(pattern, call[1]) is not None and not is_other(call[1], path)


def is_other(called_path: str, path: str) -> bool:
    """Whether a path of its own has what would be an id here, as ``/candidates/change`` has."""
    from sona.service.routes import ENDPOINTS

    return path != called_path and any(one.path == called_path for one in ENDPOINTS)
