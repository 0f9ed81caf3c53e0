"""Chat and completions: what an OpenAI client gets, and what is recorded of it."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import torch

import sona
from sona.engine import Engine
from sona.memory_spans import METADATA_KEY, question_of, spans_of
from sona.service.answers import SHORT, _characters
from sona.service.hub import Hub
from sona.serving.generation import base_of
from sona.types import Message, ToolCall, to_messages
from tests.service.serving import HELLO, chat, client_of, events_of, hub_with

pytestmark = pytest.mark.anyio


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "sona", "prompt": "echo blue river stone", "temperature": 0, "max_tokens": 6, **more}


async def stored(engine: Engine, response: httpx.Response) -> sona.Trajectory:
    await engine.flush()
    return engine.get(response.headers["x-sona-trajectory"]).trajectory


async def test_an_answer_is_the_engines_and_is_recorded(engine: Engine, client: httpx.AsyncClient) -> None:
    own = await engine.generate(HELLO)
    got = await client.post("/v1/chat/completions", json=chat(user="bot", metadata={"task": "echo"}))
    assert got.status_code == 200
    body = got.json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "blue river stone", "refusal": None}
    assert choice["message"]["content"] == own.text
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert body["usage"]["completion_tokens"] == len(own.token_ids)
    assert body["usage"]["prompt_tokens"] == len(own.prompt_ids)
    assert body["usage"]["total_tokens"] == len(own.token_ids) + len(own.prompt_ids)
    kept = await stored(engine, got)
    assert (kept.response, kept.source, kept.metadata) == (own.text, "bot", {"task": "echo"})
    assert (kept.outcome, kept.version) == ("completed", "v0")
    assert kept.messages[0].content == HELLO[0]["content"]
    assert kept.response_array() is not None
    assert kept.embedding is not None
    np.testing.assert_array_equal(kept.response_array(), own.token_ids)
    np.testing.assert_array_equal(kept.prompt_array(), own.prompt_ids)


async def test_every_answer_names_trajectory_version_and_digest(engine: Engine, client: httpx.AsyncClient) -> None:
    whole = await client.post("/v1/chat/completions", json=chat())
    streamed = await client.post("/v1/chat/completions", json=chat(stream=True))
    last = events_of(streamed.text)[-2]
    for headers, body in ((whole.headers, whole.json()), (streamed.headers, last)):
        assert body["sona"] == {
            "trajectory": headers["x-sona-trajectory"],
            "recorded": True,
            "version": headers["x-sona-version"],
            "digest": headers["x-sona-digest"],
        }
        assert headers["x-sona-version"] == "v0"
        assert headers["x-sona-digest"] == engine.model.fingerprint
        assert body["system_fingerprint"] == f"v0-{engine.model.fingerprint[:16]}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_says_the_same_in_parts(client: httpx.AsyncClient, path: str) -> None:
    body = chat() if "chat" in path else ask()
    wanted = {"logprobs": True, "top_logprobs": 2} if "chat" in path else {"logprobs": 2}
    body |= {"return_token_ids": True, **wanted}
    whole = (await client.post(path, json=body)).json()
    streamed = await client.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events_of(streamed.text)
    assert done == "[DONE]"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [
        whole["choices"][0]["finish_reason"]
    ]
    ids = [token for choice in choices for token in choice.get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    if "chat" in path:
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in choices) == whole["choices"][0]["message"]["content"]
        probs = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
        assert probs == whole["choices"][0]["logprobs"]["content"]
        assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
        offsets = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["text_offset"]]
        assert offsets == whole["choices"][0]["logprobs"]["text_offset"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len(choices) > 3


def reference(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of the base model, from one plain pass."""
    model = base_of(engine.model.trainable_copy())
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)


