"""What msgspec says, in plain words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from sona.checks import SHOWN, did_you_mean, shown
from sona.wording import choices_of, wrong


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "tool"]
    size: Annotated[int, Meta(ge=1)] = 1


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: list[Inner] = []
    named: dict[str, Inner] = {}
    temperature: Annotated[float, Meta(le=2.0)] | None = None
    word: Annotated[str, Meta(min_length=1)] | list[int] = "a"
    few: Annotated[list[int], Meta(max_length=2)] = []
    optional: Inner | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner": [{"role": "king"}]}, "inner[0].role: 'king'; one of tool, user is allowed"),
        ({"named": {"a": {"role": "king"}}}, "named[...].role: 'king'; one of tool, user is allowed"),
        ({"optional": {"role": "king"}}, "optional.role: 'king'; one of tool, user is allowed"),
        ({"optional": {"roll": "user"}}, "optional.roll: unknown field; did you mean 'role'?"),
        ({"optional": {}}, "optional.role: missing"),
        ({"tempature": 1}, "tempature: unknown field; did you mean 'temperature'?"),
        ({"foo": 1}, "foo: unknown field"),
        ({"temperature": "x"}, "temperature: a number is allowed, not a text"),
        ({"temperature": 3.0}, "temperature: a number of at most 2.0 is allowed"),
        ({"inner": [{"role": "user", "size": 0}]}, "inner[0].size: a whole number of at least 1 is allowed"),
        ({"word": ""}, "word: a text of at least 1 characters is allowed"),
        ({"word": 5}, "word: a text or a list is allowed, not a whole number"),
        ({"few": [1, 2, 3]}, "few: a list of at most 2 entries is allowed"),
        ([], "an object is allowed, not a list"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_what_is_allowed(given: Any, message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(msgspec.json.encode(given), type=Outer)
    assert wrong(raised.value, Outer).message == message


def test_choices_are_those_of_texts_alone() -> None:
    assert choices_of(Literal["b", "a"] | None) == ["b", "a"]
    assert choices_of(Literal["a"] | int) == choices_of(int) == []


def test_a_name_that_is_far_from_all_is_none_of_them() -> None:
    assert did_you_mean("rol", ("role", "content")) == "; did you mean 'role'?"
    assert did_you_mean("foo", ("role", "content")) == ""


@pytest.mark.parametrize("value", ["x" * 1000, "x" * SHOWN, "\n" * 50, b"x" * 1000])
def test_a_text_that_is_cut_says_so_and_is_closed(value: str | bytes) -> None:
    assert len(shown(value)) <= SHOWN
    assert shown(value).endswith("'...")
    assert shown("x" * 70) == repr("x" * 70)
    assert shown([0] * 1000).endswith("...")
