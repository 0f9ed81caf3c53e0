"""What is let in, and how anything that goes wrong is told."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from sona.engine import Engine
from sona.service.app import make_app
from sona.service.bearer import BearerToken
from sona.service.guard import OPEN, PAGE
from sona.service.hub import Hub
from sona.service.routes import ENDPOINTS
from tests.service.serving import AUTH, TOKEN, app_of, chat, client_of, hub_with

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


def check_shape(got: httpx.Response, status: int, code: str) -> None:
    """Every error has OpenAI's shape, and a request id."""
    assert got.status_code == status, got.text
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"]
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert isinstance(error["message"], str)


@pytest.mark.parametrize(
    "shown",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer \xff\xfe",
        f"Bearer {TOKEN.upper()}",
    ],
)
async def test_no_route_but_health_is_open_without_the_token(hub: Hub, shown: str | None) -> None:
    headers = {} if shown is None else {b"authorization": shown.encode("latin-1")}
    paths = [(one.method, one.path.replace("{id}", "v0")) for one in ENDPOINTS]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(hub)), base_url="http://127.0.0.1") as client:
        for method, path in [*paths, ("GET", "/openapi.json"), ("GET", "/nope"), ("DELETE", "/versions")]:
            got = await client.request(method, path, headers=headers)
            if path == OPEN:
                assert got.status_code == 200
                continue
            check_shape(got, 401, "invalid_api_key")
            assert got.headers["www-authenticate"].split()[0] == ("Basic" if path == PAGE else "Bearer")
            assert TOKEN not in got.text


async def test_a_wrong_token_is_told_from_none(hub: Hub) -> None:
    async with client_of(hub, authorization="") as client:
        assert "a bearer token is needed" in (await client.get("/versions")).json()["error"]["message"]
    async with client_of(hub, authorization=f"Bearer {TOKEN}x") as client:
        told = (await client.get("/versions")).json()["error"]["message"]
    assert told.startswith("this is not the server's token")
    assert "service.token" in told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tempature": 1}, "tempature: unknown field; did you mean 'temperature'?"),
        (
            {"messages": [{"role": "king", "content": "x"}]},
            "'king'; one of assistant, developer, system, tool, user",
        ),
        (
            {"messages": [{"role": "user", "content": ""}]},
            "user message: empty; a text with something in it is",
        ),
    ],
)
async def test_what_is_allowed_is_told(client: httpx.AsyncClient, changed: dict[str, Any], said: str) -> None:
    got = await client.post(CHAT, json=chat(**changed))
    assert got.status_code == 400
    assert said in got.json()["error"]["message"]


async def test_the_scheme_may_be_written_in_any_case(hub: Hub) -> None:
    async with client_of(hub, authorization=f"bearer {TOKEN}") as client:
        assert (await client.get("/versions")).status_code == 200


async def test_what_is_not_there_and_what_is_not_allowed(client: httpx.AsyncClient) -> None:
    check_shape(await client.get("/nope"), 404, "not_found")
    check_shape(await client.get("/versions/"), 404, "not_found")
    check_shape(await client.get("/v1/../../etc/passwd"), 404, "not_found")
    check_shape(await client.get("/%2e%2e/%2e%2e/etc/passwd"), 404, "not_found")
    got = await client.get(CHAT)
    check_shape(got, 405, "method_not_allowed")
    assert got.headers["allow"] == "POST"
    check_shape(await client.post("/healthz"), 405, "method_not_allowed")


