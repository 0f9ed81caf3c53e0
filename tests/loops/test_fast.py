"""For how long a host is quiet."""

from __future__ import annotations

import time

import pytest

from sona.loops.fast import FastLoop
from sona.types import Feedback, Trajectory


class Inbox:
    """Takes all."""

    last_s = 0.0

    def put(self, record: Trajectory | Feedback, feedback: Feedback | None = None) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_host_is_quiet_since_it_last_asked_or_recorded(clock: list[float]) -> None:
    fast = FastLoop(inbox := Inbox(), width=None, vocab_size=None)
    clock[0] += 7.0
    assert fast.quiet_s == 7.0  # since it was opened
    fast.asked()
    clock[0] += 2.0
    assert fast.quiet_s == 2.0
    inbox.last_s = clock[0] - 0.5
    assert fast.quiet_s == 0.5
    inbox.last_s -= 10.0
    assert fast.quiet_s == 2.0
