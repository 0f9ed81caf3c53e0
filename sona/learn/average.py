"""Slow weights: a running average of what the optimizer steps through, which forgets less than its last point."""

from __future__ import annotations

import torch
from torch import Tensor


class Average:
    """s ← d s + (1 − d) θ from s = 0; its value s / (1 − dᵗ) weighs only the t vectors added (Kingma, Ba 2015, §3)."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, vector: Tensor) -> None:
        """Take in ``vector`` (P,); it is copied."""
        if self._sum is None:
            self._sum = torch.zeros_like(vector)
        self._sum.lerp_(vector, 1.0 - self._decay)
        self._count += 1

    def value(self, default: Tensor) -> Tensor:
        """The average (P,), or ``default`` where nothing was added."""
        return default if self._sum is None else self._sum / (1.0 - self._decay**self._count)
