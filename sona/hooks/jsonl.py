"""Trajectories from JSON lines: one documented form, and the names that agent logs commonly use for the same things.

Each line is one object:

- ``id``: text or number; made up where it is missing.
- ``source`` (or ``agent``, ``env``): who sent it; the file's name where it is missing.
- ``messages``: the conversation, as OpenAI writes it. Where there is no ``response``, the assistant's last text is
taken
  as that; where there are no ``steps``, its tool calls are.
- ``prompt`` (or ``task``, ``question``): text, in place of ``messages``.
- ``response`` (or ``answer``): text; where it is missing, the steps' actions, a line each.
- ``steps``: list of objects with ``name`` (or ``action``), ``reward``, ``latency_s``, ``content`` (or ``thought``,
  ``observation``).
- ``quality`` (or ``reward``): number in [0, 1]; a line without one is stored, and waits for feedback.
- ``outcome``: ``completed``, ``failed`` or ``abandoned``; another text goes to the metadata.
- ``embedding``: list of numbers.
- ``metadata``: object of texts; fields that are not named here are added to it, as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sona.checks import check_quality
from sona.errors import InvalidInputError
from sona.types import Message, Outcome, Step, ToolCall, Trajectory, new_id, to_messages

OUTCOMES = ("completed", "failed", "abandoned")
KNOWN = frozenset(
    (
        "id",
        "source",
        "messages",
        "prompt",
        "response",
        "answer",
        "steps",
        "quality",
        "reward",
        "outcome",
        "embedding",
        "metadata",
    )
)


class Imported(NamedTuple):
    """One line of a file."""

    line: int
    trajectory: Trajectory
    quality: float | None


def read_jsonl(path: Path, source: str | None = None) -> Iterator[Imported]:
    """The trajectories of a file, line by line; ``source`` overrides the lines' own.

    Raises:
        InvalidInputError: no such file, or a line that can't be a trajectory: its number, what is wrong, what is
            allowed.
    """
    if not path.is_file():
        raise InvalidInputError(f"{str(path)!r} is no file; give a file of JSON lines")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_line(line, number, path, source)


def _read_line(line: bytes, number: int, path: Path, source: str | None) -> Imported:
    try:
        row = msgspec.json.decode(line)
        if not isinstance(row, dict):
            raise InvalidInputError(f"a {type(row).__name__}; one JSON object a line is allowed")
        quality = _first(row, "quality", "reward")
        return Imported(number, _trajectory(row, source or path.stem, override=source), _quality(quality))
    except (msgspec.DecodeError, InvalidInputError) as error:
        raise InvalidInputError(f"{path.name} line {number}: {error}") from None


def _quality(value: object) -> float | None:
    return None if value is None else check_quality(value)


def _trajectory(row: Mapping[str, Any], fallback: str, override: str | None) -> Trajectory:
    messages, response, after = _conversation(row)
    steps = _steps(row, messages)
    if not response and row.get("steps"):
        response = "\n".join(str(_first(step, "action", "name") or "") for step in row["steps"]).strip()
    return Trajectory(
        id=str(row["id"]) if row.get("id") is not None else new_id(),
        source=override or str(_first(row, "source", "agent", "env") or fallback),
        messages=messages,
        response=response,
        steps=steps,
        embedding=row.get("embedding"),
        outcome=_outcome(row, answered=bool(response) or not messages),
        metadata={**_metadata(row), **({"followed_by": after} if after else {})},
    )


def _outcome(row: Mapping[str, Any], *, answered: bool) -> Outcome:
    given: Outcome | None = row["outcome"] if row.get("outcome") in OUTCOMES else None
    return given or ("completed" if answered else "abandoned")


def _conversation(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    """The prompt's messages, the response, and what the conversation went on with after it."""
    response = _text(_first(row, "response", "answer"), "response")
    if row.get("messages"):
        messages = to_messages([_openai_form(message) for message in _list(row["messages"], "messages")])
        if response:
            return messages, response, ""
        spoken = [
            place for place, message in enumerate(messages) if message.role == "assistant" and message.content.strip()
        ]
        if not spoken or not spoken[-1]:
            return messages, "", ""
        after = "\n".join(f"{message.role}: {message.content}" for message in messages[spoken[-1] + 1 :])
        return messages[: spoken[-1]], messages[spoken[-1]].content, after
    prompt = next((row[key] for key in ("prompt", "task", "question") if isinstance(row.get(key), str)), "")
    return (to_messages(prompt) if prompt else ()), response, ""


def _openai_form(message: object) -> object:
    """A message with neither text nor calls, which some logs hold, is an empty turn: it reads as one blank."""
    if not isinstance(message, Mapping):
        return message
    kept = {key: value for key, value in message.items() if key in ("role", "content", "name", "tool_calls")}
    if not kept.get("content") and not kept.get("tool_calls") and kept.get("role") != "tool":
        kept["content"] = "(empty)"
    return kept


def _steps(row: Mapping[str, Any], messages: tuple[Message, ...]) -> list[Step]:
    if row.get("steps"):
        return [_step(step) for step in _list(row["steps"], "steps")]
    return [_call_step(call) for message in messages for call in message.tool_calls]


def _step(step: object) -> Step:
    if not isinstance(step, Mapping):
        raise InvalidInputError(f"steps: a {type(step).__name__}; objects are allowed")
    action = str(_first(step, "name", "action") or "step")
    content = "\n".join(str(step[key]) for key in ("thought", "action", "content", "observation") if step.get(key))
    return Step(
        name=action.partition("[")[0].strip()[:200] or "step",
        reward=step.get("reward"),
        latency_s=step.get("latency_s"),
        content=content,
        at_ns=0,
    )


def _call_step(call: ToolCall) -> Step:
    return Step(name=f"tool:{call.name}"[:200], content=call.arguments, at_ns=0)


def _metadata(row: Mapping[str, Any]) -> dict[str, str]:
    given = row.get("metadata") or {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"metadata: a {type(given).__name__}; an object of texts is allowed")
    rest = {key: value for key, value in row.items() if key not in KNOWN and value is not None}
    if row.get("outcome") is not None and row["outcome"] not in OUTCOMES:
        rest["outcome"] = row["outcome"]
    return {
        str(key): value if isinstance(value, str) else json.dumps(value) for key, value in {**rest, **given}.items()
    }


def _first(row: Mapping[str, Any], *keys: str) -> Any:
    """The first of ``keys`` that the row has a value for."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _text(value: object, name: str) -> str:
    if value is not None and not isinstance(value, (str, int, float)):
        raise InvalidInputError(f"{name}: a {type(value).__name__}; a text is allowed")
    return "" if value is None else str(value)


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInputError(f"{name}: a {type(value).__name__}; a list is allowed")
    return value