MALFORMED: list[tuple[bytes, str]] = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"{}}", "missing_required_parameter"),
    (b'{"model": "sona", "messages": [{"role": "user", "content": "a"}]}}', "invalid_json"),
    (b"null", "invalid_type"),
    (b"[]", "invalid_type"),
    (b'"text"', "invalid_type"),
    (b"{'model': 'sona'}", "invalid_json"),
    (b'{"model": NaN}', "invalid_json"),
    (b'\xef\xbb\xbf{"model": "sona"}', "invalid_json"),
    (b'{"model": "\xff\xfe", "messages": []}', "invalid_json"),
    (b'{"model": "sona", "messages": [{"role": "user", "content": "\xc3"}]}', "invalid_json"),
    (b'{"model": "sona", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
    (b'{"model": "sona", "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
    (b'{"model": "sona", "tool_choice": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "invalid_json"),
    (b'{"model": "sona", "messages": [], "temperature": 1e999}', "invalid_type"),
    (b'{"model": "sona", "messages": [], "seed": ' + b"9" * 5000 + b"}", "invalid_type"),
    (b'{"model": "sona", "messages": [], "tool_choice": ' + b"9" * 5000 + b"}", "invalid_type"),
    (b"{}", "missing_required_parameter"),
]


@pytest.mark.parametrize(("body", "code"), MALFORMED, ids=lambda value: str(value)[:40])
async def test_malformed_bodies_are_400(client: httpx.AsyncClient, body: bytes, code: str) -> None:
    got = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    check_shape(got, 400, code)
    assert len(got.text) < 1000


@pytest.mark.parametrize("path", [one.path for one in ENDPOINTS if one.takes])
async def test_every_body_is_read_with_the_same_care(client: httpx.AsyncClient, path: str) -> None:
    check_shape(
        await client.post(path, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json"
    )
    check_shape(
        await client.post(path, content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type"
    )
    check_shape(await client.post(path, content=b"{}"), 415, "unsupported_media_type")


async def test_bodies_that_are_too_large_are_413(engine: Engine) -> None:
    async with client_of(hub_with(engine, max_body_bytes=2000)) as client:
        large = chat(user="x" * 3000)
        check_shape(await client.post(CHAT, json=large), 413, "body_too_large")

        async def in_parts() -> AsyncIterator[bytes]:  # no content-length
            for _ in range(30):
                yield b" " * 100

        kind = {"content-type": "application/json"}
        check_shape(await client.post(CHAT, content=in_parts(), headers=kind), 413, "body_too_large")
        lie = kind | {"content-length": "9" * 4000}
        check_shape(await client.post(CHAT, content=b"{}", headers=lie), 413, "body_too_large")
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_a_body_that_does_not_come_is_given_up(engine: Engine) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep(5)

    async with client_of(hub_with(engine, body_timeout_s=0.1)) as client:
        got = await client.post(CHAT, content=slowly(), headers={"content-type": "application/json"})
    check_shape(got, 408, "timeout")


@pytest.mark.parametrize(
    "name", ["authorization", "content-type", "content-length", "host", "x-sona-source", "x-request-id", "origin"]
)
async def test_headers_given_twice_are_refused(client: httpx.AsyncClient, name: str) -> None:
    value = AUTH.get(name, "1")
    got = await client.get("/versions", headers=[(name, value), (name, value)])
    check_shape(got, 400, "duplicate_header")
    assert TOKEN not in got.text


async def test_requests_have_ids(client: httpx.AsyncClient) -> None:
    got = await client.get("/versions", headers={"x-request-id": "mine-7"})
    assert got.headers["x-request-id"] == "mine-7"
    other = [
        (await client.get("/versions", headers={"x-request-id": bad})).headers["x-request-id"]
        for bad in ("a b", "x" * 200, "")
    ]
    assert all(len(made) == 32 for made in other)
    assert len(set(other)) == 3


async def test_an_error_of_ours_tells_nothing_of_the_inside(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(Engine, "versions", broken)
    with caplog.at_level(logging.ERROR, "sona.service"):
        got = await client.get("/versions", headers={"x-request-id": "find-me"})
    check_shape(got, 500, "internal")
    assert got.json()["error"]["type"] == "server_error"
    assert "secret" not in got.text
    assert "Traceback" not in got.text
    assert "find-me" in caplog.text
    assert "/secret/path" in caplog.text
    assert TOKEN not in caplog.text


async def test_a_client_that_asks_too_often_waits(engine: Engine) -> None:
    async with client_of(hub_with(engine, requests_per_s=1.0)) as client:
        statuses = [(await client.get("/v1/models")).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        got = await client.get("/v1/models")
        check_shape(got, 429, "rate_limit_exceeded")
        assert int(got.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 200


async def test_no_more_requests_at_once_than_are_allowed(engine: Engine) -> None:
    hub = hub_with(engine, max_requests=2)
    async with client_of(hub) as client:
        with hub.requests.one(), hub.requests.one():
            check_shape(await client.get("/versions"), 429, "rate_limit_exceeded")
            assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/versions")).status_code == 200


async def test_without_a_token_web_pages_of_others_are_kept_out(hub: Hub) -> None:
    app = make_app(hub, None)

    async def ask(**headers: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            return await client.get("/versions", headers=headers)

    assert (await ask()).status_code == 200
    for host in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert (await ask(host=host)).status_code == 200
    check_shape(await ask(host="evil.example"), 421, "misdirected_request")
    check_shape(await ask(host=""), 421, "misdirected_request")
    check_shape(await ask(host="[::1"), 421, "misdirected_request")
    check_shape(await ask(origin="http://evil.example"), 403, "forbidden_origin")
    check_shape(await ask(origin="null"), 403, "forbidden_origin")
    assert (await ask(origin="http://127.0.0.1:8000")).status_code == 200


async def test_what_is_no_http_is_refused(hub: Hub) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await app_of(hub)({"type": "websocket", "path": "/events", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_repr_shows_a_token() -> None:
    assert TOKEN not in repr(BearerToken(TOKEN))
    assert TOKEN not in str(vars(BearerToken(TOKEN)).keys())
