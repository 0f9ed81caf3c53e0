"""Feedback over HTTP: three shapes, each once, durable when it is acknowledged."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest

import sona
from sona.engine import Engine
from sona.errors import StoreFullError
from sona.service.hub import Hub
from sona.storage.store import Store
from tests.service.serving import chat

pytestmark = pytest.mark.anyio
PATH = "/v1/feedback"


@pytest.fixture
async def answered(client: httpx.AsyncClient) -> str:
    """The id of a trajectory."""
    return str((await client.post("/v1/chat/completions", json=chat())).headers["x-sona-trajectory"])


async def test_feedback_is_on_the_disk_when_it_is_acknowledged(
    engine: Engine, client: httpx.AsyncClient, answered: str
) -> None:
    body = {"trajectory_id": answered, "quality": 0.25, "id": "mine", "comment": "too short", "giver": "ann"}
    got = await client.post(PATH, json=body)
    assert got.json() == {"id": "mine", "feedback_id": "mine", "trajectory_id": answered, "status": "recorded"}
    assert engine.status().pending == 0
    (kept,) = engine.feedback_of(answered)
    assert (kept.quality, kept.id, kept.comment, kept.giver) == (0.25, "mine", "too short", "ann")
    assert engine.get(answered).quality == 0.25


async def test_the_same_again_counts_once_and_other_content_is_a_conflict(
    engine: Engine, client: httpx.AsyncClient, answered: str
) -> None:
    other = (await client.post("/v1/chat/completions", json=chat())).headers["x-sona-trajectory"]
    name = f"once-{answered}"
    body = {"trajectory_id": answered, "quality": 1, "id": name}
    assert (await client.post(PATH, json=body)).json()["status"] == "recorded"
    again = await client.post(PATH, json=body)
    assert (again.status_code, again.json()["status"]) == (200, "known")
    for change in ({"quality": 0.5}, {"comment": "no"}, {"giver": "bob"}, {"trajectory_id": other}):
        got = await client.post(PATH, json=body | change)
        assert (got.status_code, got.json()["error"]["code"]) == (409, "conflict"), change
    assert [one.quality for one in engine.feedback_of(answered)] == [1.0]
    assert engine.feedback_of(other) == []


async def test_many_at_once_with_one_id_are_one(engine: Engine, client: httpx.AsyncClient, answered: str) -> None:
    statuses: list[int] = []

    async def give(quality: float) -> None:
        body = {"trajectory_id": answered, "quality": quality, "id": f"race-{answered}"}
        statuses.append((await client.post(PATH, json=body)).status_code)

    async with anyio.create_task_group() as tasks:
        for quality in (0.0, 0.0, 1.0, 1.0):
            tasks.start_soon(give, quality)
    assert sorted(statuses) == [200, 200, 409, 409]
    assert len(engine.feedback_of(answered)) == 1


async def test_langsmiths_shape(engine: Engine, client: httpx.AsyncClient, answered: str) -> None:
    body: dict[str, Any] = {
        "id": "9b2f5a70-0000-4000-8000-000000000001",
        "run_id": str(UUID(answered)),
        "trace_id": str(UUID(answered)),
        "key": "correctness",
        "score": 0.75,
        "value": None,
        "comment": "nearly",
        "correction": None,
        "feedback_source": {"type": "api", "metadata": {}},
        "created_at": "2026-01-01T00:00:00Z",
    }
    got = await client.post(PATH, json=body)
    assert (got.status_code, got.json()["id"]) == (200, body["id"]), got.text
    (kept,) = engine.feedback_of(answered)
    assert (kept.quality, kept.giver, kept.comment) == (0.75, "correctness", "nearly")
    assert (await client.post(PATH, json=body)).json()["status"] == "known"
    assert (await client.post(PATH, json=body | {"score": 0.5})).status_code == 409
    for score, value, quality in ((True, None, 1.0), (None, 0, 0.0), (False, "thumbs", 0.0)):
        got = await client.post(PATH, json=body | {"id": None, "score": score, "value": value})
        assert got.status_code == 200, got.text
        assert engine.feedback_of(answered)[-1].quality == quality


async def test_tensorzeros_shape(engine: Engine, client: httpx.AsyncClient, answered: str) -> None:
    body = {"inference_id": str(UUID(answered)), "metric_name": "haiku_rating", "value": True, "tags": {"a": "b"}}
    dry = await client.post(PATH, json=body | {"dryrun": True})
    assert (dry.status_code, dry.json()["status"]) == (200, "dry run")
    assert engine.feedback_of(answered) == []
    got = await client.post(PATH, json=body)
    (kept,) = engine.feedback_of(answered)
    assert got.json()["feedback_id"] == kept.id
    assert (kept.quality, kept.giver) == (1.0, "haiku_rating")
    assert (await client.post(PATH, json=body | {"value": 0.5})).status_code == 200
    for wrong in ({"metric_name": "comment", "value": "well"}, {"metric_name": "demonstration", "value": "so"}):
        got = await client.post(PATH, json=body | wrong)
        assert (got.status_code, got.json()["error"]["param"]) == (400, "metric_name")


async def test_an_unknown_trajectory_is_404(client: httpx.AsyncClient) -> None:
    for body in (
        {"trajectory_id": "nobody", "quality": 1},
        {"trajectory_id": "../../etc/passwd", "quality": 1},
        {"run_id": "00000000-0000-4000-8000-000000000000", "key": "k", "score": 1},
        {"inference_id": "nobody", "metric_name": "m", "value": 1},
    ):
        got = await client.post(PATH, json=body)
        assert (got.status_code, got.json()["error"]["code"]) == (404, "not_found"), got.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"quality": 1}, "trajectory_id"),
        ({"trajectory_id": "a", "run_id": "b", "key": "k", "score": 1}, "trajectory_id"),
        ({"trajectory_id": "a"}, "quality"),
        ({"trajectory_id": "a", "quality": 1.5}, "quality"),
        ({"trajectory_id": "a", "quality": -1}, "quality"),
        ({"trajectory_id": "a", "quality": "good"}, "quality"),
        ({"trajectory_id": "a", "quality": True}, "quality"),
        ({"trajectory_id": "a", "quality": 1, "colour": 2}, "colour"),
        ({"trajectory_id": "", "quality": 1}, "trajectory_id"),
        ({"trajectory_id": 7, "quality": 1}, "trajectory_id"),
        ({"trajectory_id": "a" * 201, "quality": 1}, "trajectory_id"),
        ({"trajectory_id": "a", "quality": 1, "id": ""}, "id"),
        ({"run_id": "a", "key": "k"}, "score"),
        ({"run_id": "a", "key": "k", "score": 7}, "score"),
        ({"run_id": "a", "key": "k", "value": "good"}, "score"),
        ({"run_id": "a", "score": 1}, "key"),
        ({"inference_id": "a", "metric_name": "m"}, "value"),
        ({"inference_id": "a", "metric_name": "m", "value": 2}, "value"),
        ({"episode_id": "a", "metric_name": "m", "value": 1}, "trajectory_id"),
        ([], None),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_is_no_feedback_is_refused_by_name(client: httpx.AsyncClient, body: Any, param: str | None) -> None:
    got = await client.post(PATH, json=body)
    assert (got.status_code, got.json()["error"]["param"]) == (400, param), got.text


async def test_a_nul_in_an_id_is_refused(client: httpx.AsyncClient, answered: str) -> None:
    got = await client.post(PATH, json={"trajectory_id": answered, "quality": 1, "id": "a\x00b"})
    assert got.status_code == 400


async def test_a_full_disk_is_503_and_the_same_again_counts_once(
    engine: Engine, client: httpx.AsyncClient, answered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("/secret/path has no room")

    await engine.flush()
    body = {"trajectory_id": answered, "quality": 1, "id": f"full-{answered}"}
    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", full)
        got = await client.post(PATH, json=body)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "store_unavailable")
        assert got.headers["retry-after"] == "1"
        assert "secret" not in got.text
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["storing"], health.json()["status"]) == (200, False, "degraded")
    assert (await client.post(PATH, json=body)).status_code == 200
    assert len(engine.feedback_of(answered)) == 1
    assert (await client.get("/healthz")).json()["storing"] is True


async def test_a_full_queue_is_503(
    client: httpx.AsyncClient, hub: Hub, answered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sona.Engine, "feedback", lambda *_, **__: "rejected")
    got = await client.post(PATH, json={"trajectory_id": answered, "quality": 1})
    assert (got.status_code, got.json()["error"]["code"]) == (503, "store_unavailable")


async def test_feedback_for_an_id_that_the_host_has_open_is_told_as_held(
    engine: Engine, client: httpx.AsyncClient, answered: str
) -> None:
    body = {"trajectory_id": answered, "quality": 1, "id": f"held-{answered}"}
    async with engine.trajectory("again", id=answered):
        got = await client.post(PATH, json=body)
        assert (got.status_code, got.json()["status"]) == (200, "held")
