"""What msgspec says of a wrong value, in the words that all messages here use: what is allowed, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from msgspec import inspect

from sona.checks import did_you_mean

_PATH = re.compile(r" - at `(?:key in )?\$(.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(?:\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_ENUM = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kind>[^`]+)`(?: of length)?(?: (?P<sign>>=|<=|>|<) (?P<bound>\S+))?")
_GOT = re.compile(r", got `([^`]+)`")

_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "nothing",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_LENGTHS = {"str": "characters", "array": "entries", "object": "entries"}


class Wrong(NamedTuple):
    """What is wrong with a value."""

    path: str
    """Where it lies, such as ``messages[0].role``; "" where it is the whole."""
    why: str
    """What is allowed."""
    code: str
    """``unknown_parameter``, ``missing_required_parameter`` or ``invalid_type``, for a program."""

    @property
    def message(self) -> str:
        """Both."""
        return f"{self.path}: {self.why}" if self.path else self.why


def wrong(error: BaseException, kind: Any) -> Wrong:
    """What ``error``, of msgspec's, says of a value that was to be a ``kind``; what a record's checks said stays."""
    text = str(error)
    found = _PATH.search(text)
    path, what = (found.group(1).lstrip("."), text[: found.start()]) if found else ("", text)
    if named := _UNKNOWN.fullmatch(what):
        near = did_you_mean(named.group(1), _fields(_at(kind, path)))
        return Wrong(f"{path}.{named.group(1)}".lstrip("."), f"unknown field{near}", "unknown_parameter")
    if named := _MISSING.fullmatch(what):
        return Wrong(f"{path}.{named.group(1)}".lstrip("."), "missing", "missing_required_parameter")
    if named := _ENUM.fullmatch(what):
        allowed = ", ".join(map(str, _choices(_at(kind, path))))
        why = f"{named.group(1)}; one of {allowed} is allowed" if allowed else f"{named.group(1)} is not allowed"
        return Wrong(path, why, "invalid_type")
    return Wrong(path, _expected(what), "invalid_type")


def _expected(what: str) -> str:
    found = _EXPECTED.match(what)
    if found is None:
        return f"{what[:1].lower()}{what[1:]}"
    kinds = [kind for kind in found["kind"].split(" | ") if kind != "null"]
    allowed = " or ".join(_KINDS.get(kind, kind) for kind in kinds)
    if found["sign"] is not None:
        length = "of length" in what
        allowed += f" of {_BOUNDS[found['sign']]} {found['bound']}"
        allowed += f" {_LENGTHS.get(kinds[0], 'entries')}" if length else ""
    elif " matching " in what:
        allowed += f" {what[what.index('matching') :]}"
    got = _GOT.search(what)
    return f"{allowed} is allowed" + (f", not {_KINDS.get(got.group(1), got.group(1))}" if got else "")


def _at(kind: Any, path: str) -> list[inspect.Type]:
    """What may lie at ``path`` within a ``kind``; [] where that can't be told."""
    found = _parts(inspect.type_info(kind))
    for step in _STEP.finditer(path if path.startswith("[") else f".{path}" if path else ""):
        found = [part for one in found for part in _within(one, step.group(1))]
    return found


def _within(one: inspect.Type, field: str | None) -> list[inspect.Type]:
    if field is None:
        inner = getattr(one, "item_type", None) or getattr(one, "value_type", None)
        return [] if inner is None else _parts(inner)
    named = [part.type for part in getattr(one, "fields", ()) if part.encode_name == field]
    return [part for kind in named for part in _parts(kind)]


def _parts(one: inspect.Type) -> list[inspect.Type]:
    if isinstance(one, inspect.UnionType):
        return [part for each in one.types for part in _parts(each)]
    return _parts(one.type) if isinstance(one, inspect.Metadata) else [one]


def _fields(kinds: Sequence[inspect.Type]) -> list[str]:
    return [field.encode_name for one in kinds for field in getattr(one, "fields", ())]


def choices_of(kind: Any) -> list[str]:
    """The texts that a value of this kind may be, as they were written; [] where it may be other things."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    parts = [part for part in get_args(kind) if part is not type(None)]  # of `... | None`
    return choices_of(parts[0]) if len(parts) == 1 else []


def _choices(kinds: Sequence[inspect.Type]) -> list[object]:
    return [value for one in kinds if isinstance(one, inspect.LiteralType) for value in one.values]
