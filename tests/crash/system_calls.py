"""Killed at the N-th system call of a kind, or with the N-th one failing, N by N, where strace is there.

strace is attached to a life that waits, so N counts what the life does, and nothing of how Python starts. It counts for
each thread by itself.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import deque
from pathlib import Path

from sona.storage.store import Store
from tests.crash.killed_host import look
from tests.crash.ledger import Ledger
from tests.crash.nursery import Life
from tests.crash.run import Run
from tests.storage.golden.make import contents, unpack

KILLED_IN = (
    "pwrite64",
    "write",
    "fdatasync",
    "fsync",
    "ftruncate",
    "fallocate",
    "unlink",
    "mmap",
    "munmap",
    "openat",
    "flock",
    "close",
)
FAILING = tuple(
    (call, error)
    for call in ("pwrite64", "pread64", "fdatasync", "fsync", "ftruncate", "fallocate", "unlink", "flock")
    for error in ("EIO", "ENOSPC")
)
LIVES = ("fresh", "again", "recover", "migrate")
"""On an empty store, on one that a life has closed, on one that has records in its journal, on one of schema 1."""


def kill_in_system_calls(run: Run) -> None:
    _sweep(run, [(life, call, "signal=SIGKILL") for life in LIVES for call in KILLED_IN])


def fail_system_calls(run: Run) -> None:
    _sweep(run, [(life, call, f"error={error}") for life in LIVES for call, error in FAILING])


def _sweep(run: Run, places: list[tuple[str, str, str]]) -> None:
    """One call further at each place in turn, until a life gets to its end, or all rounds are used up."""
    if (reason := _missing()) is not None:
        run.skipped = reason
        return
    run.rng.shuffle(places)
    turns = deque((place, run.rng.randrange(1, 3)) for place in places)
    for _ in range(run.rounds):
        if not turns:
            return
        place, number = turns.popleft()
        if _one(run, *place, number):
            turns.append((place, number + 1))


def _missing() -> str | None:
    """Why calls can't be tampered with here."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "--inject=getppid:error=EPERM", "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()}"


def _one(run: Run, life: str, call: str, what: str, number: int) -> bool:
    """Whether the call was made that often."""
    folder, ledger = run.new_folder(), Ledger()
    held = unpack(1, folder) if life == "migrate" else None
    _prepare(run, life, folder, ledger)
    words: list[str] = []

    def hear(line: str) -> None:
        words.append(line)
        ledger.says(line)

    work = "migrate" if life == "migrate" else "short"
    born = run.nursery.bear("endure", str(folder), f"{call}{number}", work, tell=hear, held=True)
    happened = _tampered(born, call, f"{what}:when={number}", folder.with_suffix(".strace"))
    if "SIGKILL" in what:
        run.counts.kills += happened
    else:
        run.counts.faults += happened
    for word in (word for word in words if word.startswith("untyped")):
        run.counts.miss(f"{call}, {what}, when={number} in {life}: {word}")
    if held is None:
        look(folder, ledger, run.counts)
    else:
        _compare(run, folder, held)
    run.counts.acknowledged += ledger.acknowledged
    shutil.rmtree(folder)
    return happened


def _prepare(run: Run, life: str, folder: Path, ledger: Ledger) -> None:
    if life == "again":
        run.nursery.bear("short", str(folder), "before", tell=ledger.says).end()
    elif life == "recover":
        run.counts.kills += run.nursery.bear("stuck", str(folder), "before", tell=ledger.says).kill(0.0, once="waiting")


def _compare(run: Run, folder: Path, held: object) -> None:
    with Store.open(folder) as store:
        if contents(store) != held:
            run.counts.lose("what a store of schema 1 held")


def _tampered(life: Life, call: str, how: str, log: Path) -> bool:
    """Let a life begin with strace at it; whether the call came that strace waited for."""
    command = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        str(log),
        f"--trace={call}",
        f"--inject={call}:{how}",
        f"--attach={life.pid}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
        while _tracer_of(life.pid) != tracer.pid:
            time.sleep(0.001)
            if tracer.poll() is not None:
                raise AssertionError(f"{command} ended by itself")
        life.go()
        code = life.end()
    return code < 0 or "(INJECTED)" in log.read_text()


def _tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("TracerPid:")).split()[1])
