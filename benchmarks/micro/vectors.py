"""Micro-LoRA on plain vectors: ours by pattern, ours with a single pair, and the peer's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.micro.episode import Episode, Floats
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.config import BankConfig, MicroConfig
from sona.learn.micro import SHARED, MicroLora

PEERS = Path(__file__).resolve().parent.parent / "peers"
PEER_RATES = (0.001, 0.05)
"""The package's own learning rate, and a large one."""


class Played(NamedTuple):
    """What a learner made of an episode."""

    scores: Floats
    """(1 + feedbacks, contexts) how far the outputs of each context's probes point along the axis, on average."""
    update_us: float
    apply_us: float


def play(episode: Episode, key: Callable[[Floats], str]) -> Played:
    """Ours: ``key`` names a query's pattern."""
    micro = MicroLora(MicroConfig(enabled=True))
    axis = episode.axis.astype(np.float32)
    updates, applies = list[float](), list[float]()
    scores = [_scores(micro, episode, key, applies)]
    for step in episode.steps:
        x, direction = step.x.astype(np.float32), step.answer * axis
        pattern = key(step.x)
        began = time.perf_counter()
        micro.learn(x, direction, step.quality - 0.5, pattern)
        updates.append(time.perf_counter() - began)
        scores.append(_scores(micro, episode, key, applies))
    return Played(np.array(scores), 1e6 * float(np.median(updates)), 1e6 * float(np.median(applies)))


def _scores(micro: MicroLora, episode: Episode, key: Callable[[Floats], str], applies: list[float]) -> list[float]:
    means = []
    for probes in episode.probes:
        outputs = []
        for probe in probes:
            x, pattern = probe.astype(np.float32), key(probe)
            began = time.perf_counter()
            outputs.append(micro.apply(x, pattern))
            applies.append(time.perf_counter() - began)
        means.append(float(np.mean([output @ episode.axis for output in outputs])))
    return means


def one_for_all(query: Floats) -> str:
    """A single pair, whatever is asked."""
    return SHARED


def by_pattern(episode: Episode) -> Callable[[Floats], str]:
    """The pattern that a reasoning bank, which saw the earlier queries without labels, has nearest to a query."""
    members = [Member(str(place), row.astype(np.float32), None, "", "") for place, row in enumerate(episode.earlier)]
    bank = Bank().learn(members, BankConfig(), cycle=1, seed=0).bank

    def key(query: Floats) -> str:
        (nearest,) = bank.nearest(query.astype(np.float32)[None])
        assert nearest is not None
        return nearest.id

    return key


def peer_is_missing() -> str:
    """Why the peer can't be measured; empty where it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    installed = (PEERS / "node_modules" / "@ruvector" / "sona").is_dir()
    return "" if installed else "@ruvector/sona is not installed (make peers)"


def play_peer(episode: Episode, rate: float) -> Played:
    """@ruvector/sona, at rank 1 and this learning rate."""
    asked = {
        "dim": len(episode.axis),
        "rank": 1,
        "rate": rate,
        "axis": episode.axis.tolist(),
        "probes": [probe.tolist() for probes in episode.probes for probe in probes],
        "feedbacks": [
            {"x": step.x.tolist(), "answer": (step.answer * episode.axis).tolist(), "reward": step.quality}
            for step in episode.steps
        ],
    }
    done = subprocess.run(
        ["node", str(PEERS / "ruvector_micro.mjs")], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    scores = np.array(told["scores"]).reshape(1 + len(episode.steps), len(episode.probes), -1).mean(axis=2)
    return Played(scores, told["update_us"], told["apply_us"])
