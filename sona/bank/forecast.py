"""How well an answer to a query will go, from how well answers to queries like it went.

The mean quality of the nearest patterns' cells, each counting by its rated trajectories and, the less it is like the
query, the less (a kernel estimate: Nadaraya 1964, Watson 1964), after a prior that counts for one trajectory: the
quality of the nearest pattern, drawn towards that of everything. So what was asked before, word for word, is foretold
by how that went, and what is new by what it is most like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sona.bank.cell import Cell, groups_of
from sona.bank.shelf import Body
from sona.bank.vectors import unit_rows
from sona.bank.verdicts import ALL
from sona.bank.ward import Floats
from sona.checks import Float32
from sona.patterns import UNKNOWN, Pattern, Verdict

NEAREST = 8
"""Patterns whose cells are looked at."""
WIDTH = 0.1
"""Of the kernel: a cell counts by a factor of e less for each so much that its cosine to the query is below 1. From .05
to .2 the forecasts on three streams of agents' attempts are equally good."""
PRIOR_OF_PATTERN, PRIOR = 16.0, 1.0
"""Trajectories that everything counts for in a pattern's quality, and the pattern's in a forecast. 4 for the first is
worse on all three streams."""


class Evidence(NamedTuple):
    """Cells with a verdict, as arrays."""

    directions: Float32
    """(m, width), unit rows."""
    counts: Floats
    """(m,) rated trajectories."""
    means: Floats
    """(m,) their mean quality."""

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Evidence | None:
        """None where nothing is rated."""
        rated = [cell for cell in cells if cell.verdicts.get(ALL, Verdict()).count]
        if not rated:
            return None
        verdicts = [cell.verdicts[ALL] for cell in rated]
        return cls(
            unit_rows(groups_of(rated).sums.astype(np.float32)),
            np.asarray([verdict.count for verdict in verdicts], dtype=np.float64),
            np.asarray([verdict.mean for verdict in verdicts]),
        )


def usual(pattern: Pattern, everything: Verdict) -> float:
    """The quality that is usual for a pattern: its mean, drawn towards that of ``everything`` where few are rated."""
    own = pattern.verdict
    base = everything.mean if everything.count else UNKNOWN
    return (own.count * own.mean + PRIOR_OF_PATTERN * base) / (own.count + PRIOR_OF_PATTERN)


def forecast(
    query: Float32, nearest: Sequence[Pattern], bodies: Mapping[str, Body], strays: Sequence[Cell], everything: Verdict
) -> float:
    """The expected quality of an answer to ``query``, a unit row (width,), like which are the ``nearest`` patterns."""
    evidence = Evidence.of([*(cell for one in nearest for cell in bodies[one.id].cells), *strays])
    weight, total = PRIOR, PRIOR * usual(nearest[0], everything)
    if evidence is not None:
        cosines = np.einsum("md,d->m", evidence.directions, query).astype(np.float64)
        near = evidence.counts * np.exp((cosines - 1.0) / WIDTH)
        weight, total = weight + float(near.sum()), total + float(near @ evidence.means)
    return min(max(total / weight, 0.0), 1.0)
