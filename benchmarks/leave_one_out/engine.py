"""``engine.memories``: a conversation whose turns are scored as they are recorded, templates and all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import sona.tiny
from benchmarks.leave_one_out.model import random_model
from sona.attribution.turns import ScoredResponse
from sona.attribution.weights import WeightsInMemory
from sona.candidate import MemoryWeight
from sona.config import CandidatesConfig, ServeConfig
from sona.memories import Memories
from sona.memory_spans import METADATA_KEY, MemorySpan, spans_as_text
from sona.serving.local import LocalModel
from sona.tiny.lexicon import CLASSES
from sona.types import Message, Trajectory

TURNS, MEMORIES = 8, 2
VOCAB = 1536
"""Of the shipped model's tokenizer."""
WEIGHTS = Path(sona.tiny.__file__).parent / "weights"
KEPT = CandidatesConfig().live_bytes


class _Rows(WeightsInMemory):
    """The weights of one source."""

    def of(self, source: str) -> _Rows:
        return self

    def get(self, key: str, source: str = "default") -> MemoryWeight | None:
        return self.weight_of(key)


def talk(seed: int) -> list[Trajectory]:
    """About 2,000 random words, as in :func:`benchmarks.leave_one_out.scenario.conversation`, interleaved."""
    rng = np.random.default_rng(seed)
    words = [word for group in CLASSES.values() for word in group]

    def some(low: int, high: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(low, high))))

    said: list[Message] = [Message(role="system", content=some(80, 121))]
    spans: list[MemorySpan] = []
    turns = []
    for turn in range(TURNS):
        text = ""
        for memory in range(MEMORIES):
            note = some(30, 71)
            spans.append(MemorySpan(f"{turn}.{memory}", len(said), len(text), len(text) + len(note)))
            text += note + " "
        said.append(Message(role="user", content=text + some(40, 81)))
        answer = some(60, 96)
        metadata = {METADATA_KEY: spans_as_text(spans)}
        turns.append(Trajectory(messages=tuple(said), response=answer, metadata=metadata))
        said.append(Message(role="assistant", content=answer))
    return turns


@contextmanager
def served(seed: int) -> Iterator[LocalModel]:
    """The random model with the shipped one's tokenizer and template."""
    with TemporaryDirectory() as folder:
        random_model(VOCAB, seed).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(WEIGHTS / name, folder)
        model = LocalModel(folder, ServeConfig(device="cpu", threads=1))
        try:
            yield model
        finally:
            model.close()


def engine(seed: int, rounds: int) -> tuple[float, float, float]:
    """CPU seconds of all turns, each read from its beginning and read on from the last one (the best of the rounds,
    which take turns), and the largest difference of a response's divergence, in nats.
    """
    torch.set_num_threads(1)
    turns, seconds, worst = talk(seed), dict[int, list[float]]({0: [], KEPT: []}), 0.0
    with served(seed) as model:
        for _ in range(rounds):
            found: list[list[ScoredResponse]] = []
            for kept, took in seconds.items():
                memories = Memories(_Rows(), model, CandidatesConfig(live_bytes=kept), _nowhere)  # type: ignore[arg-type]
                assert memories.noise_floor > 0  # which finds the way and warms up
                began = time.process_time()
                found.append([one for turn in turns for one in memories.score_turn(turn)])
                took.append(time.process_time() - began)
            gaps = [abs(one.divergence - other.divergence) for one, other in zip(*found, strict=True)]
            worst = max(worst, *gaps)
    return min(seconds[0]), min(seconds[KEPT]), worst


def _nowhere(trajectory_id: str) -> object:
    raise LookupError(trajectory_id)
