"""Trajectories from JSON lines: one documented form, and the names that agent logs commonly use for the same things.

Each line is one object. Of names for the same thing the first that the line has counts:

- ``id``: text or number; where it is missing, a hash of the line, so that the same line has the same id in any file,
  whoever it is said to be of: a log that was renamed or rotated brings nothing twice. Two events whose lines are the
  same are two within one file alone; give them an id, or a time, where that matters.
- ``source`` (or ``agent``, ``env``): who sent it, text; the file's name, without its ending, where it is missing.
- ``created_ns`` (or ``timestamp``): when; whole nanoseconds since 1970, or a timestamp in seconds, milli-, micro- or
  nanoseconds, or ISO 8601 text (UTC where it names no zone); 0 where it is missing or none of these.
- ``messages``: the conversation, as OpenAI writes it. Where there is no ``response``, the assistant's last text is
  taken as that; where there are no ``steps``, its tool calls are.
- ``prompt`` (or ``task``, ``question``): text, in place of ``messages``.
- ``response`` (or ``answer``): text; where it is missing, the steps' actions, a line each.
- ``steps``: list of objects with ``name`` (or ``action``, of which what stands before a ``[`` is the name), ``reward``,
  ``latency_s``, ``content`` (or ``thought``, ``observation``). A step needs a name.
- ``recalled``: list of texts, the ids of the patterns and lessons that were recalled for it.
- ``quality`` (or ``reward``): number in [0, 1]; a line without one is stored, and waits for feedback.
- ``outcome``: ``completed``, ``failed`` or ``abandoned``; another text goes to the metadata.
- ``embedding``: list of numbers.
- ``metadata``: object of texts; whatever else the line holds is added to it, as text.

A name that is one letter from one of these (``promt``, ``qualty``), or differs from it in upper and lower case alone
(``Prompt``), is an error that says which was meant; a field of your own that is so called goes into ``metadata``. The
file is UTF-8, with or without a byte order mark. It may be a pipe, or ``-`` for the standard input; a line that names
no source is then of ``stdin``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sona.checks import shown
from sona.errors import InvalidInputError
from sona.hooks.spelling import meant
from sona.types import MESSAGE_KEYS, OUTCOMES, Feedback, Message, Outcome, Step, ToolCall, Trajectory, to_messages

KEYS = (
    *("id", "source", "agent", "env", "created_ns", "timestamp", "messages", "prompt", "task", "question", "response"),
    *("answer", "steps", "recalled", "quality", "reward", "outcome", "embedding", "metadata"),
)
STEP_KEYS = ("name", "action", "reward", "latency_s", "content", "thought", "observation")
LINES_BEFORE = "the lines before it were read: mend it and go on with the same file"
STDIN = Path("-")
"""The standard input."""


class MadeUpId(NamedTuple):
    """What the id of a line without one is made of."""

    line: bytes
    turn: int
    """How many of the same line its file had up to it: each is another event, and gets another id."""

    @property
    def id(self) -> str:
        """As it is made now."""
        return self._hash(b"")

    def former(self, source: str) -> str:
        """As it was made up to version 0.1: of the source as well, which the file's name was, so that what was renamed
        came twice.
        """
        return self._hash(source.encode("utf-8", "replace") + b"\x00")

    def _hash(self, before: bytes) -> str:
        digest = hashlib.blake2b(before + self.line, digest_size=16).digest()
        return hashlib.blake2b(digest + b"%d" % self.turn, digest_size=16).hexdigest()


class Imported(NamedTuple):
    """One line of a file. The same line gives the same two records, so that both can be stored again without harm."""

    line: int
    trajectory: Trajectory
    feedback: Feedback | None
    """Its quality. The id follows from the trajectory's and the quality, so that a corrected one counts."""
    made_up: MadeUpId | None = None
    """None where the line has an id."""

    @property
    def quality(self) -> float | None:
        """In [0, 1]; None where the line has none."""
        return None if self.feedback is None else self.feedback.quality

    def known_as(self, id: str, source: str) -> Imported:
        """The same line, as it is in a store already."""
        trajectory = msgspec.structs.replace(self.trajectory, id=id, source=source)
        feedback = None if self.quality is None else _feedback(trajectory, self.quality)
        return self._replace(trajectory=trajectory, feedback=feedback)


def read_jsonl(path: Path, source: str | None = None) -> Iterator[Imported]:
    """The trajectories of a file, line by line; ``source`` overrides the lines' own.

    Raises:
        InvalidInputError: no such file or none that can be read, or a line that can't be a trajectory: its number, what
            is wrong, what is allowed.
    """
    check_file(path)
    seen: Counter[bytes] = Counter()
    named = path.stem if path != STDIN and path.is_file() else "stdin"  # a pipe's name is another one each time
    try:
        with open(0, "rb", closefd=False) if path == STDIN else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                written = (line.removeprefix(BOM_UTF8) if number == 1 else line).strip()
                if written:
                    yield _read_line(written, number, source, named, seen)
    except _LineError as error:
        raise InvalidInputError(f"{path.name} {error}") from None
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} can't be read: {error}; give a file of JSON lines") from None


