"""Which new trajectories are kept from training, to judge by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from sona.checks import Int32
from sona.loops.screen import Ready


class Split(NamedTuple):
    """A partition of what can be trained on."""

    train: list[Ready]
    held_out: list[Ready]


def split(ready: Sequence[Ready], share: float, seed: int) -> Split:
    """About ``share`` of the prompts are held out.

    A hash of the prompt decides, so that the same question never stands on both sides, in this cycle or any other.
    """
    parts = Split([], [])
    for item in ready:
        (parts.held_out if _unit_hash(item.prompt, seed) < share else parts.train).append(item)
    return parts


def _unit_hash(prompt: Int32, seed: int) -> float:
    """A number in [0, 1) that depends on the tokens and the seed alone."""
    digest = hashlib.blake2b(prompt.astype("<i4").tobytes(), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64
