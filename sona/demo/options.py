"""What a run of the demo depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from sona.config import Config, CycleConfig, ServeConfig, TrainConfig


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much traffic, and how many questions in the exam. The defaults take about a minute on one core."""

    new: int = 160
    """Queries of a cycle's new task."""
    earlier: int = 20
    """Queries of each task of the cycles before, in a cycle."""
    everyday: int = 5
    """Queries of each skill that the model came with, in a cycle."""
    exam: int = 60
    """Held-out queries of each task, and half as many of each skill; fewer where there are no more."""
    passes: float = 16.0
    """How often a cycle's training sees each new answer."""
    held_out_share: float = 0.2
    """Share of the traffic by which the gate judges; it is not trained on."""
    probes: int = 256
    """Answers of the base model to its own prompts: half to train on, half for the gate."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run, and where its results go."""

    out: Path = Path("sona-demo")
    """Folder of the results: missing, empty, or of an earlier run."""
    seed: int = 0
    """Of the agent's world, its traffic and its learning: from 0 to 2**31 - 1."""
    learning: bool = True
    """False records the same traffic and learns nothing from it."""
    json_path: Path | None = None
    """Where to write the headline figures, if anywhere."""
    size: DemoSize = DemoSize()
    console: Console = field(default_factory=Console)
    """Where the story is told."""

    def config(self) -> Config:
        """The engine's settings. The gate is the default one."""
        size = self.size
        return Config(
            seed=self.seed,
            # On a model this small a second thread waits more than it works. The CPU, so that everybody sees the same.
            serve=ServeConfig(device="cpu", threads=1, max_new_tokens=24),
            # Each task has one cycle to be learned in, where an agent's would have many.
            train=TrainConfig(passes=size.passes),
            cycle=CycleConfig(
                min_trajectories=min(64, size.new), held_out_share=size.held_out_share, probes=size.probes
            ),
        )