def check_file(path: Path) -> None:
    """InvalidInputError unless there is a file at ``path``, or a pipe, or it is :data:`STDIN`."""
    if path != STDIN and (os.path.isdir(path) or not os.path.exists(path)):
        raise InvalidInputError(f"{str(path)!r} is no file; give a file of JSON lines")


class _LineError(Exception):
    """What is wrong with one line."""


def _read_line(line: bytes, number: int, source: str | None, named: str, seen: Counter[bytes]) -> Imported:
    try:
        row = msgspec.json.decode(line)
        if not isinstance(row, dict):
            raise InvalidInputError(f"a {type(row).__name__}; one JSON object a line is allowed")
        _check_names(row, KEYS)
        fields = _Fields(row)
        sender = source or _sender(fields) or named
        quality = fields.take("quality", "reward")
        given = fields.take("id")
        made_up = _made_up_id(line, seen) if given is None else None
        made = _trajectory(fields, _id(given) if made_up is None else made_up.id, sender)
        return Imported(number, made, None if quality is None else _feedback(made, quality), made_up)
    except UnicodeDecodeError:  # its own position is one within a value
        raise _LineError(f"line {number}: {_not_utf8(line)}; {LINES_BEFORE}") from None
    # A number or a nesting beyond Python's limits are untyped ones.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _LineError(f"line {number}: {error}; {LINES_BEFORE}") from None


def _not_utf8(line: bytes) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start} (0x{line[error.start]:02x}) is not UTF-8; JSON lines are text in UTF-8"
    return "a text in it is not UTF-8; JSON lines are text in UTF-8"


def _check_names(row: Mapping[str, Any], names: Sequence[str], place: str = "") -> None:
    for key in row:
        if (name := meant(key, names)) is not None:
            raise InvalidInputError(
                f"{place}{shown(key)}: did you mean {name!r}? A field of your own of that name goes into 'metadata'"
            )


class _Fields:
    """A line's fields, and which of them were taken: the others go to the metadata."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._taken: set[str] = set()

    def take(self, *keys: str, kind: type = object) -> Any:
        """The value under the first of ``keys`` that holds one of ``kind``; None where none does."""
        for key in keys:
            if (value := self._row.get(key)) is not None and isinstance(value, kind):
                self._taken.add(key)
                return value
        return None

    def give_back(self, key: str) -> None:
        """Let it go to the metadata after all."""
        self._taken.discard(key)

    def rest(self) -> dict[str, Any]:
        """What nobody took."""
        return {key: value for key, value in self._row.items() if key not in self._taken and value is not None}


def _sender(fields: _Fields) -> str:
    """Who sent the line; empty where it names nobody."""
    sender = fields.take("source", "agent", "env")
    if sender is not None and not isinstance(sender, str):
        raise InvalidInputError(f"source: {shown(sender)}; a text is allowed")
    return sender or ""


def _id(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InvalidInputError(f"id: a {type(value).__name__}; a text or a number is allowed")
    return str(value)


def _made_up_id(line: bytes, seen: Counter[bytes]) -> MadeUpId:
    digest = hashlib.blake2b(line, digest_size=16).digest()
    seen[digest] += 1
    return MadeUpId(line, seen[digest])


def _feedback(trajectory: Trajectory, quality: float) -> Feedback:
    made = Feedback(
        trajectory_id=trajectory.id, quality=quality, id="import", giver="import", at_ns=trajectory.created_ns
    )
    digest = hashlib.blake2b(f"{made.quality!r} of {trajectory.id}".encode(), digest_size=16)
    return msgspec.structs.replace(made, id=digest.hexdigest())


def _trajectory(fields: _Fields, name: str, source: str) -> Trajectory:
    messages, response, after = _conversation(fields)
    given = fields.take("steps")
    steps = _steps(given, messages)
    if not response and given:
        response = "\n".join(str(_first(step, "action", "name") or "") for step in given).strip()
    return Trajectory(
        id=name,
        source=source,
        created_ns=_created_ns(fields),
        messages=messages,
        response=response,
        steps=steps,
        embedding=fields.take("embedding"),
        recalled=[] if (recalled := fields.take("recalled")) is None else _list(recalled, "recalled"),
        outcome=_outcome(fields, answered=bool(response) or not messages),
        metadata={**_metadata(fields), **({"followed_by": after} if after else {})},
    )


def _created_ns(fields: _Fields) -> int:
    for key in ("created_ns", "timestamp"):
        value = fields.take(key)
        found = _iso_ns(value) if isinstance(value, str) else _number_ns(value, exact=key == "created_ns")
        if found is not None:
            return found
        fields.give_back(key)
    return 0


def _number_ns(value: object, *, exact: bool) -> int | None:
    """A time as nanoseconds; unless it is ``exact``, its size tells its unit: each is 1000 of the one before."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**63:
        return None
    # Seconds stay below 1e11 until the year 5138; in milliseconds that is 1973.
    power = 0 if exact else next((9 - 3 * step for step in range(3) if value < 10 ** (11 + 3 * step)), 0)
    factor = int(10**power)
    return _in_range(value * factor if isinstance(value, int) else math.floor(value * factor))


