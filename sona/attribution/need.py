"""What of a variant has to be computed, when the whole passage has been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sona.attribution.passes import shared
from sona.attribution.scorer import Passage, Range, Scores
from sona.checks import Float32


@dataclass(frozen=True, eq=False)
class Need:
    """A variant's part that differs from the whole passage."""

    start: int
    """So many first tokens are the whole's, and their keys and values too."""
    end: int
    """Nothing after it is wanted; equal to ``start`` where nothing has to be computed."""
    ranges: tuple[Range, ...]
    """Those that the difference may change; the others are the whole's, for a token depends on none after it."""

    @property
    def tokens(self) -> int:
        """How many have to be read."""
        return self.end - self.start


WholeScores = Mapping[Range, Float32]
"""Scores of the whole passage, by range."""


def need_of(variant: Passage, whole: Passage, known: WholeScores) -> Need:
    """What has to be computed of ``variant``."""
    same = shared(variant.ids, whole.ids)
    ranges = tuple(found for found in variant.ranges if found[1] > same or found not in known)
    if not ranges:
        return Need(same, same, ())
    # The state before a range's first token foretells it: that token is read again where it was of the shared part.
    return Need(min(same, ranges[0][0] - 1), ranges[-1][1], ranges)


def joined(variant: Passage, need: Need, computed: Scores, known: WholeScores) -> Scores:
    """All scores of the variant."""
    fresh = dict(zip(need.ranges, computed, strict=True))
    return [np.asarray(fresh[found] if found in fresh else known[found]) for found in variant.ranges]
