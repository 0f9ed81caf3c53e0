"""Training on call: what is accepted is learned, measured, written down, and becomes a model; the base stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from msgspec.structs import replace

from sona.checkpoints import list_checkpoints, restore_model, verify_checkpoints
from sona.config import ServeConfig
from sona.engine import Engine
from sona.errors import (
    InvalidInputError,
    LearnerError,
    ModelTooLargeError,
    QueueFullError,
    SonaError,
    StoreCorruptError,
    StoreFullError,
    TrainingError,
    UnknownIdError,
)
from sona.loops.full import working
from sona.loops.full.desk import TrainingDesk
from sona.service.hub import Hub
from sona.service.server import ServeOptions, _Process, _resume
from sona.serving.local import LocalModel
from sona.storage.training_folder import TrainingFolder
from sona.training import JobResult
from sona.types import to_messages
from tests.engine.small import SMALL, WORLD
from tests.service.serving import Call, app_of, chat, until
from tests.training import job

pytestmark = pytest.mark.anyio


def body(**more: Any) -> dict[str, Any]:
    return {"training_data": {"samples": [{"context_ids": [5, 6], "continuation_ids": [7, 8]}]}, **more}


def lessons(engine: Engine) -> list[dict[str, list[int]]]:
    """What the tiny model can't do yet, as token ids."""
    model = engine.model
    return [
        {
            "context_ids": model.encode_prompt(to_messages(one.prompt)).tolist(),
            "continuation_ids": model.encode_response(one.response).tolist(),
        }
        for one in WORLD.sample("tool_call", 48, 1)
    ]


def loss_by_scores(model: LocalModel, samples: list[dict[str, list[int]]]) -> float:
    """Nats a token of the continuations, as the served model has them."""
    import numpy as np

    total, count = 0.0, 0
    for one in samples:
        start, ids = len(one["context_ids"]), [*one["context_ids"], *one["continuation_ids"]]
        places = range(start, len(ids))
        total -= float(model.score(np.asarray(ids, np.int32), places, prompt_tokens=start).log_probs.sum())
        count += len(places)
    return total / count


