"""Whatever is sent: the answer is one of 200 or a typed refusal, never an error of ours."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona.engine import Engine
from sona.service.hub import Hub
from sona.service.routes import ENDPOINTS
from tests.service.serving import HELLO, client_of

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "sona", "messages": HELLO, "max_tokens": 2, "temperature": 0, "logprobs": True},
    "/v1/completions": {"model": "sona", "prompt": [5, 6], "max_tokens": 2, "logprobs": 1, "stop": ["a"]},
    "/v1/feedback": {"trajectory_id": "a", "quality": 1, "run_id": None, "inference_id": None, "id": "b"},
    "/candidates/change": {"ids": [], "state": "approved", "note": "n"},
    "/candidates/threshold": {"nats": 0.5},
    "/candidates/alternates": {"wanted": True},
    "/train": {
        "id": "c",
        "training_data": {"samples": [{"context_ids": [5, 6], "continuation_ids": [7]}]},
        "optimizer": "apollo-mini",
        "lr": 1e-5,
    },
    "/candidates/confirm": {"ids": [], "trained": True, "note": ""},
    "/score": {"model": "sona", "prompt": [5, 6, 7], "score_ranges": [[1, 2], [1, 3]]},
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["sona", "sona:v0", "user", "../..", "\x00", "1e999"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FIELDS = sorted({field for kind in ENDPOINTS for one in kind.takes for field in one.__struct_fields__})


def test_every_path_that_takes_a_body_is_tried() -> None:
    assert set(VALID) == {one.path for one in ENDPOINTS if one.takes}


@given(
    path=st.sampled_from(sorted(VALID)),
    changes=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=3),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_valid_request_with_anything_in_its_place(engine: Engine, path: str, changes: dict[str, Any]) -> None:
    body = VALID[path] | changes
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 4:
        body["max_tokens"] = 4  # the answer's length is not what is tried here
    post(engine, path, msgspec.json.encode(body))


@given(path=st.sampled_from(sorted(VALID)), value=VALUES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json(engine: Engine, path: str, value: object) -> None:
    post(engine, path, msgspec.json.encode(value))


@given(path=st.sampled_from(sorted(VALID)), at=st.integers(0, 200), noise=st.binary(min_size=1, max_size=4))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_valid_request_with_bytes_in_it(engine: Engine, path: str, at: int, noise: bytes) -> None:
    body = msgspec.json.encode(VALID[path])
    at = min(at, len(body))
    post(engine, path, body[:at] + noise + body[at:])


def post(engine: Engine, path: str, body: bytes) -> None:
    async def run() -> None:
        async with client_of(Hub(engine)) as client:
            got = await client.post(path, content=body, headers={"content-type": "application/json"})
        assert got.status_code in (200, 400, 404, 409, 422), (got.status_code, got.text, body)
        if got.status_code != 200:
            assert set(got.json()["error"]) == {"message", "type", "param", "code"}

    anyio.run(run)
