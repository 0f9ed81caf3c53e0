"""The OpenAPI text is that of the routes, whole and without loose ends."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import msgspec
import pytest

from sona.service.feedback import SHAPES
from sona.service.openapi import openapi
from sona.service.requests import ChatRequest, CompletionRequest
from sona.service.responses import ChatCompletion, Completion
from sona.service.routes import ENDPOINTS
from tests.service.serving import chat

pytestmark = pytest.mark.anyio


@pytest.fixture
def document() -> dict[str, Any]:
    return openapi(ENDPOINTS)


async def test_it_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    got = await client.get("/openapi.json")
    assert got.headers["content-type"] == "application/json"
    assert got.json() == json.loads(msgspec.json.encode(document))


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(one.method, one.path) for one in ENDPOINTS}
    assert document["openapi"] == "3.1.0"
    assert document["security"] == [{"bearer": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for path in document["paths"].values() for operation in path.values())


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = msgspec.json.encode(document).decode()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names
    assert names <= set(document["components"]["schemas"])


def test_requests_and_answers_are_those_that_are_validated(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for kind in (ChatRequest, CompletionRequest, ChatCompletion, Completion, *SHAPES.values()):
        fields = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert set(schemas[kind.__name__]["properties"]) == fields
    assert schemas["ChatRequest"]["required"] == ["model", "messages"]
    assert schemas["ChatRequest"]["additionalProperties"] is False
    chat_path = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat_path["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "401", "404", "413", "422", "429", "500", "503"} <= set(chat_path["responses"])
    feedback = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert len(feedback["oneOf"]) == 3


async def test_what_is_answered_fits_what_is_described(client: httpx.AsyncClient) -> None:
    got = await client.post("/v1/chat/completions", json=chat(logprobs=True, return_token_ids=True))
    msgspec.json.decode(got.content, type=ChatCompletion)
    got = await client.post("/v1/completions", json={"model": "sona", "prompt": "blue", "logprobs": 1, "max_tokens": 3})
    msgspec.json.decode(got.content, type=Completion)