async def test_what_is_trained_is_learned_saved_and_a_model_while_the_base_stays(
    engine: Engine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    samples = lessons(engine)
    told = (await client.post("/v1/chat/completions", json=chat(logprobs=True))).json()["choices"]
    for name in ("first", "second"):
        asked = {"id": name, "training_data": {"samples": samples}, "lr": 3e-3, "rank": 32, "warmup_steps": 3}
        sent = await client.post("/train", json=asked)
        assert (sent.status_code, sent.json()["job_id"]) == (200, name), sent.text
        assert (sent.json()["samples"], sent.json()["steps"]) == (48, 12)
    again = await client.post("/train", json=asked)
    assert (again.status_code, again.json()["job_id"]) == (200, "second")
    other = await client.post("/train", json=asked | {"lr": 1e-3})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")

    found = await idle(client)
    first, second = found["jobs"]
    assert [job["state"] for job in found["jobs"]] == ["done", "done"]
    assert first["loss_before"] == pytest.approx(loss_by_scores(engine.model, samples), abs=1e-3)
    assert second["loss_before"] == pytest.approx(first["loss_after"], abs=1e-6), "it goes on from the first"
    assert second["loss_after"] < 0.6 * first["loss_before"]
    assert (first["continued"], second["continued"]) == (False, True)
    assert (found["alive"], found["not_in_checkpoint"]) == (True, ["first", "second"])

    saved = (await client.post("/checkpoint")).json()
    assert (saved["status"], saved["number"], saved["jobs"]) == ("saved", 1, ["first", "second"])
    assert 0 < saved["changed_blocks"] <= saved["blocks"]
    assert saved["written_bytes"] == (engine.path / "training" / "checkpoints" / saved["file"]).stat().st_size
    nothing = (await client.post("/checkpoint")).json()
    assert (nothing["status"], nothing["number"], nothing["written_bytes"]) == ("nothing new", 1, 0)
    assert saved["queued"] == nothing["queued"] == 0
    found = (await client.get("/train/status")).json()
    assert (found["not_in_checkpoint"], found["last_checkpoint"]["sha256"]) == ([], saved["sha256"])
    metrics = (await client.get("/metrics")).text
    assert 'sona_training_jobs_total{status="done"} 2.0' in metrics
    assert "sona_training_process_up 1.0" in metrics

    assert [one.sha256 for one in list_checkpoints(engine.path)] == [saved["sha256"]]
    assert [one.is_whole for one in verify_checkpoints(engine.path)] == [True]
    made = restore_model(engine.path, 1, tmp_path / "model")
    assert (made.sha256, made.base) == (saved["sha256"], engine.model.fingerprint)
    restored = LocalModel(tmp_path / "model", ServeConfig(device="cpu", threads=1))
    try:
        assert loss_by_scores(restored, samples) == pytest.approx(second["loss_after"], abs=1e-3)
        assert restored.fingerprint != engine.model.fingerprint
        prompt = engine.model.encode_prompt(to_messages(WORLD.sample("tool_call", 1, 1)[0].prompt))
        assert (
            restored.encode_prompt(to_messages(WORLD.sample("tool_call", 1, 1)[0].prompt)).tolist() == prompt.tolist()
        )
        assert restored.stop_ids == engine.model.stop_ids
        answers = [model.generate(prompt, max_new_tokens=24).text for model in (engine.model, restored)]
        assert answers[0] != answers[1]
    finally:
        restored.close()
    assert (await client.post("/v1/chat/completions", json=chat(logprobs=True))).json()["choices"] == told

    for target in (tmp_path / "model", engine.path / "model"):
        with pytest.raises(InvalidInputError, match=r"exists|within the store"):
            restore_model(engine.path, 1, target)
    with pytest.raises(UnknownIdError, match="checkpoint 9"):
        restore_model(engine.path, 9, tmp_path / "other")
    assert os.listdir(tmp_path) == ["model"], "and no half of one"


async def idle(client: httpx.AsyncClient) -> Any:
    """The status, once nothing waits."""
    with anyio.fail_after(60):
        while True:
            found = (await client.get("/train/status")).json()
            if not found["queued"]:
                return found
            await anyio.sleep(0.05)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"training_data": {"samples": []}}, "invalid_type", "training_data.samples"),
        ({"training_data": {}}, "missing_required_parameter", "training_data.samples"),
        ({"training_data": {"samples": [{"context_ids": [5]}]}}, "missing_required_parameter", None),
        ({"training_data": {"samples": [{"context_ids": [], "continuation_ids": [5]}]}}, "invalid_type", None),
        ({"training_data": {"samples": [{"context_ids": [5], "continuation_ids": [-1]}]}}, "invalid_type", None),
        ({"training_data": {"samples": [{"context_ids": [5], "continuation_ids": [1536]}]}}, "unknown_token", None),
        ({"training_data": {"samples": [{"context_ids": [5] * 600, "continuation_ids": [5]}]}}, "invalid_value", None),
        ({"training_data": {"samples": body()["training_data"]["samples"] * 1025}}, "invalid_value", None),
        ({"lr": 0}, "invalid_type", "lr"),
        ({"lr": "fast"}, "invalid_type", "lr"),
        ({"lr": 1.5}, "invalid_type", "lr"),
        ({"rank": 0}, "invalid_type", "rank"),
        ({"betas": [0.9]}, "invalid_type", "betas"),
        ({"betas": [0.9, 1.0]}, "invalid_type", None),
        ({"eps": -1e-8}, "invalid_type", "eps"),
        ({"norm_growth_limit": 1.0}, "invalid_type", "norm_growth_limit"),
        ({"proj_refresh": 0}, "invalid_type", "proj_refresh"),
        ({"optimizer": "sgd"}, "invalid_type", "optimizer"),  # and says which are allowed: tests/test_wording.py
        ({"id": ""}, "invalid_type", "id"),
        ({"learning_rate": 1e-5}, "unknown_parameter", "learning_rate"),
    ],
)
async def test_what_cant_be_trained_is_a_typed_400_and_not_accepted(
    engine: Engine, client: httpx.AsyncClient, changes: dict[str, Any], code: str, param: str | None
) -> None:
    before = engine.training.status().accepted
    got = await client.post("/train", json=body() | changes)
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (400, code), got.text
    if param is not None:
        assert error["param"] == param
    assert engine.training.status().accepted == before


