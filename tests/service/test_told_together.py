"""What is there at once is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sona.service.answers import _Arrivals, _Bell
from sona.service.sse import EventWriter, ReaderStalledError
from sona.types import Token

pytestmark = pytest.mark.anyio


class Loop:
    """One that is never quick to wake."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def soon(self, call: Callable[[], object]) -> None:
        self.calls.append(call)


class Wire:
    """Where messages go; with ``stuck`` nowhere."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self._stuck = stuck

    async def send(self, message: Any) -> None:
        if self._stuck:
            await anyio.sleep_forever()
        self.sent.append(message)


async def test_a_loop_is_woken_once_for_all_that_ring_before_it_is_awake() -> None:
    bell, loop = _Bell(), Loop()
    bell._loop = loop  # type: ignore[assignment]
    arrivals = [_Arrivals(bell) for _ in range(3)]
    for one in (*arrivals, *arrivals):
        one.put(Token(id=1))
    assert len(loop.calls) == 1
    loop.calls.pop()()
    assert all(one._looked.is_set() for one in arrivals)
    arrivals[0].put(Token(id=2))
    assert len(loop.calls) == 1, "and again for what comes later"


async def test_events_that_are_held_are_written_with_what_follows() -> None:
    wire = Wire()
    with EventWriter(wire.send) as writer:
        await writer.begin()
        writer.hold("one")
        await writer.data("two", event="news")
        writer.hold("three")
        await writer.end()
    start, *bodies = wire.sent
    assert start["type"] == "http.response.start"
    assert [(one["body"], one["more_body"]) for one in bodies] == [
        (b"data: one\n\nevent: news\ndata: two\n\n", True),
        (b"data: three\n\n", False),
    ]


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    with (
        anyio.fail_after(10),
        pytest.raises(ReaderStalledError),
        EventWriter(Wire(stuck=True).send, timeout_s=0.05) as writer,
    ):
        await writer.data("one")


async def test_a_model_that_takes_its_time_is_not_taken_for_a_slow_reader() -> None:
    wire = Wire()
    with EventWriter(wire.send, timeout_s=0.05) as writer:
        await writer.data("one")
        await anyio.sleep(0.2)
        await writer.end()
    assert len(wire.sent) == 2