def _iso_ns(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.fromtimestamp(0, UTC)
    except (ValueError, OverflowError):
        return None
    return _in_range(((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000)


def _in_range(ns: int) -> int | None:
    return ns if 0 <= ns < 2**63 else None


def _outcome(fields: _Fields, *, answered: bool) -> Outcome:
    given = fields.take("outcome")
    for outcome in OUTCOMES:
        if given == outcome:
            return outcome
    fields.give_back("outcome")
    return "completed" if answered else "abandoned"


def _conversation(fields: _Fields) -> tuple[tuple[Message, ...], str, str]:
    """The prompt's messages, the response, and what the conversation went on with after it."""
    response = _text(fields.take("response", "answer"), "response")
    given = fields.take("messages")
    if not given:
        prompt = fields.take("prompt", "task", "question", kind=str)
        if not prompt and fields.take("embedding") is None:
            _check_prompt(fields)
        return (to_messages(prompt) if prompt else ()), response, ""
    messages = to_messages([_openai_form(message) for message in _list(given, "messages")])
    if response:
        return messages, response, ""
    spoken = [
        place for place, message in enumerate(messages) if message.role == "assistant" and message.content.strip()
    ]
    if not spoken or not spoken[-1]:
        return messages, "", ""
    after = "\n".join(f"{message.role}: {message.content}" for message in messages[spoken[-1] + 1 :])
    return messages[: spoken[-1]], messages[spoken[-1]].content, after


def _check_prompt(fields: _Fields) -> None:
    """What stands in its place and is none goes to the metadata where there is another, and is an error where not."""
    for name in ("prompt", "task", "question"):
        if (value := fields.take(name)) is not None and not isinstance(value, str):
            raise InvalidInputError(f"{name}: {shown(value)}; a text is allowed; a conversation goes into 'messages'")


def _openai_form(message: object) -> object:
    """A message with neither text nor calls, which some logs hold, is an empty turn: it reads as one blank."""
    if not isinstance(message, Mapping):
        return message
    _check_names(message, MESSAGE_KEYS, "messages: ")
    kept = {key: value for key, value in message.items() if key in MESSAGE_KEYS}
    if (
        not kept.get("refusal")
        and not kept.get("content")
        and not kept.get("tool_calls")
        and kept.get("role") != "tool"
    ):
        kept["content"] = "(empty)"
    return kept


def _steps(given: object, messages: tuple[Message, ...]) -> list[Step]:
    if given:
        return [_step(step) for step in _list(given, "steps")]
    return [_call_step(call) for message in messages for call in message.tool_calls]


def _step(step: object) -> Step:
    if not isinstance(step, Mapping):
        raise InvalidInputError(f"steps: a {type(step).__name__}; objects are allowed")
    _check_names(step, STEP_KEYS, "steps: ")
    if hint := _hint(step, STEP_KEYS, 0.8):
        raise InvalidInputError(f"steps{hint}")
    content = "\n".join(str(step[key]) for key in ("thought", "action", "content", "observation") if step.get(key))
    return Step(
        name=_step_name(step),
        reward=step.get("reward"),
        latency_s=step.get("latency_s"),
        content=content,
        at_ns=0,
    )


def _step_name(step: Mapping[str, Any]) -> str:
    given = next((step[key] for key in ("name", "action") if step.get(key) not in (None, "")), None)
    if isinstance(given, str) and (name := given.partition("[")[0].strip()[:200]):
        return name
    if given is not None:
        raise InvalidInputError(f"steps: name: {shown(given)}; a text is allowed, with something before a '['")
    raise InvalidInputError(
        f"steps: one has no name; give each a 'name', or an 'action'{_hint(step, ('name', 'action'), 0.6)}"
    )


def _hint(step: Mapping[str, Any], names: Sequence[str], likeness: float) -> str:
    """Which of ``names`` a key of a step may have been meant for; it has no metadata that another one would go to."""
    for key in step:
        if key not in STEP_KEYS and key.removesuffix("s") not in STEP_KEYS:
            for name in difflib.get_close_matches(key, names, 1, cutoff=likeness):
                return f"; {shown(key)}: did you mean {name!r}?"
    return ""


def _call_step(call: ToolCall) -> Step:
    return Step(name=f"tool:{call.name}"[:200], content=call.arguments, at_ns=0)


def _metadata(fields: _Fields) -> dict[str, str]:
    given = fields.take("metadata") or {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"metadata: a {type(given).__name__}; an object of texts is allowed")
    return {
        str(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in {**fields.rest(), **given}.items()
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
