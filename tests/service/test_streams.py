"""Clients that hang up, are slow, or come while much is under way; answers that fail."""

from __future__ import annotations

import threading
from contextlib import aclosing
from typing import Any

import anyio
import msgspec
import pytest

from sona.engine import Engine
from sona.errors import QueueFullError
from sona.service.answers import EngineAnswers, Piece, Sampling
from sona.service.hub import Hub
from sona.serving.local import LocalModel
from sona.types import Message, Reply
from tests.service.serving import Call, SlowAnswers, app_of, chat, client_of, events_of, hub_with, kept, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def slow(engine: Engine) -> SlowAnswers:
    return SlowAnswers(engine)


@pytest.fixture
async def hub(engine: Engine, slow: SlowAnswers) -> Hub:
    return Hub(engine, slow)


async def test_words_are_passed_on_as_they_come(engine: Engine, hub: Hub, slow: SlowAnswers) -> None:
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await anyio.sleep(0.05)
        assert call.status == 0, "until the first word it may still become an error"
        for place in range(5):
            slow.go_on()
            await call.until(f"word{place}")
            assert f"word{place + 1}".encode() not in call.body
    assert call.done.is_set()
    assert slow.ended == ["whole"]
    assert (await kept(engine, call.headers["x-sona-trajectory"])).outcome == "completed"


async def test_the_trajectory_is_recorded_before_the_last_chunk_is_sent(
    engine: Engine, hub: Hub, slow: SlowAnswers
) -> None:
    slow.go_on(5)
    recorded: list[bool] = []
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    send = call._send

    async def look(message: Any) -> None:
        if b'"finish_reason":"length"' in message.get("body", b""):
            recorded.append(engine._parts.writer.knows(call.headers["x-sona-trajectory"]))  # type: ignore[union-attr]
            recorded.append(call.headers["x-sona-trajectory"] in engine._parts.store)  # type: ignore[union-attr]
        await send(message)

    call._send = look  # type: ignore[method-assign]
    await call.run()
    assert any(recorded)


@pytest.mark.parametrize("stream", [True, False])
async def test_who_hangs_up_ends_the_answer(engine: Engine, hub: Hub, slow: SlowAnswers, stream: bool) -> None:
    names: list[str] = []
    trajectory = hub.engine.trajectory

    def remember(*args: Any, **options: Any) -> Any:
        opened = trajectory(*args, **options)
        names.append(opened.id)
        return opened

    hub.engine.trajectory = remember  # type: ignore[method-assign]
    try:
        call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=stream))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.run)
            slow.go_on(2)
            if stream:
                await call.until("word1")
            else:
                await until(lambda: slow.told == 2)
            call.hang_up()
            with anyio.fail_after(20):
                await call.done.wait()
    finally:
        del hub.engine.trajectory
    assert slow.ended == ["cancelled"]
    told = await kept(engine, names[0])
    assert (told.outcome, told.response, told.version) == ("failed", "word0 word1", "v0")
    assert hub.answering.taken == 0


async def test_an_answer_that_is_not_begun_is_recorded_as_failed_too(
    engine: Engine, hub: Hub, slow: SlowAnswers
) -> None:
    before = engine.status().store.trajectories
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await until(lambda: slow.begun == 1)
        call.hang_up()
    await engine.flush()
    assert engine.status().store.trajectories == before + 1
    assert call.status == 0


async def test_a_stop_string_ends_the_work(hub: Hub, slow: SlowAnswers) -> None:
    slow.go_on(3)
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True, stop="rd1"))
    with anyio.fail_after(20):
        await call.run()
    assert slow.ended == ["cancelled"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events_of(call.body)[:-1])
    assert text == "word0 wo"
    assert events_of(call.body)[-2]["choices"][0]["finish_reason"] == "stop"


async def test_what_fails_after_the_first_word_is_told_in_the_stream(
    engine: Engine, hub: Hub, slow: SlowAnswers
) -> None:
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        slow.go_on()
        await call.until("word0")
        slow.fails = RuntimeError("/secret/path is broken")
        slow.go_on()
    *_, last = events_of(call.body)
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "internal")
    assert b"secret" not in call.body
    told = await kept(engine, call.headers["x-sona-trajectory"])
    assert (told.outcome, told.response) == ("failed", "word0")


