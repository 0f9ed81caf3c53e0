"""An engine that keeps a server elsewhere up to date: what a host sees of it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
from msgspec.structs import replace

import sona
from sona.checks import Float32
from sona.config import Config, RemoteConfig, config_from
from sona.errors import ClosedError, ConfigError, ModelError
from sona.events import RemotePublished
from sona.service.metrics import EngineCollector
from sona.serving.remote.state import InForce
from tests.engine.loops import BACKENDS, run_on
from tests.engine.small import SMALL, WORLD, record_task
from tests.remote.elsewhere import Elsewhere, Weights
from tests.remote.test_publishing import QUICK, until
from tests.test_cli import command

TASK = WORLD.sample("tool_call", 1, 99, "held_out")[0].prompt


def settings(elsewhere: Elsewhere, **more: Any) -> Config:
    chosen = {**QUICK, **more}
    return replace(SMALL, remote=RemoteConfig(kind=elsewhere.kind, url=elsewhere.url, **chosen))  # type: ignore[arg-type]


def test_what_a_cycle_learns_answers_elsewhere_and_is_taken_back(tmp_path: Path, weights: Weights) -> None:
    with Elsewhere("vllm", weights) as elsewhere:
        with sona.open_sync(tmp_path / "store", model="tiny", config=settings(elsewhere)) as engine:
            events = engine.events(timeout_s=20.0)
            until(lambda: status_of(engine).version == "v0")
            assert engine.remote_name(TASK) is None
            record_task(engine, 60, seed=1)
            assert engine.learn().version == "v1"
            until(lambda: status_of(engine).version == "v1")
            name = engine.remote_name(TASK)
            assert name in elsewhere.loaded, "the router sends the task that was learned to its adapter"
            assert engine.remote_name("how are you?") in (None, name)
            named = next(event for event in events if isinstance(event, RemotePublished) and event.version == "v1")
            assert name in named.names.values()
            engine.roll_back()
            until(lambda: status_of(engine).version == "v0" and not elsewhere.loaded)
            assert engine.remote_name(TASK) is None
            engine.roll_back("v1")
            until(lambda: status_of(engine).version == "v1")
        with sona.open_sync(tmp_path / "store", config=settings(elsewhere)) as engine:  # without a model
            until(lambda: status_of(engine).version == "v1")
            with pytest.raises(ModelError, match="has a router, which reads what the base model makes of a prompt"):
                engine.remote_name(TASK)


def status_of(engine: sona.SyncEngine) -> Any:
    return engine.status().remote


def test_a_host_without_a_model_has_its_one_adapter_named(published: Path, tmp_path: Path, weights: Weights) -> None:
    shutil.copytree(published, tmp_path / "store")
    with Elsewhere("sglang", weights) as elsewhere:
        with sona.open_sync(tmp_path / "store", config=settings(elsewhere)) as engine:
            until(lambda: status_of(engine).version == "v4")
            engine.roll_back("v1")
            until(lambda: status_of(engine).version == "v1")
            assert engine.remote_name("anything") == status_of(engine).names["s1"]
        with pytest.raises(ClosedError):
            engine.remote_name("anything")


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_are_told_on_any_loop(backend: str, published: Path, tmp_path: Path, weights: Weights) -> None:
    shutil.copytree(published, tmp_path / "store")

    async def scenario() -> None:
        async with sona.open(tmp_path / "store", config=settings(elsewhere)) as engine:
            await anyio.to_thread.run_sync(until, lambda: engine.status().remote.version == "v4")  # type: ignore[union-attr]
            assert str(await engine.remote_name("anything")).startswith("sona-v4-s1-")

    with Elsewhere("vllm", weights) as elsewhere:
        run_on(backend, scenario)


def test_sona_status_tells_how_it_goes(published: Path, tmp_path: Path, weights: Weights) -> None:
    shutil.copytree(published, tmp_path / "store")
    with Elsewhere("vllm", weights) as elsewhere:
        with sona.open_sync(tmp_path / "store", config=settings(elsewhere, retry_s=60.0)) as engine:
            until(lambda: status_of(engine).version == "v4")
            elsewhere.stale = True
            engine.roll_back("v1")
            until(lambda: status_of(engine).trouble)
            told = status_of(engine)
            families = {family.name: family.samples for family in EngineCollector(engine._engine).collect()}
            assert families["sona_remote_in_force"][0].value == 0
            assert families["sona_remote_publications"][0].value == 1
            assert families["sona_remote_failures"][0].value == 1
        said = command("status", "--store", tmp_path / "store").stdout
        assert f"v4 is in force on the vllm server at {elsewhere.url} since " in said
        assert "v1 is not in force there: v1: its adapter 's1' does not answer on the server" in said
        kept = json.loads(command("status", "--store", tmp_path / "store", "--json").stdout)["remote"]
        assert (kept["version"], kept["wanted"], kept["names"]) == ("v4", "v1", told.names)


class Sends:
    """A router that sends each prompt where its first feature says."""

    def route(self, features: Float32) -> list[str | None]:
        return [{0.0: None, 1.0: "s1", 2.0: "s2"}[float(row[0])] for row in features]


def test_a_router_picks_among_the_names_of_its_own_version() -> None:
    in_force = InForce("v1", "", {"s1": "sona-v1-s1-0"}, Sends())

    def name_of(first: float) -> str | None:
        return in_force.name_for(lambda: np.asarray([[first]], np.float32))

    assert (name_of(0.0), name_of(1.0)) == (None, "sona-v1-s1-0")
    with pytest.raises(ModelError, match="names 's2', which is none of its 1 adapters"):
        name_of(2.0)


def test_a_server_that_is_away_stops_no_host(tmp_path: Path, weights: Weights) -> None:
    elsewhere = Elsewhere("vllm", weights)
    elsewhere.stop()  # before it ever was there
    began_s = time.monotonic()
    with sona.open_sync(tmp_path / "store", config=settings(elsewhere, grace_s=60.0)) as engine:
        record_task(engine, 3, seed=1)
        engine.flush()
        assert engine.remote_name("anything") is None
    assert time.monotonic() - began_s < 5


def test_without_a_server_there_is_no_name_to_tell(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", config=SMALL) as engine:
        assert engine.status().remote is None
        with pytest.raises(ConfigError, match=r"remote\.kind is 'off'"):
            engine.remote_name("anything")
    assert not (tmp_path / "store" / "remote").exists()


@pytest.mark.parametrize(
    ("remote", "why"),
    [
        ({"kind": "vllm"}, "without a url"),
        ({"kind": "tgi", "url": "http://a"}, "one of off, vllm, sglang is allowed"),
        ({"token_env": "A", "token_file": "b"}, "one of them is allowed"),
        ({"tolerance_nats": 0}, "tolerance_nats"),
        ({"urls": "x"}, "url"),
    ],
)
def test_settings_that_can_t_be_meant_are_refused(remote: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config_from({"remote": remote})


@pytest.mark.parametrize(
    ("remote", "why"),
    [({"url": "localhost:8000"}, "http://host:port"), ({"url": "http://a", "token_env": "NOT_SET"}, "holds no token")],
)
def test_a_server_that_can_t_be_asked_is_told_when_the_engine_opens(
    remote: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(ConfigError, match=why),
        sona.open_sync(tmp_path / "store", config={"remote": {"kind": "vllm", **remote}}),
    ):
        pass
    with sona.open_sync(tmp_path / "store", config=SMALL):
        pass  # nothing was left half open
