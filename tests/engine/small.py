"""Settings and traffic small enough that a whole cycle takes a second."""

from pathlib import Path

import sona
from sona.config import Config, CycleConfig, GateConfig, ServeConfig, TrainConfig
from sona.tiny import AgentWorld

SMALL = Config(
    seed=1,
    serve=ServeConfig(device="cpu", threads=1),
    train=TrainConfig(batch_size=16, passes=4, max_steps=30, min_steps=5),
    gate=GateConfig(min_held_out=4, min_retention=0.5, bootstrap_samples=200),
    cycle=CycleConfig(min_trajectories=24, probes=16, probe_tokens=16),
)
WORLD = AgentWorld(3)


def open_small(store: Path, model: str | None = "tiny", config: Config = SMALL) -> sona.SyncEngine:
    return sona.open_sync(store, model=model, config=config)


def record_task(engine: sona.SyncEngine, count: int, seed: int, task: str = "tool_call") -> list[str]:
    """Record right answers to one task, and return the trajectories' ids."""
    ids = []
    for example in WORLD.sample(task, count, seed):
        trajectory = sona.Trajectory(messages=example.prompt, response=example.response, source=task)
        assert engine.record(trajectory, quality=1.0) == "recorded"
        ids.append(trajectory.id)
    return ids
