"""Events, metrics and health: what those see who look after a server."""

from __future__ import annotations

import re

import anyio
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

import sona
from sona.engine import Engine
from sona.events import Event
from sona.sending import STATE
from sona.service.hub import Hub
from sona.service.metrics import COUNTED
from sona.status import EngineStatus
from tests.service.serving import HELLO, Call, app_of, chat, client_of, events_of, hub_with

pytestmark = pytest.mark.anyio


def trajectory(name: str) -> sona.Trajectory:
    return sona.Trajectory(id=name, source="bot", messages="a secret question", response="a secret answer")


async def test_events_are_told_as_they_happen_and_without_texts(engine: Engine, hub: Hub) -> None:
    app = app_of(hub)
    feed = Call(app, "GET", "/events")
    async with anyio.create_task_group() as tasks, client_of(hub, app) as client:
        tasks.start_soon(feed.run)
        await feed.until("events of sona")
        assert feed.headers["content-type"] == "text/event-stream; charset=utf-8"
        got = await client.post("/v1/chat/completions", json=chat(user="bot"))
        name = got.headers["x-sona-trajectory"]
        await feed.until(name)
        await client.post("/v1/feedback", json={"trajectory_id": name, "quality": 1})
        await feed.until("feedback_recorded")
        await client.post("/versions/v0/rollback")
        await feed.until("rolled_back")
        feed.hang_up()
    assert feed.body.startswith(b": events of sona\n\nevent: trajectory_recorded\ndata: {")
    told = [msgspec.convert(one, Event) for one in events_of(feed.body)]
    assert [str(type(one).__struct_config__.tag) for one in told] == re.findall(r"event: (\w+)", feed.body.decode())
    assert HELLO[0]["content"].encode() not in feed.body
    assert hub.listening.taken == 0


async def test_a_feed_that_has_nothing_to_tell_is_alive(engine: Engine) -> None:
    feed = Call(app_of(hub_with(engine, heartbeat_s=0.05)), "GET", "/events")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run)
        await feed.until(": still here\n\n: still here\n\n")
        engine.record(trajectory("after-a-heartbeat"))
        await feed.until("after-a-heartbeat")
        feed.hang_up()


async def test_a_slow_reader_is_told_what_it_missed(engine: Engine, hub: Hub) -> None:
    feed = Call(app_of(hub), "GET", "/events")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run)
        await feed.until("events of sona")
        feed.reads = anyio.Event()  # it takes nothing any more
        for n in range(1500):
            engine.record(trajectory(f"many-{n}"), wait_s=None)
        await anyio.sleep(0.05)
        feed.reads.set()
        await feed.until("many-1499")
        feed.hang_up()
    told = events_of(feed.body)
    missed = sum(one["count"] for one in told if one["type"] == "missed")
    assert missed + sum(one["type"] == "trajectory_recorded" for one in told) == 1500
    assert missed >= 1500 - 1024 - 1


async def test_feeds_end_when_the_server_stops(hub: Hub) -> None:
    feed = Call(app_of(hub), "GET", "/events")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run)
        await feed.until("events of sona")
        hub.stop()
        with anyio.fail_after(20):
            await feed.done.wait()


async def test_no_more_feeds_than_are_allowed(engine: Engine) -> None:
    hub = hub_with(engine, max_listeners=1)
    feed = Call(app_of(hub), "GET", "/events")
    async with anyio.create_task_group() as tasks, client_of(hub) as client:
        tasks.start_soon(feed.run)
        await feed.until("events of sona")
        assert (await client.get("/events")).status_code == 429
        feed.hang_up()


def values(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_have_units_and_count_what_happened(engine: Engine, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post("/v1/chat/completions", json=chat())
    await client.get("/nope")
    await client.get("/v1/models/none")
    got = await client.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = values(got.text)
    route = "[('method', 'POST'), ('route', '/v1/chat/completions'), ('status', '200')]"
    assert told[f"sona_http_request_duration_seconds_count{route}"] == 2
    assert 0 < told[f"sona_http_request_duration_seconds_sum{route}"] < 20
    missing = "[('method', 'GET'), ('route', '/v1/models/{id}'), ('status', '404')]"
    assert told[f"sona_http_request_duration_seconds_count{missing}"] == 1
    unknown = "[('method', 'any'), ('route', 'unmatched'), ('status', '404')]"
    assert told[f"sona_http_request_duration_seconds_count{unknown}"] == 1
    assert told["sona_answer_duration_seconds_count[]"] == told["sona_answer_first_token_seconds_count[]"] == 2
    own = await engine.generate(HELLO)
    assert told["sona_completion_tokens_total[]"] == 2 * len(own.token_ids)
    assert told["sona_prompt_tokens_total[]"] == 2 * len(own.prompt_ids)
    await engine.flush()
    status = engine.status()
    told = values((await client.get("/metrics")).text)
    assert told["sona_store_trajectories[('state', 'waiting_for_feedback')]"] == status.store.waiting_for_feedback
    assert told["sona_store_size_bytes[]"] > 10_000
    assert told["sona_version_info[('version', 'v0')]"] == 1
    assert told["sona_store_writable[]"] == 1
    assert told["sona_unconfirmed_answers[]"] == told["sona_set_aside_answers[]"] == 0
    for name in COUNTED:
        assert told[f"sona_{name}_total[]"] == getattr(status, name)


def test_every_counter_of_the_status_is_a_metric() -> None:
    """What is added to the status has to be added here."""
    gauges = {"store", "version", "patterns", "pending", "open", "degraded", "micro", "learner", "remote"}
    gauges |= {"unconfirmed", "set_aside", "review_trouble"}
    assert set(COUNTED) == set(EngineStatus.__struct_fields__) - gauges


async def test_damaged_review_state_costs_its_own_counts_alone(engine: Engine, client: httpx.AsyncClient) -> None:
    store = engine._started().store
    store.write_state(STATE, b"[nonsense")
    status = engine.status()
    assert (status.unconfirmed, status.set_aside) == (None, None)
    assert "review/sending" in (status.review_trouble or "")
    told = values((await client.get("/metrics")).text)
    assert told["sona_review_readable[]"] == 0
    assert not {"sona_unconfirmed_answers[]", "sona_set_aside_answers[]"} & set(told)
    assert told["sona_store_writable[]"] == 1
    assert (await client.post("/learn")).status_code == 200
    store.write_state(STATE, b"[]")
    assert engine.status().review_trouble is None
    assert values((await client.get("/metrics")).text)["sona_review_readable[]"] == 1


async def test_health_is_open_and_says_little(hub: Hub) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(hub)), base_url="http://127.0.0.1") as client:
        got = await client.get("/healthz")
    assert got.json() == {"status": "ok", "storing": True, "version": "v0", "sona": sona.__version__}
