"""The product on a stream, through its own path: record, flush, cycle, swap, answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.forgetting.stream import Hour
from benchmarks.forgetting.world import Question
from sona.config import Config, config_from
from sona.loops.cycle import CycleContext, run_cycle
from sona.parts import Parts
from sona.types import CycleReport, Feedback, Trajectory

ANSWERED_AT_ONCE = 256
SETTINGS: dict[str, dict[str, Any]] = {
    "sona": {},
    "sona_shared": {"skills": {"mode": "shared"}},
    "sona_no_ewc": {"train": {"ewc_lambda": 0.0}},
}
"""By the method's name what differs from the default settings."""


def settings(method: str, seed: int) -> Config:
    """Of a method."""
    return config_from({"seed": seed, "serve": {"device": "cpu"}, **SETTINGS[method]})


class SonaRun:
    """A store of its own in a temporary folder, for the length of a ``with`` block."""

    def __init__(self, model: Path, config: Config) -> None:
        self.reports: list[CycleReport] = []
        """Of each hour's cycle."""
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="sona-bench-")
        self._parts = Parts.start(Path(self._folder.name), model, config)

    def __enter__(self) -> SonaRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()
        self._folder.cleanup()

    def learn(self, hour: Hour) -> None:
        """Record the hour, run a cycle, and serve what it published. No task's name is recorded."""
        parts = self._parts
        for place, one in enumerate(hour):
            prompt, response = (np.asarray(ids, dtype=np.int32) for ids in (one.prompt, one.response))
            name = f"{len(self.reports)}-{place}"
            trajectory = Trajectory(id=name, prompt_ids=prompt, response_ids=response)
            parts.fast.record(trajectory, Feedback(trajectory_id=trajectory.id, quality=one.reward))
        parts.writer.flush()
        self.reports.append(run_cycle(CycleContext(parts.store, parts.folders, parts.model, self._config)))
        if self.reports[-1].version is not None:
            parts.serve_current(fall_back=self.reports[-1].parent)

    def end_task(self) -> None:
        """It is not told of boundaries."""

    def share_right(self, questions: Sequence[Question]) -> float:
        """As served: whole answers, written token by token."""
        model = self._parts.model
        assert model is not None
        room = max(len(one.answer) for one in questions)
        right = 0
        for start in range(0, len(questions), ANSWERED_AT_ONCE):
            asked = questions[start : start + ANSWERED_AT_ONCE]
            prompts = [np.asarray(one.prompt, dtype=np.int32) for one in asked]
            replies = model.generate_batch(prompts, max_new_tokens=room)
            right += sum(reply.token_ids == one.answer for reply, one in zip(replies, asked, strict=True))
        return right / len(questions)
