"""One method's way through a stream: record, learn, examine, chunk after chunk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import sona
from benchmarks.examiner import SHIPPED, Examiner, Marks
from benchmarks.intent_stream import IntentStream, Recorded
from benchmarks.word_vectors import WordVectors
from sona.config import Config, CycleConfig, GateConfig, ServeConfig, SkillsConfig, TrainConfig
from sona.loops.version_files import read_served
from sona.storage.versions import Versions
from sona.types import CycleReport, Message

Settings = Callable[[int], Config]
"""The settings of the cycle with this number, from 0."""

CPU = ServeConfig(device="cpu")


@dataclass(frozen=True)
class Course:
    """What a method came to."""

    marks: tuple[Marks, ...]
    """After each cycle, of the version then in force."""
    reports: tuple[CycleReport, ...]
    cpu_s: float
    """CPU time of the cycles alone, which other load on the machine does not stretch."""

    @property
    def steps(self) -> list[int]:
        """Optimizer steps of each cycle, whether or not it was published."""
        return [int(report.metrics.get("steps", 0)) for report in self.reports]

    def count(self, status: str) -> int:
        """Cycles that ended so."""
        return sum(report.status == status for report in self.reports)


def as_it_comes(seed: int, mode: Literal["auto", "shared"] = "auto") -> Settings:
    """The default settings, the gate included, but for the form of the skills."""
    return lambda _: Config(seed=seed, serve=CPU, skills=SkillsConfig(mode=mode))


def unprotected(seed: int, steps: Sequence[int]) -> Settings:
    """One adapter for everything, without EWC++, replay, probes and gate; with as many steps in each cycle as told."""

    def settings(cycle: int) -> Config:
        exactly = steps[cycle]
        train = TrainConfig(ewc_lambda=0.0, replay_share=0.0, probe_share=0.0, min_steps=exactly, max_steps=exactly)
        shared, gate, without_probes = SkillsConfig(mode="shared"), GateConfig(enabled=False), CycleConfig(probes=0)
        return Config(seed=seed, serve=CPU, skills=shared, train=train, gate=gate, cycle=without_probes)

    return settings


def travel(
    stream: IntentStream,
    model: str,
    settings: Settings,
    examiner: Examiner,
    vectors: WordVectors | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Course:
    """Go through the stream in a store of its own.

    The engine is opened anew for each cycle, so that a baseline can be given its number of steps cycle by cycle.

    Args:
        stream: what is recorded.
        model: ``shipped``, or a folder.
        settings: of each cycle.
        examiner: asked after each cycle.
        vectors: embed the queries; None leaves that to the model.
        progress: told a line after each cycle.
    """
    marks, reports, cpu_s = [], [], 0.0
    with tempfile.TemporaryDirectory(prefix="sona-bench-") as folder:
        for cycle, chunk in enumerate(stream.chunks):
            with sona.open_sync(folder, model="tiny" if model == SHIPPED else model, config=settings(cycle)) as engine:
                for place, recorded in enumerate(chunk):
                    engine.record(as_trajectory(recorded, f"{cycle}-{place}", vectors), quality=recorded.quality)
                engine.flush()
                began = time.process_time()
                reports.append(engine.learn())
                cpu_s += time.process_time() - began
                version = engine.version.id
            marks.append(examiner.mark(read_served(Versions(folder), version)))
            what = f"cycle {cycle + 1} of {len(stream.chunks)} ({stream.chunk_domains[cycle]})"
            progress(f"{what}: {reports[-1].status}, accuracy {marks[-1].mean:.3f}, {reports[-1].reason}")
    return Course(tuple(marks), tuple(reports), cpu_s)


def as_trajectory(recorded: Recorded, name: str, vectors: WordVectors | None = None) -> sona.Trajectory:
    """As a host would hand it over, under the id ``name``."""
    query = recorded.query
    return sona.Trajectory(
        id=name,
        source=query.domain,
        messages=[Message(role="user", content=query.text)],
        response=recorded.response,
        embedding=None if vectors is None else vectors.embed(query.text),
    )