async def test_log_probabilities_are_those_of_a_slow_pass(engine: Engine, client: httpx.AsyncClient) -> None:
    got = await client.post(
        "/v1/chat/completions",
        json=chat(temperature=1, seed=3, max_tokens=12, logprobs=True, top_logprobs=3, return_token_ids=True),
    )
    body = got.json()
    prompt, answer = body["prompt_token_ids"], body["choices"][0]["token_ids"]
    slow = reference(engine, prompt + answer)
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(answer)
    for place, (token, entry) in enumerate(zip(answer, entries, strict=True)):
        row = slow[len(prompt) - 1 + place]
        assert entry["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3).values.tolist()
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(best, abs=1e-4)


async def test_log_probabilities_spell_the_answer(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/chat/completions", json=chat(logprobs=True))).json()
    (choice,) = body["choices"]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    assert all(entry["top_logprobs"] == [] for entry in entries)
    assert len(entries) == body["usage"]["completion_tokens"] - 1, "the end token is no part of the text"


async def test_a_completions_log_probabilities_hold_the_token_itself(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/completions", json=ask(logprobs=0))).json()
    (choice,) = body["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    columns = (told[name] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"))
    for token, value, top, at in zip(*columns, strict=True):
        assert top == {token: value}
        assert choice["text"][at:].startswith(token)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("river", "blue "),
        (["stone", "ue r"], "bl"),
        ("blue", ""),
        ("never", "blue river stone"),
        (" stone", "blue river"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer(
    engine: Engine, client: httpx.AsyncClient, stop: Any, text: str, stream: bool
) -> None:
    got = await client.post("/v1/chat/completions", json=chat(stop=stop, stream=stream))
    if stream:
        chunks = events_of(got.text)[:-1]
        told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        told, finish = got.json()["choices"][0]["message"]["content"], got.json()["choices"][0]["finish_reason"]
    assert (told, finish) == (text, "stop")
    kept = await stored(engine, got)
    assert (kept.response, kept.outcome) == (text, "completed")
    whole = await engine.generate(HELLO)
    ids = kept.response_array()
    assert ids is not None
    np.testing.assert_array_equal(ids, whole.token_ids[: len(ids)])
    assert (len(ids) == len(whole.token_ids)) == (stop == "never"), "what came after the stop string is not kept"


async def test_limits_end_an_answer_by_length(client: httpx.AsyncClient) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}, {"max_tokens": 9, "max_completion_tokens": 2}):
        body = (await client.post("/v1/chat/completions", json=chat(**limit))).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2


async def test_the_same_seed_gives_the_same_answer(client: httpx.AsyncClient) -> None:
    async def text(seed: int, **more: Any) -> str:
        got = await client.post("/v1/completions", json=ask(temperature=2, max_tokens=20, seed=seed, **more))
        return str(got.json()["choices"][0]["text"])

    assert await text(5) == await text(5)
    assert await text(5) != await text(6)
    assert await text(5, top_k=1) == await text(6, top_k=1)
    assert await text(5, top_p=1e-9) == await text(6, top_p=1e-9)


@pytest.mark.parametrize("given", ["text", "ids", "one of a list", "ids in a list"])
async def test_a_prompt_may_be_a_text_or_ids(engine: Engine, client: httpx.AsyncClient, given: str) -> None:
    text = "echo blue river stone"
    ids = engine.model.encode_text(text).tolist()
    prompt: Any = {"text": text, "ids": ids, "one of a list": [text], "ids in a list": [ids]}[given]
    got = await client.post("/v1/completions", json=ask(prompt=prompt, user="bot"))
    own = engine.model.generate(np.asarray(ids, dtype=np.int32), max_new_tokens=6)
    assert got.json()["choices"][0]["text"] == own.text
    kept = await stored(engine, got)
    assert (kept.messages, kept.response, kept.source) == ((), own.text, "bot")
    np.testing.assert_array_equal(kept.prompt_array(), ids)


async def test_the_header_names_the_source_before_the_user(engine: Engine, client: httpx.AsyncClient) -> None:
    got = await client.post("/v1/chat/completions", json=chat(user="bot"), headers={"x-sona-source": "tenant-7"})
    assert (await stored(engine, got)).source == "tenant-7"
    got = await client.post("/v1/chat/completions", json=chat())
    assert (await stored(engine, got)).source == "default"
    got = await client.post("/v1/chat/completions", json=chat(user="x" * 300))
    assert (got.status_code, got.json()["error"]["param"]) == (400, "user")


async def test_the_version_in_force_can_be_asked_by_name(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/chat/completions", json=chat(model="sona:v0"))).json()["model"] == "sona:v0"
    got = await client.post("/v1/chat/completions", json=chat(model="gpt-6"))
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")


async def test_contents_may_come_in_parts(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "echo blue river stone"}]
    got = await client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": parts}]))
    assert got.json()["choices"][0]["message"]["content"] == "blue river stone"
    picture = [{"type": "image_url", "image_url": {"url": "https://x"}}]
    got = await client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": picture}]))
    assert (got.status_code, got.json()["error"]["param"]) == (400, "messages")
    assert "text only" in got.json()["error"]["message"]


IGNORED: dict[str, Any] = {
    "store": True,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "verbosity": "low",
    "safety_identifier": "a",
    "prompt_cache_key": "a",
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "n": 1,
    "stop": None,
    "stream": False,
    "seed": None,
}


async def test_what_changes_nothing_is_taken_and_ignored(client: httpx.AsyncClient) -> None:
    got = await client.post("/v1/chat/completions", json=chat(**IGNORED))
    assert got.json()["choices"][0]["message"]["content"] == "blue river stone"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": "1"}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages[0].colour"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"metadata": {"k": 1}}, "metadata[...]"),
    ({"colour": "red"}, "colour"),
    ({"model": None}, "model"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_can_not_be_served_is_refused_by_name(
    client: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    got = await client.post("/v1/chat/completions", json=chat(**more))
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [1, "b"]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [2**40]}, 400, "prompt"),
        ({"prompt": [10**30]}, 400, "prompt"),
        ({"prompt": [1.5]}, 400, "prompt"),
        ({"prompt": [999_999]}, 422, "prompt"),
        ({"prompt": [5] * 5000}, 400, "prompt"),
        ({"echo": True}, 400, "echo"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"best_of": 2}, 400, "best_of"),
        ({"logprobs": -1}, 400, "logprobs"),
        ({"messages": HELLO}, 400, "messages"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_completion_that_can_not_be_served_is_refused(
    client: httpx.AsyncClient, more: dict[str, Any], status: int, param: str
) -> None:
    got = await client.post("/v1/completions", json=ask(**more))
    assert (got.status_code, got.json()["error"]["param"]) == (status, param), got.text


async def test_a_prompt_that_is_too_long_is_told_as_openai_does(
    engine: Engine, hub: Hub, client: httpx.AsyncClient
) -> None:
    before = engine.status().store.trajectories
    got = await client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": "blue " * 3000}]))
    assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "511" in got.json()["error"]["message"]
    await engine.flush()
    assert engine.status().store.trajectories == before, "what was refused is no trajectory"


async def test_the_settings_may_allow_shorter_prompts_only(engine: Engine) -> None:
    async with client_of(hub_with(engine, max_prompt_tokens=7)) as client:
        got = await client.post("/v1/chat/completions", json=chat())
        assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert (await client.post("/v1/completions", json=ask(prompt=[7] * 7))).status_code == 200


async def test_a_conversation_that_the_template_refuses_is_422(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise sona.errors.ModelError("the model's chat template refuses this conversation: roles must alternate")

    monkeypatch.setattr(type(engine.model), "encode_prompt", refuse)
    got = await client.post("/v1/chat/completions", json=chat())
    assert (got.status_code, got.json()["error"]["code"]) == (422, "template_refused")


async def test_an_answer_that_could_not_be_recorded_says_so(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._parts.writer, "put", lambda *_: False)  # type: ignore[union-attr]
    got = await client.post("/v1/chat/completions", json=chat())
    assert got.json()["choices"][0]["message"]["content"] == "blue river stone"
    assert got.json()["sona"]["recorded"] is False


async def test_memories_are_read_and_marked_in_the_trajectory(engine: Engine, client: httpx.AsyncClient) -> None:
    plain = (await client.post("/v1/chat/completions", json=chat(return_token_ids=True))).json()
    asked = chat(return_token_ids=True, memories={"note-1": "the river is blue"})
    told = await client.post("/v1/chat/completions", json=asked)
    assert len(told.json()["prompt_token_ids"]) > len(plain["prompt_token_ids"])
    recorded = await stored(engine, told)
    assert [message.role for message in recorded.messages] == ["system", "user"]
    assert [span.key for span in spans_of(recorded)] == ["note-1"]
    assert question_of(recorded) == to_messages(HELLO)


async def test_a_client_says_nothing_of_memories_in_its_metadata(engine: Engine, client: httpx.AsyncClient) -> None:
    made_up = '[{"key": "k", "message": 0, "start": 20, "end": 0}]'
    got = await client.post("/v1/chat/completions", json=chat(metadata={METADATA_KEY: made_up}))
    assert (got.status_code, got.json()["error"]["param"]) == (400, "metadata")
    honest = await client.post("/v1/chat/completions", json=chat(metadata={"memories": "the good old days"}))
    assert honest.status_code == 200
    assert question_of(await stored(engine, honest)) == to_messages(HELLO)


async def test_a_memory_that_stands_everywhere_is_refused(client: httpx.AsyncClient) -> None:
    asked = {"model": "sona", "messages": [{"role": "user", "content": "a" * 9000}], "memories": {"k": "a"}}
    got = await client.post("/v1/chat/completions", json=asked)
    assert (got.status_code, got.json()["error"]["param"]) == (400, "messages")


def test_what_a_template_adds_counts_as_text_to_encode() -> None:
    call = ToolCall(name="n" * 100, arguments="{}", id="i" * 100)
    empty = Message(role="tool")
    assert 100 * _characters(empty) > SHORT, "many messages without a word are no short text"
    assert _characters(Message(role="assistant", tool_calls=(call,))) > 202
    assert _characters(Message(role="tool", name="n" * 50, tool_call_id="i" * 50)) > 100
