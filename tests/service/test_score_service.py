"""A scorer that asks a real service over a socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread
import numpy as np
import pytest
import uvicorn

from sona.attribution.known import Known
from sona.attribution.memories import score_memories
from sona.attribution.score_service import ScoreService
from sona.errors import InvalidInputError, ScoringError, UnknownTokenError
from sona.http_client import Secret
from sona.service.beside import beside
from sona.service.hub import Hub
from sona.service.server import _Server
from tests.attribution.servers import MAX_TOKENS, codec, own
from tests.attribution.test_remote_scorers import CONTEXT
from tests.service.serving import TOKEN, app_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ScorerOf = Callable[..., ScoreService]


@pytest.fixture
async def scorer_of(hub: Hub) -> AsyncIterator[ScorerOf]:
    started, ended = anyio.Event(), anyio.Event()
    config = uvicorn.Config(app_of(hub), log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(config, started.set)

        async def serve() -> None:
            await server.serve(sockets=[listener])
            ended.set()

        def make(token: str = TOKEN, max_tokens: int = MAX_TOKENS) -> ScoreService:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            return ScoreService(url, Known.of(codec(), own()), secret=Secret(token), max_tokens=max_tokens)

        async with beside(serve):
            await started.wait()
            yield make
            server.should_exit = True
            with anyio.fail_after(30):
                await ended.wait()


async def test_matrix_by_the_service_is_that_of_the_model_in_this_process(scorer_of: ScorerOf) -> None:
    scorer = scorer_of()
    found = await anyio.to_thread.run_sync(lambda: score_memories(CONTEXT, codec(), scorer, strip_all=True))
    wanted = score_memories(CONTEXT, codec(), own(), strip_all=True)
    assert not found.failed
    assert np.allclose(found.signed, wanted.signed, atol=1e-3)
    assert found.strip_all is not None
    assert wanted.strip_all is not None
    assert np.allclose(found.strip_all.nats, wanted.strip_all.nats, atol=1e-3)
    assert scorer.noise_floor < 0.01


async def test_service_that_does_not_know_the_token_is_told_without_it(scorer_of: ScorerOf) -> None:
    with pytest.raises(ScoringError, match="401") as refused:
        await anyio.to_thread.run_sync(scorer_of("another-token").probe)
    assert "another-token" not in str(refused.value)


async def test_passage_that_the_service_finds_too_long_is_told_as_that(scorer_of: ScorerOf) -> None:
    scorer = scorer_of(max_tokens=600)
    ids = np.full(550, 40, dtype=np.int32)
    with pytest.raises(InvalidInputError, match="at most 512"):
        await anyio.to_thread.run_sync(lambda: scorer.score(ids, [(540, 550)]))


async def test_ids_that_the_service_does_not_know_are_a_mismatch(scorer_of: ScorerOf) -> None:
    ids = np.array([1, 2, 60_000, 4], dtype=np.int32)
    with pytest.raises(UnknownTokenError, match="tokenizer mismatch"):
        await anyio.to_thread.run_sync(lambda: scorer_of().score(ids, [(1, 4)]))
