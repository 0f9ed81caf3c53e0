"""Answers of an open engine: many at once, as they are written, and to the end that their caller makes."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

import sona
from sona.config import Config, ServeConfig
from sona.errors import ClosedError, InvalidInputError, ModelError, QueueFullError, RequestCancelledError
from sona.serving.local import LocalModel
from tests.engine.loops import BACKENDS, run_on
from tests.engine.small import SMALL, open_small
from tests.serving.noisy_adapter import one, write_noisy_adapter

ASK = "reverse one two three four five six seven"


def model_of(engine: sona.Engine) -> LocalModel:
    return engine._host.model


def settled(model: LocalModel) -> None:
    """Return when nothing is written or waits."""
    deadline = time.monotonic() + 30
    while model._scheduler.counts != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_at_once_take_no_thread_each_and_leave_the_loop_free(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            alone = await engine.generate(ASK)
            before, replies, most, ticks = threading.active_count(), list[sona.types.Reply](), 0, 0

            async def ask() -> None:
                replies.append(await engine.generate(ASK))

            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(ask)
                while len(replies) < 100:
                    await anyio.sleep(0.001)
                    ticks, most = ticks + 1, max(most, threading.active_count())
            assert {reply.token_ids for reply in replies} == {alone.token_ids}
            assert most <= before
            assert ticks >= 5

    run_on(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pieces_are_the_text_and_the_reply_is_the_same(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            whole = await engine.generate(ASK, logprobs=2)
            stream = engine.stream(ASK, logprobs=2)
            with pytest.raises(InvalidInputError, match="to its end"):
                _ = stream.reply
            pieces = [piece async for piece in stream]
            assert "".join(pieces) == whole.text
            assert len(pieces) > 1
            assert all(pieces)
            assert stream.reply == whole
            assert [token.id for token in whole.tokens] == list(whole.token_ids)
            assert all(len(token.top) == 2 for token in whole.tokens)
            assert [piece async for piece in stream] == []

    run_on(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_call_ends_its_request(tmp_path: Path, backend: str) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            model = model_of(engine)
            model._answers.stop_ids = ()  # it would go on for 400 tokens
            with anyio.move_on_after(0.05) as scope:
                await engine.generate(ASK, max_new_tokens=400)
            assert scope.cancelled_caught
            settled(model)
            with anyio.move_on_after(0.05) as scope:
                async for _ in engine.stream(ASK, max_new_tokens=400):
                    pass
            assert scope.cancelled_caught
            settled(model)

    run_on(backend, scenario)


def test_a_stream_that_is_left_ends_its_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            model = model_of(engine)
            model._answers.stop_ids = ()
            async for _ in engine.stream(ASK, max_new_tokens=400):
                break
            gc.collect()
            settled(model)
            async with engine.stream(ASK, max_new_tokens=400) as stream:
                assert await anext(stream)
            settled(model)
            with pytest.raises(RequestCancelledError):
                [piece async for piece in stream]

    run_on("asyncio", scenario)


def test_threads_read_a_stream_with_a_plain_for(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        whole = engine.generate(ASK)
        stream = engine.stream(ASK)
        assert "".join(stream) == whole.text
        assert stream.reply == whole
        with engine.stream(ASK) as left:
            next(left)
        with pytest.raises(RequestCancelledError):
            list(left)


def test_what_is_wrong_with_a_call_is_said_at_the_call(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        for wrong in ({"logprobs": -1}, {"logprobs": 101}, {"temperature": -1.0}, {"max_new_tokens": 0}):
            with pytest.raises(InvalidInputError, match=next(iter(wrong))):
                engine.stream(ASK, **wrong)
        with pytest.raises(InvalidInputError, match="leave room"):
            engine.stream("word " * 600)
    with open_small(tmp_path / "store", model=None) as engine, pytest.raises(ModelError, match="no model"):
        engine.stream(ASK)


def test_a_full_queue_is_an_error_and_closing_another(tmp_path: Path) -> None:
    config = Config(serve=ServeConfig(device="cpu", threads=1, max_rows=1, max_waiting=2))
    with open_small(tmp_path / "store", config=config) as engine:
        model = model_of(engine._engine)
        model._answers.stop_ids = ()
        streams = [engine.stream(ASK, max_new_tokens=480)]
        next(streams[0])
        streams += [engine.stream(ASK), engine.stream(ASK)]
        with pytest.raises(QueueFullError, match="max_waiting"):
            engine.generate(ASK)
    for stream in streams:
        with pytest.raises(ClosedError):
            list(stream)


def test_answers_of_many_threads_during_swaps_are_those_of_the_version_that_they_name(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        model = model_of(engine._engine)
        folders = {f"v{seed}": write_noisy_adapter(model, tmp_path / f"v{seed}", seed) for seed in range(1, 5)}
        questions = [model.encode_prompt(sona.types.to_messages(f"echo {word} river")) for word in ("blue", "red", "a")]

        def ask(number: int) -> tuple[int, sona.types.Reply]:
            place = number % len(questions)
            return place, model.generate(questions[place], max_new_tokens=12)

        with ThreadPoolExecutor(32) as pool:
            answers = [pool.submit(ask, number) for number in range(200)]
            for swap in range(20):
                name = f"v{1 + swap % 4}"
                model.swap(name, one(folders[name]))
                time.sleep(0.01)
            replies = [answer.result(60) for answer in answers]
        assert len({reply.version for _, reply in replies}) > 2
        wanted: dict[tuple[str, int], sona.types.Reply] = {}
        for name in {reply.version for _, reply in replies}:
            model.swap(name, one(folders.get(name)))
            wanted |= {(name, at): model.generate(prompt, max_new_tokens=12) for at, prompt in enumerate(questions)}
        for place, reply in replies:
            assert reply == wanted[reply.version, place]
        assert len(model._adapters) <= 2


@pytest.mark.parametrize("one", ["hi", {"role": "user", "content": "hi"}, sona.Message(role="user", content="hi")])
def test_a_batch_is_a_list_and_no_lone_text(tmp_path: Path, one: Any) -> None:
    with (
        open_small(tmp_path / "store") as engine,
        pytest.raises(InvalidInputError, match=r"conversations: .*a list of texts or conversations is allowed"),
    ):
        engine.generate_batch(one)
