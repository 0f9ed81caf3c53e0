"""The service's OpenAPI text, generated from the records that validate its requests and make its responses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

import sona
from sona.service.guard import OPEN
from sona.service.problems import ErrorBody
from sona.service.routes import Endpoint

EVERYWHERE = (401, 429, 500)
HEADERS = {
    "x-sona-trajectory": "The trajectory's id, for feedback.",
    "x-sona-version": "The version that answered.",
    "x-sona-digest": "Of that version's files.",
    "x-request-id": "The request's id: the one that it came with, or a new one.",
}


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    kinds = [kind for one in endpoints for kind in (*one.takes, one.gives, one.streams) if kind is not None]
    kinds = list(dict.fromkeys([*kinds, ErrorBody]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sona", "version": sona.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _operation(one: Endpoint, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {one.media: {"schema": refs[one.gives] if one.gives else {"type": "string"}}}
    if one.streams is not None:
        content["text/event-stream"] = {"schema": refs[one.streams]}
    operation: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{re.sub('[^a-z0-9]+', '_', one.path)}",
        "summary": (inspect.getdoc(one.handler) or "").partition("\n")[0],
        "responses": {"200": {"description": "OK", "content": content, "headers": _headers(one)}},
    }
    parameters = [_path_parameter(name) for name in re.findall(r"{(\w+)}", one.path)]
    if one.streams is not None:
        parameters.append(_source_parameter())
    parameters += [
        {"name": name, "in": "query", "description": about, "schema": {"type": "string"}} for name, about in one.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if one.takes:
        shapes = [refs[kind] for kind in one.takes]
        schema = shapes[0] if len(shapes) == 1 else {"oneOf": shapes}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    operation["responses"] |= _errors(one, refs[ErrorBody])
    if one.path == OPEN:
        operation["security"] = []
    return operation


def _errors(one: Endpoint, shape: dict[str, Any]) -> dict[str, Any]:
    codes: Iterable[int] = one.errors if one.path == OPEN else sorted({*one.errors, *EVERYWHERE})
    return {
        str(code): {"description": HTTPStatus(code).phrase, "content": {"application/json": {"schema": shape}}}
        for code in codes
    }


def _headers(one: Endpoint) -> dict[str, Any]:
    told = HEADERS if one.streams is not None else {"x-request-id": HEADERS["x-request-id"]}
    return {name: {"description": about, "schema": {"type": "string"}} for name, about in told.items()}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _source_parameter() -> dict[str, Any]:
    about = "Who asks: the trajectory's source; without it the field user, or default."
    return {"name": "x-sona-source", "in": "header", "description": about, "schema": {"type": "string"}}
