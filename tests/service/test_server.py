"""The server as a process: the real client of OpenAI, signals, kills, and addresses that are none."""

from __future__ import annotations

import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import sona
from sona.cli_serve import serve
from sona.errors import ConfigError, ExtraMissingError, SonaError
from sona.service.bearer import FILE
from tests.engine.small import SMALL as SMALL_CONFIG
from tests.engine.small import record_task
from tests.service.process import SMALL, Server, launch, serving
from tests.service.serving import HELLO, chat, events_of

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "store") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0) as opened:
        yield opened


def test_the_openai_client_chats(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="sona", messages=HELLO, temperature=0)
    assert got.choices[0].message.content == "blue river stone"
    assert got.choices[0].finish_reason == "stop"
    assert got.usage is not None
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.system_fingerprint is not None
    assert got.system_fingerprint.startswith("v0-")
    assert got.model_extra is not None
    assert got.model_extra["sona"]["recorded"] is True
    raw = client.chat.completions.with_raw_response.create(model="sona", messages=HELLO)
    assert raw.headers["x-sona-trajectory"] == raw.parse().model_extra["sona"]["trajectory"]  # type: ignore[index]


def test_the_openai_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sona",
        messages=HELLO,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "blue river stone"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(model="sona", messages=HELLO, temperature=0) as events:
        assert events.get_final_completion().choices[0].message.content == "blue river stone"


def test_the_openai_client_gets_log_probabilities(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="sona",
        messages=HELLO,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert got.choices[0].logprobs is not None
    entries = got.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in entries) == "blue river stone"
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries), "greedy takes the likeliest"
    completion = client.completions.create(model="sona", prompt="echo blue", max_tokens=3, temperature=0, logprobs=2)
    assert completion.choices[0].logprobs is not None
    assert len(completion.choices[0].logprobs.tokens or []) == 3


def test_the_openai_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sona", "sona:v0"]
    assert client.models.retrieve("sona").object == "model"


