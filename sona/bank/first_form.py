"""The form in which banks were stored at first: patterns without cells, and one quality for all routes."""

from __future__ import annotations

import msgspec

from sona.bank.verdicts import RECENT
from sona.patterns import Exemplar, Pattern, Verdict
from sona.types import Record


class FirstPattern(Record, kw_only=True):
    """A pattern as it was stored."""

    id: str
    centroid: bytes
    count: int
    quality_count: int
    quality_mean: float
    quality_m2: float
    spread: float
    exemplars: tuple[Exemplar, ...] = ()
    born_cycle: int = 0
    touched_cycle: int = 0

    def today(self) -> Pattern:
        """The same, as it is now; all of it is taken for recent."""
        verdict = Verdict(
            count=self.quality_count,
            mean=self.quality_mean,
            m2=self.quality_m2,
            recent_weight=min(float(self.quality_count), RECENT),
            recent_mean=self.quality_mean,
        )
        return Pattern(
            id=self.id,
            centroid=self.centroid,
            count=self.count,
            spread=self.spread,
            verdict=verdict,
            exemplars=self.exemplars,
            weight=float(self.count),
            born_cycle=self.born_cycle,
            touched_cycle=self.touched_cycle,
        )


class FirstState(Record, kw_only=True):
    """A bank as it was stored."""

    width: int
    mean: bytes
    patterns: tuple[FirstPattern, ...]


def read_first_form(data: bytes) -> FirstState | None:
    """The bank in ``data``; None where it is none of this form."""
    try:
        return msgspec.msgpack.decode(data, type=FirstState)
    except msgspec.DecodeError:
        return None
