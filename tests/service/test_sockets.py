"""Real sockets to answers that come slowly: readers that leave, that are slow, that stay while the server ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import httpx
import msgspec
import pytest
import uvicorn

from sona.engine import Engine
from sona.service.beside import beside
from sona.service.hub import Hub
from sona.service.server import _Server
from tests.service.serving import AUTH, SlowAnswers, app_of, chat, events_of, hub_with, kept, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Running:
    """A hub behind uvicorn, on this loop."""

    def __init__(self, hub: Hub, slow: SlowAnswers, server: _Server, url: str) -> None:
        self.hub, self.slow, self.server, self.url = hub, slow, server, url
        self.ended = anyio.Event()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=AUTH, timeout=30)

    async def serve(self, listener: socket.socket) -> None:
        await self.server.serve(sockets=[listener])
        self.ended.set()


@asynccontextmanager
async def running(engine: Engine, **limits: float) -> AsyncIterator[Running]:
    slow = SlowAnswers(engine)
    hub = hub_with(engine, slow, **limits)
    started = anyio.Event()
    config = uvicorn.Config(app_of(hub), log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(config, started.set)
        run = Running(hub, slow, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        async with beside(lambda: run.serve(listener)):
            await started.wait()
            yield run
            server.should_exit = True
            with anyio.fail_after(30):
                await run.ended.wait()


async def test_who_leaves_in_the_middle_ends_the_answer(engine: Engine) -> None:
    async with running(engine) as run:
        run.slow.go_on(2)
        async with (
            run.client() as client,
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as got,
        ):
            async for line in got.aiter_lines():
                if "word1" in line:
                    break
        told = await kept(engine, got.headers["x-sona-trajectory"])
        assert (told.outcome, told.response) == ("failed", "word0 word1")
        assert run.slow.ended == ["cancelled"]
        assert (run.hub.answering.taken, run.hub.requests.taken) == (0, 0)


async def test_who_leaves_before_a_whole_answer_ends_it_too(engine: Engine) -> None:
    async with running(engine) as run:
        async with run.client() as client, beside(lambda: client.post("/v1/chat/completions", json=chat())):
            await until(lambda: run.slow.begun == 1)
        await until(lambda: run.hub.answering.taken == 0)
        assert run.slow.ended == ["cancelled"]


async def test_a_reader_that_takes_nothing_is_given_up(engine: Engine) -> None:
    async with running(engine, write_timeout_s=0.3) as run:
        run.slow._words = 20_000
        body = msgspec.json.encode(chat(stream=True))
        with socket.create_connection(("127.0.0.1", int(run.url.rsplit(":", 1)[1]))) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {AUTH['authorization']}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            line.sendall(head.encode() + body)
            run.slow.go_on(20_000)
            await until(lambda: bool(run.slow.ended))
            assert run.slow.ended == ["cancelled"]
            await until(lambda: run.hub.answering.taken == 0)


@pytest.mark.parametrize("in_time", [True, False])
async def test_an_answer_under_way_when_the_server_ends(engine: Engine, in_time: bool) -> None:
    async with running(engine) as run:
        run.slow.go_on()
        body = b""
        async with (
            run.client() as client,
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as got,
        ):
            async for piece in got.aiter_bytes():
                body += piece
                if b"word0" in piece:
                    run.hub.stop()
                    run.server.should_exit = True
                    await anyio.sleep(0.3)
                    assert not run.ended.is_set(), "it waits"
                    if in_time:
                        run.slow.go_on(4)
                    else:
                        run.hub.cancel_work()
        last = events_of(body)[-1]
        told = await kept(engine, got.headers["x-sona-trajectory"])
        if in_time:
            assert last == "[DONE]"
            assert told.outcome == "completed"
        else:
            assert last["error"]["code"] == "stopping"
            assert (told.outcome, told.response) == ("failed", "word0")
        with anyio.fail_after(20):
            await run.ended.wait()


async def test_a_body_that_is_too_large_is_refused_before_it_has_come(engine: Engine) -> None:
    async with running(engine, max_body_bytes=2000) as run:

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b" " * 65_536
                await anyio.lowlevel.checkpoint()

        async with run.client() as client:
            try:
                got = await client.post(
                    "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
                )
                assert got.status_code == 413
            except httpx.TransportError:
                pass  # the server has closed the connection while the client was still sending
            assert (await client.get("/versions")).status_code == 200


async def test_a_connection_is_used_again_after_an_error(engine: Engine) -> None:
    async with running(engine) as run, run.client() as client:
        for body in (b"{", b"{}"):
            got = await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            assert got.status_code == 400
        got = await client.post("/v1/chat/completions", content=b"x" * 100_000)
        assert got.status_code == 415
        assert (await client.get("/versions")).status_code == 200
