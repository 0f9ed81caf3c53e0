"""Which patterns share fast weights: those of a family that are alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.bank.bank import Bank
from sona.bank.families import families_of
from sona.patterns import Pattern

ALIKE = 0.5
"""Two patterns of a family are alike where their centroids' cosine is at least this share of what is usual within the
tighter one."""


class InForce:
    """The version that answers, and the families of its bank; compared by identity."""

    def __init__(self, version: str, bank: Bank) -> None:
        self.version, self.bank = version, bank
        self.family: dict[str, str] = {}
        """By pattern id that of the first pattern of its family, by which the family goes here."""
        self.usual: dict[str, float] = {}
        """By pattern id the least cosine to its centroid that is usual in the family."""
        by_name: dict[str, list[Pattern]] = {}
        names = families_of(bank.patterns)
        for pattern in bank.patterns:
            by_name.setdefault(names[pattern.id], []).append(pattern)
        for patterns in by_name.values():
            self._add(patterns)

    def _add(self, patterns: list[Pattern]) -> None:
        """A family of the bank, which is one here, too, as far as its patterns are alike among each other.

        In a family of many small patterns the next query of the kind lies between them. So what is usual is what a
        pattern's own have, or the nearest pattern of its family, whichever is less.
        """
        centroids = np.stack([pattern.vector() for pattern in patterns])
        spreads = np.array([pattern.spread for pattern in patterns])
        cosines = centroids @ centroids.T
        np.fill_diagonal(cosines, -1.0)
        is_alike = cosines >= ALIKE * np.minimum.outer(spreads, spreads)
        nearest = cosines.max(1)
        for place, pattern in enumerate(patterns):
            self.usual[pattern.id] = (
                min(pattern.spread, float(nearest[place])) if is_alike[place].any() else pattern.spread
            )
            if pattern.id not in self.family:
                for other in _reached(is_alike, place):
                    self.family[patterns[other].id] = pattern.id


def _reached(is_alike: npt.NDArray[np.bool_], start: int) -> set[int]:
    """``start``, and what is alike to it, or to that, and so on."""
    found, edge = {start}, [start]
    while edge:
        new = set(np.flatnonzero(is_alike[edge.pop()]).tolist()) - found
        found |= new
        edge += new
    return found
