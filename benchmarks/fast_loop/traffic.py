"""What is recorded: trajectories of two steps, with an embedding and perhaps token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sona.types import Message, Step, Trajectory

PROMPT = (Message(role="user", content="where is my order number 1234 please ?"),)
VOCABULARY = 500
"""Ids are below it: any model knows them."""


@dataclass(frozen=True)
class Traffic:
    """Parts of trajectories, made before anything is timed."""

    embeddings: np.ndarray[Any, np.dtype[np.float32]]
    """(count, width)"""
    ids: list[np.ndarray[Any, np.dtype[np.int32]]]
    """Half of each trajectory's token ids; empty where it brings none."""

    @classmethod
    def of(cls, count: int, width: int, tokens: int, seed: int) -> Traffic:
        """``count`` trajectories with ``tokens`` ids each, half of them the prompt's."""
        rng = np.random.default_rng(seed)
        embeddings = rng.standard_normal((count, width)).astype(np.float32)
        halves = rng.integers(0, VOCABULARY, (count, tokens // 2)).astype(np.int32)
        return cls(embeddings, list(halves) if tokens else [])

    def trajectory(self, place: int, id: str) -> Trajectory:
        """One of them, built and checked as a host would."""
        ids = self.ids[place] if self.ids else None
        return Trajectory(
            id=id,
            source="bench",
            messages=PROMPT,
            response="it is on its way",
            prompt_ids=ids,
            response_ids=ids,
            embedding=self.embeddings[place],
            steps=(Step(name="tool:lookup", reward=0.9), Step(name="tool:send", reward=0.1)),
        )
