"""What the bank sees of a trajectory: its routes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sona.loops.members import LONGEST_ROUTE, MOST_ROUTES, members_of, routes_of
from sona.ports import Stored
from sona.types import Step, Trajectory


def went(*steps: str, **metadata: str) -> Trajectory:
    return Trajectory(messages="q", response="a", steps=[Step(name=name) for name in steps], metadata=metadata)


def test_routes_are_what_metadata_and_steps_name_each_once() -> None:
    trajectory = went(
        "tool:lookup", "think", "tool:lookup", "mcp.server:find", plan="ask-first", user="eve", model="a b"
    )
    assert routes_of(trajectory) == ("model:a b", "plan:ask-first", "tool:lookup", "mcp.server:find")
    assert routes_of(went("model:small", model="small")) == ("model:small",)


@pytest.mark.parametrize("name", ["think", ":x", "tool:", "tool: x", "https://a.b", "a b:c", "1:2", "tool:a\nb", "é:x"])
def test_other_names_are_no_routes(name: str) -> None:
    assert routes_of(went(name)) == ()


def test_a_text_is_no_route() -> None:
    assert routes_of(went(prompt="You are a helpful assistant. " * 10, model=" ", route="")) == ()
    assert routes_of(went("tool:" + "x" * (LONGEST_ROUTE - 5))) != ()
    assert routes_of(went("tool:" + "x" * (LONGEST_ROUTE - 4))) == ()


def test_their_number_is_bounded() -> None:
    assert len(routes_of(went(*(f"tool:{number}" for number in range(100))))) == MOST_ROUTES


@given(st.lists(st.text(min_size=1, max_size=200).filter(lambda name: name.strip() and "\x00" not in name)))
def test_any_names_give_routes_that_the_bank_takes(names: list[str]) -> None:
    try:
        trajectory = went(*names)
    except ValueError:  # half of a surrogate pair
        return
    routes = routes_of(trajectory)
    assert len(set(routes)) == len(routes) <= MOST_ROUTES
    assert all(0 < len(route) <= LONGEST_ROUTE and ":" in route for route in routes)


def test_a_member_has_its_routes_and_what_it_recalled() -> None:
    trajectory = Trajectory(embedding=[1.0, 2.0], steps=[Step(name="tool:x")], recalled=["p1", "l1-0"])
    (member,) = members_of([Stored(seq=1, trajectory=trajectory, quality=0.5)], None, None)
    assert (member.routes, member.recalled) == (("tool:x",), ("p1", "l1-0"))
