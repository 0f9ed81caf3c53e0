"""Requests that should not be answered, and clients that don't behave, in the middle of those that do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import anyio
import httpx

from benchmarks.serving.web import PATH, body

Fault = Callable[[httpx.AsyncClient], Awaitable[bool]]
"""Does one thing that is wrong; whether the server took it as it should."""
QUESTION = "echo blue river stone"


async def _status(client: httpx.AsyncClient, wanted: int, **request: object) -> bool:
    method, url = str(request.pop("method", "POST")), str(request.pop("url", PATH))
    answer = await client.request(method, url, **request)  # type: ignore[arg-type]
    return answer.status_code == wanted and (wanted < 400 or "error" in answer.json())


async def no_token(client: httpx.AsyncClient) -> bool:
    """A wrong one."""
    return await _status(client, 401, json=body(QUESTION), headers={"authorization": "Bearer wrong"})


async def malformed(client: httpx.AsyncClient) -> bool:
    """Half a body of JSON."""
    return await _status(client, 400, content=b'{"model": "sona", "mess', headers={"content-type": "application/json"})


async def oversized(client: httpx.AsyncClient) -> bool:
    """More than the server takes."""
    return await _status(client, 413, json=body("x" * 1_200_000))


async def traversal(client: httpx.AsyncClient) -> bool:
    """The name of a file where a version's belongs."""
    return await _status(client, 404, url="/versions/..%2f..%2fetc%2fpasswd/rollback")


async def no_model(client: httpx.AsyncClient) -> bool:
    """A model's name with a path in it."""
    return await _status(client, 404, json=body(QUESTION) | {"model": "../../adapters/evil"})


async def hang_up(client: httpx.AsyncClient) -> bool:
    """Leave after the first piece of a stream."""
    async with client.stream("POST", PATH, json=body(QUESTION, stream=True)) as answer:
        async for _ in answer.aiter_lines():
            break
    return answer.status_code == 200


async def slow_reader(client: httpx.AsyncClient) -> bool:
    """Read a stream, a line every fifth of a second."""
    lines = 0
    async with client.stream("POST", PATH, json=body(QUESTION, stream=True)) as answer:
        async for line in answer.aiter_lines():
            await anyio.sleep(0.2 if line else 0.0)
            lines += line == "data: [DONE]"
    return lines == 1


FAULTS: tuple[Fault, ...] = (no_token, malformed, oversized, traversal, no_model, hang_up, slow_reader)


class Vandal:
    """Does one wrong thing after the other."""

    def __init__(self, client: httpx.AsyncClient, seed: int, pause_s: float) -> None:
        self._client, self._random, self._pause_s = client, Random(seed), pause_s
        self.done = 0
        self.wrong: list[str] = []
        """What the server did not take as it should."""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            fault = self._random.choice(FAULTS)
            try:
                trouble = "" if await fault(self._client) else "taken otherwise than it should be"
            except httpx.HTTPError as error:
                trouble = f"{type(error).__name__}: {error}"
            self.done += 1
            if trouble:
                self.wrong.append(f"{fault.__doc__} {trouble}")
            await anyio.sleep(self._pause_s)
