"""What leaving something out does to the responses: log p(with) - log p(without), summed over each one's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Effect:
    """On one response."""

    index: int
    """Its segment."""
    nats: float
    """Signed: above 0 what was left out made the response likelier."""
    tokens: int
    """The response's, without thinking."""
    whole_nats: float = float("nan")
    """Log p of the response with everything there; NaN where that is not told."""

    @property
    def divergence(self) -> float:
        """Nats; a negative total counts as 0."""
        return max(0.0, self.nats)

    @property
    def nats_per_token(self) -> float:
        """Signed."""
        return self.nats / self.tokens


Effects = Mapping[int, Effect]
"""By the response's segment."""


@dataclass(frozen=True)
class Found:
    """What came of one drop in one chunk."""

    drop: int
    """Which of the drops."""
    effects: Effects = field(default_factory=dict)
    failure: str = ""
    """Why there are none; empty where there are."""
    lost: tuple[int, ...] = ()
    """The responses that then have no effect."""