def test_the_openai_client_knows_our_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="sona", messages=HELLO, n=2)
    assert (refused.value.param, refused.value.code) == ("n", "unsupported_value")
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-6", messages=HELLO)
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    told: list[tuple[int, str]] = []

    def ask(number: int) -> None:
        with server.client() as client:
            for turn in range(3):
                body = chat(stream=(number + turn) % 2 == 0, user=f"client-{number}")
                got = client.post("/v1/chat/completions", json=body)
                told.append((got.status_code, got.headers["x-sona-trajectory"]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in told] == [200] * 24
    assert len({name for _, name in told}) == 24


def test_the_token_is_in_the_stores_folder_for_its_owner_alone(server: Server) -> None:
    assert stat.S_IMODE((server.store / FILE).stat().st_mode) == 0o600
    assert server.token not in server.said
    assert str(server.store / FILE) in server.said


def test_a_raw_request_that_is_none_ends_with_400(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for raw in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(raw)
            assert line.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    store = tmp_path / "store"
    with serving(store) as server, server.client() as client:
        names = [client.post("/v1/chat/completions", json=chat()).headers["x-sona-trajectory"] for _ in range(3)]
        with client.stream("GET", "/events") as feed:
            told = feed.iter_text()
            assert next(told).startswith(": events")
            began = time.monotonic()
            server.signal(number)
            assert "".join(told) == "", "the feed ends, and not by a broken connection"
        assert server.wait() == 0, server.said
        assert time.monotonic() - began < 20
    assert "Traceback" not in server.said
    with sona.open_sync(store) as engine:
        assert [engine.get(name).trajectory.outcome for name in names] == ["completed"] * 3
        assert engine.status().recovered == 0, "all of it was flushed"


@pytest.mark.slow
def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    store = tmp_path / "store"
    answered: list[str] = []
    with serving(store) as server:

        def ask() -> None:
            try:
                with server.client() as client:
                    while True:
                        stream = len(answered) % 2 == 0
                        got = client.post("/v1/chat/completions", json=chat(stream=stream, user="bot"))
                        if not stream or events_of(got.text)[-1] == "[DONE]":
                            answered.append(got.headers["x-sona-trajectory"])
            except httpx.HTTPError:
                pass

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(answered) < 25:
            time.sleep(0.01)
        server.signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert server.wait() == -signal.SIGKILL
    with sona.open_sync(store) as engine:
        engine.flush()
        for name in answered:
            kept = engine.get(name).trajectory
            assert (kept.outcome, kept.response, kept.source) == ("completed", "blue river stone", "bot")


@pytest.mark.slow
def test_a_restart_serves_the_same_version_with_the_same_token(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with sona.open_sync(store, model="tiny", config=SMALL_CONFIG) as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().version == "v1"
        digest = engine.version.digest
    seen = []
    for _ in range(2):
        with serving(store) as server, server.client() as client:
            got = client.post("/v1/chat/completions", json=chat())
            seen.append(
                (server.token, got.headers["x-sona-version"], got.headers["x-sona-digest"], got.json()["choices"])
            )
            server.signal(signal.SIGKILL)
            server.wait()
    assert seen[0] == seen[1]
    assert seen[0][1:3] == ("v1", digest)


@pytest.mark.slow
def test_what_would_let_anyone_in_is_refused(tmp_path: Path) -> None:
    process = launch(tmp_path / "store", "--host", "0.0.0.0", "--no-token")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert said.startswith("sona: --host 0.0.0.0 --no-token would let in anyone who reaches this machine")
    assert "--anyone" in said
    assert not (tmp_path / "store").exists()


def test_settings_that_can_not_be_are_told_at_once(tmp_path: Path, server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"port": port}, "in use; choose another --port"),
        ({"port": 70_000}, "--port 70000"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid"),
        ({"host": "::", "no_token": True}, "anyone"),
        ({"token_file": Path("x"), "no_token": True}, "one of them"),
        ({"token_file": tmp_path / "none"}, "can't be read"),
        ({"store": server.store, "port": 0}, "another process"),
        ({"model": "no/such/folder/or/model", "port": 0}, "no/such/folder"),
    ]
    usual: dict[str, Any] = {"store": tmp_path / "store", "model": "tiny"}
    for words, why in refused:
        with pytest.raises(SonaError, match=re.escape(why)):
            serve(**(usual | words))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("is_named", [True, False])
def test_a_reviewer_s_token_that_is_the_server_s_is_refused_before_the_model_is_loaded(
    tmp_path: Path, is_named: bool
) -> None:
    own, reviewer, settings = tmp_path / "store" / FILE, tmp_path / "reviewer", tmp_path / "sona.toml"
    own.parent.mkdir()
    for file in (own, reviewer):
        file.write_text("one-token-for-all-of-them")
        file.chmod(0o600)
    settings.write_text(f'[service]\nreviewer_token_file = "{reviewer}"\n')
    with pytest.raises(ConfigError, match="reviewer_token_file: it holds the server's own token"):
        serve(
            store=tmp_path / ("new" if is_named else "store"),
            model="no/such/folder/or/model",
            port=0,
            token_file=own if is_named else None,
            config=settings,
        )


@pytest.mark.slow
def test_a_server_without_a_token_may_be_meant(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--no-token", "--anyone", "--host", "0.0.0.0") as server:
        assert "no token is asked for" in server.said
        port = server.url.rsplit(":", 1)[1]
        got = httpx.get(f"http://127.0.0.1:{port}/versions", headers={"host": "anything.example"})
        assert got.json()["current"] == "v0"
        assert not (tmp_path / "store" / FILE).exists()


@pytest.mark.slow
def test_a_token_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("my-own-token-for-this\n")
    with serving(tmp_path / "store", "--token-file", tmp_path / "token") as server:
        headers = {"authorization": "Bearer my-own-token-for-this"}
        assert httpx.get(f"{server.url}/versions", headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/versions").status_code == 401
        assert not (tmp_path / "store" / FILE).exists()


def test_the_reviewer_may_have_a_token_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "reviewer").write_text("the-reviewers-own-token\n")
    own = f'[service]\nreviewer_token_file = "{tmp_path / "reviewer"}"\n'
    (tmp_path / "store.toml").write_text(SMALL + own)
    with serving(tmp_path / "store") as server, server.client() as client:
        assert client.get("/candidates").status_code == 200
        body = {"ids": [], "state": "approved"}
        assert client.post("/candidates/change", json=body).status_code == 403
        headers = {"authorization": "Bearer the-reviewers-own-token"}
        assert client.post("/candidates/change", json=body, headers=headers).status_code == 200
        assert "the-reviewers-own-token" not in server.said


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from sona import service

    monkeypatch.setattr(service, "PACKAGES", ("uvicorn", "no_such_package"))
    with pytest.raises(ExtraMissingError, match=r"no_such_package: not installed; pip install 'sona\[server\]'"):
        service.check_extra()


LEARNING = """
seed = 1
[serve]
device = "cpu"
threads = 1
[train]
batch_size = 16
passes = 4
max_steps = 30
min_steps = 5
[gate]
min_held_out = 4
min_retention = 0.5
bootstrap_samples = 200
[cycle]
interval_s = 2
min_trajectories = 24
probes = 16
probe_tokens = 16
"""


@pytest.mark.slow
def test_it_learns_while_it_serves_and_refuses_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with sona.open_sync(store, model="tiny", config=SMALL_CONFIG) as engine:
        record_task(engine, 60, seed=1)
    store.with_name("store.toml").write_text(LEARNING)
    versions: list[str] = []
    with serving(store, "--learn") as server, server.client() as client:
        deadline = time.monotonic() + 90
        while "v1" not in versions:
            assert time.monotonic() < deadline, server.said
            got = client.post("/v1/chat/completions", json=chat())
            assert got.status_code == 200, got.text
            versions.append(got.headers["x-sona-version"])
            time.sleep(0.02)  # the learner has a lower priority, and is to come to its turn
        assert client.get("/versions").json()["current"] == "v1"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.said
    assert versions[0] == "v0"
    assert versions == sorted(versions)


@pytest.mark.slow
def test_a_signal_while_the_model_loads_ends_it_too(tmp_path: Path) -> None:
    process = launch(tmp_path / "store", "--port", 0)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM), said  # the second: before Python had come to us
    assert "Traceback" not in said
