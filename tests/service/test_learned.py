"""A store that has learned: versions by name and digest, the way back, and scores with the adapter in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import numpy as np
import pytest
import torch
from peft import PeftModel

import sona
from sona.config import Config, LearnerConfig
from sona.engine import Engine
from sona.events import Swapped
from sona.service.hub import Hub
from sona.service.server import served
from sona.serving.generation import base_of
from sona.serving.local import LocalModel
from tests.engine.small import WORLD, open_small, record_task
from tests.service.serving import chat, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_small(tmp_path_factory.mktemp("learned") / "store") as opened:
        record_task(opened, 60, seed=1)
        assert opened.learn().version == "v1"
        yield opened._engine


@pytest.fixture(autouse=True)
def v1_in_force(engine: Engine) -> None:
    if engine.version.id != "v1":
        engine.roll_back("v1")


def slow_log_probs(model: torch.nn.Module, ids: list[int]) -> list[float]:
    """log p of each token but the first, each from a pass of its own over what stands before it."""
    found = []
    with torch.no_grad():
        for place in range(1, len(ids)):
            logits = base_of(model)(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            found.append(float(torch.log_softmax(logits, dim=-1)[ids[place]]))
    return found


def adapted(engine: Engine, adapter: str | None) -> torch.nn.Module:
    """The model as PEFT itself loads the adapter that the service says it asked."""
    model = engine.model.trainable_copy()
    if adapter is None:
        return model
    (folder,) = (engine.path / "versions" / "v1").rglob("adapter")
    return PeftModel.from_pretrained(model, str(folder))


@pytest.mark.filterwarnings("ignore")  # PEFT's own, of a model that it has seen before
async def test_scores_are_those_of_a_slow_pass_with_the_adapter_in_force(
    engine: Engine, client: httpx.AsyncClient
) -> None:
    example = WORLD.sample("tool_call", 1, 99)[0]
    prompt = engine.model.encode_prompt(sona.types.to_messages(example.prompt)).tolist()
    answer = engine.model.encode_response(example.response).tolist()
    ids = prompt + answer
    ranges = [[len(prompt), len(ids)], [len(prompt) + 1, len(prompt) + 3], [len(ids) - 1, len(ids)]]
    got = await client.post("/score", json={"model": "sona", "prompt": ids, "score_ranges": ranges, "logprobs": 1})
    told = got.json()
    assert (told["version"], told["digest"]) == ("v1", engine.version.digest)
    assert got.headers["x-sona-version"] == "v1"
    assert told["adapter"] is not None, "the lesson is this query's"
    slow = slow_log_probs(adapted(engine, told["adapter"]), ids)
    for (first, end), score in zip(ranges, told["scores"], strict=True):
        assert score["tokens"] == end - first
        assert score["total_logprob"] == pytest.approx(sum(slow[first - 1 : end - 1]), abs=1e-4)
    engine.roll_back("v0")
    base = (await client.post("/score", json={"prompt": ids, "score_ranges": ranges})).json()
    assert (base["version"], base["adapter"]) == ("v0", None)
    plain = slow_log_probs(adapted(engine, None), ids)
    assert base["scores"][0]["total_logprob"] == pytest.approx(sum(plain[len(prompt) - 1 :]), abs=1e-4)
    assert told["scores"][0]["total_logprob"] > base["scores"][0]["total_logprob"] + 1


async def test_the_whole_of_a_text_but_its_first_token_can_be_scored(engine: Engine, client: httpx.AsyncClient) -> None:
    engine.roll_back("v0")
    ids = np.random.default_rng(0).integers(0, engine.model.vocab_size, 30).tolist()
    got = await client.post("/score", json={"prompt": ids, "score_ranges": [[1, 30]], "priority": 5})
    slow = slow_log_probs(adapted(engine, None), ids)
    assert got.json()["scores"][0]["total_logprob"] == pytest.approx(sum(slow), abs=1e-3)


async def test_scores_are_the_same_again(client: httpx.AsyncClient) -> None:
    body = {"prompt": [5, 6, 7, 8, 9], "score_ranges": [[2, 5], [1, 2], [2, 5]]}
    first = (await client.post("/score", json=body)).json()
    assert (await client.post("/score", json=body)).json() == first
    assert first["scores"][0] == first["scores"][2]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": [], "score_ranges": [[1, 2]]}, 400, "prompt"),
        ({"prompt": [1, 2], "score_ranges": []}, 400, "score_ranges"),
        ({"prompt": [1, 2], "score_ranges": [[0, 2]]}, 400, "score_ranges[0][0]"),
        ({"prompt": [1, 2], "score_ranges": [[1, 3]]}, 400, "score_ranges[0]"),
        ({"prompt": [1, 2, 3], "score_ranges": [[1, 2], [2, 2]]}, 400, "score_ranges[1]"),
        ({"prompt": [1, 2], "score_ranges": [[2, 1]]}, 400, "score_ranges[0][1]"),
        ({"prompt": [1, 2], "score_ranges": [[1]]}, 400, "score_ranges[0]"),
        ({"prompt": [1, 10**12], "score_ranges": [[1, 2]]}, 400, "prompt[1]"),
        ({"prompt": [1, 2_000_000], "score_ranges": [[1, 2]]}, 422, None),
        ({"prompt": [1] * 600, "score_ranges": [[1, 2]]}, 400, "prompt"),
        ({"prompt": "text", "score_ranges": [[1, 2]]}, 400, "prompt"),
        ({"prompt": [1, 2], "score_ranges": [[1, 2]], "model": "other"}, 404, "model"),
        ({"prompt": [1, 2], "score_ranges": [[1, 2]], "logprobs": 5}, 400, "logprobs"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_can_not_be_scored_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, object], status: int, param: str | None
) -> None:
    got = await client.post("/score", json=body)
    assert (got.status_code, got.json()["error"]["param"]) == (status, param), got.text


async def test_versions_are_told_and_taken_back(engine: Engine, client: httpx.AsyncClient) -> None:
    told = (await client.get("/versions")).json()
    assert told["current"] == "v1"
    assert [(one["id"], one["parent"], one["current"]) for one in told["versions"]] == [
        ("v0", None, False),
        ("v1", "v0", True),
    ]
    assert told["versions"][1]["digest"] == engine.version.digest
    assert told["versions"][0]["digest"] == engine.model.fingerprint, "as the answers of v0 say"
    assert told["versions"][1]["trajectories"] > 0
    names = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
    assert names == ["sona", "sona:v1"]
    answer = await client.post("/v1/chat/completions", json=chat(model="sona:v1"))
    assert answer.headers["x-sona-digest"] == engine.version.digest

    events = engine.events()
    back = await client.post("/versions/v0/rollback")
    assert (back.status_code, back.json()["id"], back.json()["current"]) == (200, "v0", True)
    assert isinstance(await anext(events), Swapped)
    assert (await client.get("/versions")).json()["current"] == "v0"
    assert (await client.post("/v1/chat/completions", json=chat())).headers["x-sona-version"] == "v0"
    gone = await client.post("/v1/chat/completions", json=chat(model="sona:v1"))
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert (await client.post("/versions/v1/rollback")).json()["id"] == "v1"


@pytest.mark.parametrize(
    "name", ["v9", "..", "%2e%2e%2fetc", "..%2f..%2fetc%2fpasswd", "v0%00", "v" * 5000, "%ff", "v1%2f..%2fv0"]
)
async def test_a_version_that_is_none_is_404(client: httpx.AsyncClient, name: str) -> None:
    got = await client.post(f"/versions/{name}/rollback")
    assert (got.status_code, got.json()["error"]["code"]) == (404, "not_found")
    assert (await client.get(f"/v1/models/{name}")).status_code == 404
    assert (await client.get("/versions")).json()["current"] == "v1"


async def test_a_damaged_version_is_not_served_and_no_path_is_told(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise sona.errors.SwapError("adapter in /secret/path can't be loaded")

    with monkeypatch.context() as patched:
        patched.setattr(LocalModel, "swap", broken)
        got = await client.post("/versions/v0/rollback")
    assert (got.status_code, got.json()["error"]["code"]) == (409, "damaged")
    assert "secret" not in got.text
    assert engine.version.id == "v1"


def test_nothing_in_the_store_is_changed_by_a_score(engine: Engine, tmp_path: Path) -> None:
    before = engine.status().store.trajectories
    engine.model.score(np.asarray([1, 2, 3], dtype=np.int32), [1, 2], prompt_tokens=1)
    assert engine.status().store.trajectories == before


async def test_a_cycle_begins_when_it_is_asked_for_and_once_at_a_time(
    engine: Engine, hub: Hub, client: httpx.AsyncClient
) -> None:
    before = engine.status().store.cycles
    for number, example in enumerate(WORLD.sample("routing_policy", 60, 2)):
        engine.record(
            sona.Trajectory(messages=example.prompt, response=example.response, id=f"on-call-{number}"), quality=1.0
        )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.learn_when_asked)
        assert (await client.post("/learn")).json() == {"status": "begun"}
        second = await client.post("/learn")
        assert (second.status_code, second.json()["error"]["code"]) == (409, "conflict")
        await until(lambda: engine.status().store.cycles == before + 1)
        with anyio.fail_after(20):
            while (await client.post("/learn")).status_code == 409:  # noqa: ASYNC110 - until it is over
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_a_cycle_that_fails_in_whatever_way_leaves_the_server_as_it_is(
    engine: Engine, hub: Hub, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = anyio.Event()

    async def broken() -> None:
        failed.set()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "learn", broken)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.learn_when_asked)
        assert (await client.post("/learn")).status_code == 200
        with anyio.fail_after(20):
            await failed.wait()
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        tasks.cancel_scope.cancel()


def test_a_server_learns_in_a_process_of_its_own_unless_it_is_told_otherwise() -> None:
    assert served(Config()).learner.mode == "process"
    thread = Config(learner=LearnerConfig(mode="thread"))
    assert served(thread) == thread