@pytest.mark.parametrize("text", [b'{"training_data": NaN}', b'{"lr": 1e999}', b"[]", b"{"])
async def test_numbers_that_are_none_are_refused(client: httpx.AsyncClient, text: bytes) -> None:
    got = await client.post("/train", content=text, headers={"content-type": "application/json"})
    assert got.status_code == 400


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TrainingError("switched off"), 409, "training_refused"),
        (ModelTooLargeError("too large"), 422, "model_too_large"),
        (QueueFullError("full"), 429, "rate_limit_exceeded"),
        (StoreFullError("/secret has no room"), 503, "store_unavailable"),
        (StoreCorruptError("/secret is damaged"), 409, "damaged"),
        (LearnerError("died"), 503, "training_interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SonaError) else None,
)
async def test_each_refusal_has_a_status_and_names_no_path(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: SonaError, status: int, code: str
) -> None:
    for name in ("submit", "status", "checkpoint"):
        monkeypatch.setattr(TrainingDesk, name, refusal(error))
    for got in (await client.post("/train", json=body()), await client.get("/train/status")):
        assert (got.status_code, got.json()["error"]["code"]) == (status, code)
        assert "secret" not in got.text
    assert (await client.post("/checkpoint")).status_code == status
    assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(
    ("met", "told"),
    [
        (None, None),
        ("StoreFullError: /secret has no room", "StoreFullError"),
        ("ModelError: /secret: it is another model", "ModelError"),
        ("LearnerError: the process that trains was killed (SIGKILL); it said: /secret", None),
    ],
)
async def test_what_training_met_is_told_without_paths(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, met: str | None, told: str | None
) -> None:
    found = replace(engine.training.status(), last_error=met)
    monkeypatch.setattr(TrainingDesk, "status", lambda self: found)
    got = (await client.get("/train/status")).json()["last_error"]
    killed = "LearnerError: the process that trains was killed (SIGKILL)"
    assert got == (killed if met is not None and told is None else told)


async def test_without_the_token_nothing_is_told(client: httpx.AsyncClient) -> None:
    stranger = {"authorization": "Bearer no"}
    for method, path in (("POST", "/train"), ("GET", "/train/status"), ("POST", "/checkpoint")):
        assert (await client.request(method, path, headers=stranger)).status_code == 401


async def test_who_hangs_up_while_a_checkpoint_is_written_leaves_nothing_behind(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import Future

    monkeypatch.setattr(TrainingDesk, "checkpoint", lambda self: Future())
    call = Call(app_of(hub), "POST", "/checkpoint")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await until(lambda: hub.requests.taken == 1)
        call.hang_up()
        with anyio.fail_after(10):
            await call.done.wait()
    assert hub.requests.taken == 0


class StubTrainer:
    """Trains nothing, and remembers which jobs it was given."""

    ran: list[int]
    pid = 1

    def __init__(self, *_: object) -> None:
        pass

    def load(self) -> int:
        return 0

    def run(self, number: int, on_step: object) -> JobResult:
        self.ran.append(number)
        return JobResult(number=number, id="kept", digest=b"", state="done", loss_before=1.0, loss_after=1.0)

    def end(self) -> None:
        pass


async def test_a_server_goes_on_with_the_jobs_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StubTrainer.ran = []
    monkeypatch.setattr(working, "Trainer", StubTrainer)
    TrainingFolder(tmp_path / "S").jobs.accept(job(1))
    options = ServeOptions(tmp_path / "S", "tiny", SMALL, port=0, learn=False)
    with anyio.fail_after(60):
        process = _Process(options, lambda told: None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.run)
            await until(lambda: StubTrainer.ran == [1] and process._server is not None)
            assert process._server is not None
            process._server.should_exit = True


async def test_a_server_answers_although_its_training_is_damaged(engine: Engine) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingDesk, "resume", refusal(StoreCorruptError("damaged")))
        await _resume(engine)


def refusal(error: SonaError) -> Any:
    def refuse(*_: object) -> None:
        raise error

    return refuse
