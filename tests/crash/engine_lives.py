"""A whole host until it is killed: it records, learns and publishes with the shipped model.

Importing torch and transformers takes far longer than a cycle here; whoever forks these lives has imported them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unittest import mock

from msgspec.structs import replace

import sona
import sona.loops.cycle
import sona.serving.local
import sona.sync  # here once for all lives, as the two above
from sona.candidate import Settled
from sona.errors import UnknownIdError
from sona.ports import Claim
from sona.storage.store import Store
from sona.types import CycleReport, Progress, Version
from tests.crash.ledger import Told
from tests.engine.small import SMALL, WORLD, open_small

QUICK = replace(SMALL, train=replace(SMALL.train, max_steps=12))
BATCH = 30


def host(told: Told, folder: str, number: int) -> None:
    """Record a batch under ids of this life's own, flush, run a cycle; and so on."""
    with mock.patch.object(Store, "commit_cycle", _telling(told)), open_small(Path(folder), config=QUICK) as engine:

        def say(progress: Progress) -> None:
            told.says(f"stage {progress.stage.split(':')[0]}")

        before = [f"{number - 1}-0-{place}" for place in range(BATCH)]
        for batch in range(1000):
            for name in before[::5]:  # every second was left out and is corrected; the others stay trained on
                with suppress(UnknownIdError):  # the kill was faster
                    engine.feedback(name, quality=1.0)
            before = _record(engine, number, batch)
            engine.flush()
            for name in before:
                told.durable(name)
            report = engine.learn(say)
            told.says(f"cycle {report.status}")


def _record(engine: sona.SyncEngine, number: int, batch: int) -> list[str]:
    ids = []
    for place, example in enumerate(WORLD.sample("tool_call", BATCH, 1000 * number + batch)):
        ids.append(f"{number}-{batch}-{place}")
        made = sona.Trajectory(id=ids[-1], messages=example.prompt, response=example.response)
        engine.record(made, quality=1.0 if place % 10 else 0.1)
    return ids


def _telling(told: Told) -> object:
    """``Store.commit_cycle``, told of before and after."""
    commit = Store.commit_cycle

    def commit_cycle(
        self: Store,
        report: CycleReport,
        claims: Sequence[Claim],
        version: Version | None,
        settled: Sequence[Settled] = (),
    ) -> None:
        told.begins(report.cycle, [claim.seq for claim in claims if claim.role != "left_out"])
        commit(self, report, claims, version, settled)
        told.committed(report.cycle)

    return commit_cycle


def finish(told: Told, folder: str) -> None:
    """One quiet run takes what is left, and then there is nothing new any more."""
    with mock.patch.object(Store, "commit_cycle", _telling(told)), open_small(Path(folder)) as engine:
        engine.learn()
        assert engine.status().store.uncollected < 2 * BATCH
        folders = {path.name for path in (Path(folder) / "versions").iterdir()}
        assert folders <= {version.id for version in engine.versions()}, "a killed cycle left a folder behind"
