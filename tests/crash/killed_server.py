"""``kill -9`` of ``sona serve``, of the process that it learns in, or of both, at any moment, under traffic."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx

import sona
from sona.config import config_from
from sona.storage.store import Store
from sona.tiny import AgentWorld
from tests.crash.killed_engine import EngineLedger
from tests.crash.run import Run
from tests.service.process import Server, serving

SETTINGS: dict[str, dict[str, float | str]] = {
    "serve": {"device": "cpu", "threads": 1, "max_new_tokens": 12},
    "train": {"batch_size": 16, "passes": 4, "max_steps": 12, "min_steps": 5},
    "gate": {"min_held_out": 4, "min_retention": 0.5, "bootstrap_samples": 200},
    "cycle": {"min_trajectories": 24, "max_trajectories": 30, "probes": 8, "probe_tokens": 8, "interval_s": 1e6},
}
BATCH = 30
QUESTION = "echo blue river stone"
PATIENCE_S = 60.0


def kill_server(run: Run) -> None:
    folder, ledger, seen = run.new_folder(), EngineLedger(), _Seen()
    store = folder / "store"
    _write_settings(folder / "store.toml")
    _fill(store, run.rounds)
    with serving(store) as server:
        whole_s = _pace(server)
    for number in range(run.rounds):
        with serving(store) as server:
            _look(run, store, seen, server)
            victim = ("both", "server", "learner")[number % 3]
            _live(run, server, ledger, seen, victim, run.rng.uniform(0.0, 1.3 * whole_s))
        ledger.look(store, run.counts, read_only=True)
    with sona.open_sync(store, model="tiny", config=config_from(SETTINGS)) as engine:
        engine.attest()
        engine.flush()
    ledger.look(store, run.counts)
    with Store.open(store, read_only=True) as opened:
        for one in seen.recorded - {row.trajectory.id for row in opened.iterate()}:
            run.counts.lose(f"{one}, of an answer that said it was recorded")
    run.counts.acknowledged += ledger.acknowledged + len(seen.recorded)
    if run.rounds >= 20:  # where it isn't by chance that none did
        assert len(seen.versions) > 1, "of the cycles that might have been killed none came to its end"


class _Seen:
    """What clients have seen."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.newest = 0
        """The number of the newest version that has answered."""
        self.recorded: set[str] = set()
        """Trajectories of answers that said so."""
        self.answers: dict[str, str] = {}
        """By version, the answer to one question, which that version always gives."""

    def take(self, run: Run, version: str, answer: str) -> None:
        self.versions.add(version)
        self.newest = max(self.newest, int(version.removeprefix("v")))
        if self.answers.setdefault(version, answer) != answer:
            run.counts.miss(f"{version} said {self.answers[version]!r}, and after a restart {answer!r}")


def _write_settings(path: Path) -> None:
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in part.items())
        for name, part in SETTINGS.items()
    ]
    path.write_text("\n".join(lines))


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _fill(store: Path, rounds: int) -> None:
    """What cycles learn from."""
    with sona.open_sync(store, config=config_from(SETTINGS)) as engine:
        for number in range(rounds + 1):
            for example in AgentWorld(3).sample("tool_call", BATCH, number):
                engine.record(sona.Trajectory(messages=example.prompt, response=example.response), quality=1.0)


def _pace(server: Server) -> float:
    """How long a cycle takes on this machine, its process's start and all, until what it made is served."""
    with server.client() as client:
        client.post("/learn").raise_for_status()
        began = time.monotonic()
        while client.get("/versions").json()["current"] == "v0":
            assert time.monotonic() - began < PATIENCE_S, server.said
            time.sleep(0.1)
    return time.monotonic() - began


def _look(run: Run, store: Path, seen: _Seen, server: Server) -> None:
    """After a restart: no version that had answered is undone, and the files of the one in force are what it says."""
    with server.client() as client:
        told = client.get("/versions").json()
        if int(told["current"].removeprefix("v")) < seen.newest:
            run.counts.lose(f"v{seen.newest} has answered, and {told['current']} is in force after a restart")
        _ask(run, client, seen)
    with Store.open(store, read_only=True) as opened:
        assert opened.current().id == told["current"]


def _live(run: Run, server: Server, ledger: EngineLedger, seen: _Seen, victim: str, after_s: float) -> None:
    """Traffic and a cycle, until one of them is killed so long after it began."""
    over = threading.Event()
    client = threading.Thread(target=_traffic, args=(run, server, ledger, seen, over))
    with server.client() as office:
        office.post("/learn").raise_for_status()
    client.start()
    time.sleep(after_s)
    learner = server.learner
    victims: dict[str, list[int | None]] = {
        "server": [server.pid],
        "learner": [learner],
        "both": [learner, server.pid],
    }
    for pid in victims[victim]:
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                run.counts.kills += 1
    if victim == "learner":
        _learn_again(run, server)
        server.signal(signal.SIGTERM)
        if server.wait() != 0:
            run.counts.miss(f"a server whose learner was killed did not end in order: {server.said}")
    over.set()
    client.join(PATIENCE_S)
    assert not client.is_alive()


def _learn_again(run: Run, server: Server) -> None:
    """A server whose learner was killed goes on, and starts another."""
    with server.client() as office:
        deadline = time.monotonic() + PATIENCE_S
        while (got := office.post("/learn")).status_code == 409 and time.monotonic() < deadline:
            time.sleep(0.1)  # until the killed one's cycle has failed
        if got.status_code != 200:
            run.counts.miss(f"once its learner was killed the server says {got.status_code} to /learn: {got.text}")


def _traffic(run: Run, server: Server, ledger: EngineLedger, seen: _Seen, over: threading.Event) -> None:
    """Ask, and rate each answer, until the server is gone."""
    with server.client() as client:
        for number in count():
            if over.is_set():
                return
            try:
                trajectory = _ask(run, client, seen)
                told = client.post("/v1/feedback", json={"trajectory_id": trajectory, "quality": number % 2})
                if told.status_code == 200:
                    ledger.durable(trajectory)
            except httpx.TransportError:
                return
            except httpx.HTTPStatusError as error:
                run.counts.miss(f"a client was told {error}")
                return


def _ask(run: Run, client: httpx.Client, seen: _Seen) -> str:
    asked = {"model": "sona", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = client.post("/v1/chat/completions", json=asked)
    if answer.status_code == 503:  # it was told to stop
        raise httpx.TransportError("stopping")
    answer.raise_for_status()
    told = answer.json()
    seen.take(run, answer.headers["x-sona-version"], told["choices"][0]["message"]["content"])
    trajectory = str(answer.headers["x-sona-trajectory"])
    if told["sona"]["recorded"]:
        seen.recorded.add(trajectory)
    return trajectory
