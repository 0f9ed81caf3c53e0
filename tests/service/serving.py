"""A service without a socket: the application on an engine, its client, and answers that come as a test wants them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import msgspec
from starlette.types import ASGIApp

from sona.checks import Int32
from sona.engine import Engine
from sona.errors import UnknownIdError
from sona.service.answers import Answers, EngineAnswers, Piece, Sampling
from sona.service.app import make_app
from sona.service.bearer import BearerToken
from sona.service.hub import Hub
from sona.serving.scoring import TokenScores
from sona.types import Message, Reply, Trajectory

TOKEN = "a-token-of-a-test"
AUTH = {"authorization": f"Bearer {TOKEN}"}
HELLO: Any = [{"role": "user", "content": "echo blue river stone"}]


def chat(**more: Any) -> dict[str, Any]:
    """A request that always has the same answer."""
    return {"model": "sona", "messages": HELLO, "temperature": 0, **more}


def hub_with(engine: Engine, answers: Answers | None = None, **limits: float) -> Hub:
    """A hub with other limits than the settings'."""
    before = engine.config
    service = msgspec.structs.replace(before.service, **limits)
    engine.config = msgspec.structs.replace(before, service=service)
    try:
        return Hub(engine, answers)
    finally:
        engine.config = before


def app_of(hub: Hub) -> ASGIApp:
    return make_app(hub, BearerToken(TOKEN))


@asynccontextmanager
async def client_of(hub: Hub, app: ASGIApp | None = None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that knows the token."""
    transport = httpx.ASGITransport(app or app_of(hub))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:8000", headers=AUTH | headers, timeout=30
    ) as client:
        yield client


class Call:
    """One request whose response is read as it comes, and whose client can hang up or be slow."""

    def __init__(self, app: ASGIApp, method: str, path: str, body: object = None) -> None:
        self._app = app
        data = b"" if body is None else msgspec.json.encode(body)
        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1:8000")]
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [*headers, *((name.encode(), value.encode()) for name, value in AUTH.items())],
            "client": ("127.0.0.1", 1),
        }
        self._incoming = [{"type": "http.request", "body": data, "more_body": False}]
        self._gone = anyio.Event()
        self.reads = anyio.Event()
        """Unset: the client takes nothing."""
        self.reads.set()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.came = anyio.Event()
        """Set, and made anew, with each piece of the body."""
        self.done = anyio.Event()

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)
        self.done.set()

    def hang_up(self) -> None:
        self._gone.set()

    async def until(self, text: str) -> None:
        """Wait until the response holds ``text``."""
        with anyio.fail_after(20):
            while text.encode() not in self.body:
                await self.came.wait()

    async def _receive(self) -> Any:
        if self._incoming:
            return self._incoming.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
        came, self.came = self.came, anyio.Event()
        came.set()


class SlowAnswers:
    """Answers "one two three ...", a word whenever :meth:`go_on` is called; the rest is the engine's."""

    def __init__(self, engine: Engine, words: int = 5) -> None:
        self._engine, self._words = engine, words
        self._real: Answers = EngineAnswers(engine)
        self._go = anyio.Semaphore(0)
        self.begun = self.told = 0
        """Answers that were begun, and words that were passed on."""
        self.ended: list[str] = []
        """How each answer ended: ``whole`` or ``cancelled``."""
        self.fails: Exception | None = None
        """Raised after the words that were let go."""

    def go_on(self, words: int = 1) -> None:
        for _ in range(words):
            self._go.release()

    async def encode(self, prompt: Sequence[Message] | str) -> Int32:
        return await self._real.encode(prompt)

    async def answer(
        self, prompt: Int32, sampling: Sampling, top_logprobs: int | None, question: Int32 | None = None
    ) -> AsyncGenerator[Piece | Reply, None]:
        version = self._engine.model.version
        self.begun += 1
        try:
            for place in range(self._words):
                await self._go.acquire()
                if self.fails is not None:
                    raise self.fails
                yield Piece(version=version, token_ids=(10 + place % 1000,), text=f"{' ' if place else ''}word{place}")
                self.told += 1
            text = " ".join(f"word{place}" for place in range(self._words))
            ids = tuple(10 + place % 1000 for place in range(self._words))
            yield Reply(
                text=text, token_ids=ids, prompt_ids=tuple(prompt.tolist()), version=version, finish_reason="length"
            )
            self.ended.append("whole")
        except BaseException:
            self.ended.append("cancelled")
            raise

    async def score(self, ids: Int32, places: Sequence[int], prompt_tokens: int, top: int = 0) -> TokenScores:
        return await self._real.score(ids, places, prompt_tokens, top)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells of."""
    with anyio.fail_after(40):
        while not condition():  # noqa: ASYNC110 - of counters and lists
            await anyio.sleep(0.01)


async def kept(engine: Engine, trajectory: str) -> Trajectory:
    """A trajectory, once it is recorded."""
    with anyio.fail_after(20):
        while True:
            await engine.flush()
            try:
                return engine.get(trajectory).trajectory
            except UnknownIdError:
                await anyio.sleep(0.01)


def events_of(body: str | bytes) -> list[Any]:
    """The data of a stream's events; ``[DONE]`` is a text."""
    text = body.decode() if isinstance(body, bytes) else body
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else msgspec.json.decode(line) for line in lines]
