"""How many greedy tokens change with what stands beside an answer."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.serving.voices import versions
from sona.checks import Int32
from sona.config import ServeConfig
from sona.ports import Served
from sona.serving.local import LocalModel
from sona.serving.request import Answering
from sona.types import Reply

SIZES = (3, 8, 20, 40)
LENGTHS = (3, 9, 15, 17, 40, 90, 130)
TOKENS = (5, 20, 40, 70)


@dataclass
class Result:
    """Of answers in random batches against the same alone."""

    tokens: int = 0
    differ: int = 0
    """Tokens that differ from the answer alone, from the first one on."""
    largest: float = 0.0
    """The largest difference of a log-probability up to there, in nats."""


def measure(seed: int, tokens: int) -> Result:
    """Batches of random sizes, of random prompts and versions that join at random moments, and each answer alone."""
    rng, result = Random(seed), Result()
    with tempfile.TemporaryDirectory() as folder:
        model = LocalModel("tiny", ServeConfig(device="cpu", threads=1))
        served = {"v0": Served({}), **versions(model, Path(folder), 3)}
        while result.tokens < tokens:
            asked = [_ask(rng) for _ in range(rng.choice(SIZES))]
            begun = list[Answering]()
            for version, prompt, limit in asked:
                begun.append(_begin(model, served, version, prompt, limit))
                if rng.random() < 0.3:
                    time.sleep(0.02 * rng.random())
            together = [one.result() for one in begun]
            for one, reply in zip(asked, together, strict=True):
                _note(result, reply, _begin(model, served, *one).result())
        model.close()
    return result


def _ask(rng: Random) -> tuple[str, Int32, int]:
    prompt = np.array([rng.randrange(5, 1500) for _ in range(rng.choice(LENGTHS))], dtype=np.int32)
    return rng.choice(("v0", "v1", "v2", "v3")), prompt, rng.choice(TOKENS)


def _begin(model: LocalModel, served: dict[str, Served], version: str, prompt: Int32, limit: int) -> Answering:
    model.swap(version, served[version])
    return model.stream(prompt, max_new_tokens=limit, logprobs=0)


def _note(result: Result, together: Reply, alone: Reply) -> None:
    for place, (ours, theirs) in enumerate(zip(together.tokens, alone.tokens, strict=False)):
        if ours.id != theirs.id:
            result.differ += len(alone.tokens) - place
            break
        assert ours.logprob is not None
        assert theirs.logprob is not None
        result.largest = max(result.largest, abs(ours.logprob - theirs.logprob))
    result.tokens += len(alone.tokens)
