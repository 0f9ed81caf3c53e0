"""The short form of every scenario; ``make crash`` runs the long one."""

import pytest

from tests.crash.scenarios import SCENARIOS, play

SLOW = ("kill-engine",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SCENARIOS]
)
def test_nothing_is_lost_trained_twice_or_undetected(name: str) -> None:
    run = play(name, SCENARIOS[name].short)
    if run.skipped is not None:
        pytest.skip(run.skipped)
    assert run.counts.sound, "\n".join(run.counts.notes[:20])
    assert run.counts.kills + run.counts.faults > 0
