"""All scenarios, and how often each is run in the short and in the long form."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from tests.crash import (
    clock,
    damage,
    failing_disk,
    killed_engine,
    killed_host,
    killed_learner,
    killed_server,
    model,
    power_loss,
    system_calls,
    two_processes,
)
from tests.crash.nursery import Nursery
from tests.crash.run import Run


class Scenario(NamedTuple):
    """What is done, and its rounds."""

    play: Callable[[Run], None]
    short: int
    long: int


SCENARIOS = {
    "kill-recording": Scenario(killed_host.kill_recording, 8, 250),
    "kill-recycling": Scenario(killed_host.kill_recycling, 8, 250),
    "kill-committing": Scenario(killed_host.kill_committing, 5, 150),
    "kill-cycles": Scenario(killed_host.kill_cycles, 8, 250),
    "kill-pruning": Scenario(killed_host.kill_pruning, 6, 150),
    "kill-opening": Scenario(killed_host.kill_opening, 5, 120),
    "kill-closing": Scenario(killed_host.kill_closing, 5, 120),
    "kill-migrating": Scenario(killed_host.kill_migrating, 4, 60),
    "kill-in-calls": Scenario(system_calls.kill_in_system_calls, 8, 500),
    "fail-in-calls": Scenario(system_calls.fail_system_calls, 8, 400),
    "lose-power": Scenario(power_loss.lose_power, 40, 1500),
    "lose-power-pruning": Scenario(power_loss.lose_power_pruning, 20, 600),
    "fail-at-work": Scenario(failing_disk.fail_at_work, 4, 100),
    "fail-to-migrate": Scenario(failing_disk.fail_to_migrate, 10, 200),
    "fill-the-disk": Scenario(failing_disk.fill_the_disk, 4, 150),
    "damage-database": Scenario(damage.damage_database, 50, 2000),
    "damage-blobs": Scenario(damage.damage_blobs, 40, 1000),
    "damage-log": Scenario(damage.damage_log, 20, 500),
    "damage-journal": Scenario(damage.damage_journal, 40, 2000),
    "beside-a-reader": Scenario(two_processes.kill_beside_a_reader, 6, 120),
    "kill-readers": Scenario(two_processes.kill_readers, 5, 100),
    "clock-steps-back": Scenario(clock.step_back, 3, 60),
    "follow-the-model": Scenario(model.follow_the_model, 8, 150),
    "kill-engine": Scenario(killed_engine.kill_engine, 4, 40),
    "kill-learner": Scenario(killed_learner.kill_learner, 3, 100),
    "kill-server": Scenario(killed_server.kill_server, 1, 30),
}


def play(name: str, rounds: int, seed: int = 0) -> Run:
    """Run one scenario in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sona-crash-") as scratch, Nursery() as nursery, _quiet():
        run = Run(rounds, Path(scratch), nursery, random.Random(crc32(f"{name} {seed}".encode())))
        SCENARIOS[name].play(run)
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the thousands of warnings that are the very point."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)