async def test_what_fails_before_it_is_a_plain_error(hub: Hub, slow: SlowAnswers) -> None:
    slow.fails = RuntimeError("/secret/path is broken")
    slow.go_on()
    async with client_of(hub) as client:
        got = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert (got.status_code, got.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in got.text
    assert got.headers["x-request-id"]


async def test_a_reader_that_takes_nothing_is_given_up(engine: Engine, slow: SlowAnswers) -> None:
    hub = hub_with(engine, slow, write_timeout_s=0.2)
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        slow.go_on()
        await call.until("word0")
        call.reads = anyio.Event()
        slow.go_on()
        with anyio.fail_after(20):
            await call.done.wait()
    assert slow.ended == ["cancelled"]
    assert (await kept(engine, call.headers["x-sona-trajectory"])).outcome == "failed"


async def test_more_than_may_be_under_way_are_told_to_come_again(engine: Engine, slow: SlowAnswers) -> None:
    hub = hub_with(engine, slow, max_answers=2)
    calls = [Call(app_of(hub), "POST", "/v1/chat/completions", chat()) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call.run)
        await until(lambda: hub.answering.taken == 2)
        async with client_of(hub) as client:
            for path, body in (
                ("/v1/chat/completions", chat()),
                ("/v1/chat/completions", chat(stream=True)),
                ("/score", {"prompt": [1, 2], "score_ranges": [[1, 2]]}),
            ):
                got = await client.post(path, json=body)
                assert (got.status_code, got.headers["retry-after"]) == (429, "1")
                assert got.json()["error"]["type"] == "rate_limit_error"
            assert (await client.get("/v1/models")).status_code == 200
        slow.go_on(10)
    assert [call.status for call in calls] == [200, 200]
    assert hub.answering.taken == 0


async def test_feedback_waits_for_an_answer_that_is_under_way(engine: Engine, hub: Hub, slow: SlowAnswers) -> None:
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=True))
    given: list[int] = []

    async def rate() -> None:
        async with client_of(hub) as client:
            body = {"trajectory_id": call.headers["x-sona-trajectory"], "quality": 0.5}
            given.append((await client.post("/v1/feedback", json=body)).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        slow.go_on()
        await call.until("word0")
        tasks.start_soon(rate)
        await anyio.sleep(0.1)
        assert given == []
        slow.go_on(4)
    assert given == [200]
    assert engine.get(call.headers["x-sona-trajectory"]).quality == 0.5


async def test_a_server_that_stops_lets_answers_end_and_takes_no_more(hub: Hub, slow: SlowAnswers) -> None:
    app = app_of(hub)
    call = Call(app, "POST", "/v1/chat/completions", chat(stream=True))
    async with anyio.create_task_group() as tasks, client_of(hub, app) as client:
        tasks.start_soon(call.run)
        slow.go_on()
        await call.until("word0")
        hub.stop()
        got = await client.post("/v1/chat/completions", json=chat())
        assert (got.status_code, got.json()["error"]["code"]) == (503, "stopping")
        assert (await client.get("/healthz")).status_code == 503
        slow.go_on(4)
    assert events_of(call.body)[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_server_that_can_wait_no_longer_ends_them(
    engine: Engine, hub: Hub, slow: SlowAnswers, stream: bool
) -> None:
    call = Call(app_of(hub), "POST", "/v1/chat/completions", chat(stream=stream))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        slow.go_on()
        await (call.until("word0") if stream else until(lambda: slow.told == 1))
        hub.stop()
        hub.cancel_work()
        with anyio.fail_after(20):
            await call.done.wait()
    assert slow.ended == ["cancelled"]
    error = events_of(call.body)[-1]["error"] if stream else msgspec.json.decode(call.body)["error"]
    assert error["code"] == "stopping"
    assert call.status == (200 if stream else 503)


async def test_pieces_come_while_the_answer_is_written(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is held after its third token: what came before it is there already."""
    go, begin = threading.Event(), LocalModel.stream

    def held(model: LocalModel, *args: Any, on_token: Any, **options: Any) -> Any:
        seen: list[object] = []

        def pass_on(token: Any) -> None:
            on_token(token)
            seen.append(token)
            if len(seen) == 3:
                assert go.wait(20)

        return begin(model, *args, on_token=pass_on, **options)

    monkeypatch.setattr(LocalModel, "stream", held)
    prompt = await EngineAnswers(engine).encode([Message(role="user", content="echo blue river stone")])
    sampling = Sampling(max_new_tokens=8, temperature=0.0, top_p=1.0, top_k=0, seed=None)
    pieces: list[Piece | Reply] = []
    with anyio.fail_after(30):
        async with aclosing(EngineAnswers(engine).answer(prompt, sampling, 2)) as coming:
            async for piece in coming:
                pieces.append(piece)
                if len(pieces) == 3:
                    assert not go.is_set()
                    go.set()
    reply = pieces[-1]
    assert isinstance(reply, Reply)
    told = [piece for piece in pieces if isinstance(piece, Piece)]
    assert "".join(piece.text for piece in told) == reply.text
    assert tuple(token for piece in told for token in piece.token_ids) == reply.token_ids
    assert {piece.version for piece in told} == {reply.version}
    assert all(len(piece.log_probs[0].top) == 2 for piece in told if piece.token_ids)


async def test_a_full_queue_is_told_as_busy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise QueueFullError("1,024 requests wait; try again")

    monkeypatch.setattr(LocalModel, "stream", full)
    async with client_of(Hub(engine, EngineAnswers(engine))) as client:
        got = await client.post("/v1/chat/completions", json=chat())
    assert (got.status_code, got.json()["error"]["code"]) == (503, "busy")
