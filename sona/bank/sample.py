"""A sample of all rows that a bank has learned from, and how wide a group of them is.

The patterns can't tell that: where they are still heaps of several kinds their rows lie far from their means, and a
width taken from them would keep them heaps. So some rows are kept, each that ever came as likely as any other (Vitter
1985, doi:10.1145/3147.3165), and grouped for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from sona.bank.vectors import distinct, reduced_seed
from sona.bank.ward import Groups, agglomerated, scale_of
from sona.checks import Float32, check_count, check_number, tuple_of
from sona.errors import InvalidInputError
from sona.types import Record

SIZE = 512
"""Rows that are kept; grouping them takes .2 s."""
GROWN = 1.25
"""It is grouped anew when so many times the rows have come."""
FEWEST = 3
"""Rows of a group that says how wide groups are."""


class Sample(Record, kw_only=True):
    """The rows, and what they showed."""

    ids: tuple[str, ...] = ()
    """Of their trajectories."""
    rows: bytes = b""
    """float16 (ids, width): unit rows."""
    seen: int = 0
    """Of how many rows they are a sample."""
    measured: int = 0
    """How many these were when they were grouped last."""
    variance: float = 0.0
    """Of a row around its group's mean, in one dimension; the mean of all groups, each by the root of its size."""

    def __post_init__(self) -> None:
        ids = tuple_of(self.ids, str, "sample ids")
        if len(self.rows) % max(2 * len(ids), 1) or bool(ids) != bool(self.rows):
            raise InvalidInputError(f"sample: {len(self.rows)} bytes for {len(ids)} rows")
        for name in ("seen", "measured"):
            check_count(getattr(self, name), f"sample {name}")
        check_number(self.variance, "sample variance", 0.0)

    def array(self) -> Float32:
        """The rows, float32 (ids, width)."""
        return np.frombuffer(self.rows, dtype="<f2").reshape(len(self.ids), -1).astype(np.float32)

    def without(self, gone: Callable[[str], bool]) -> Sample:
        """Without the rows of the trajectories of which ``gone`` is true."""
        left = [place for place, name in enumerate(self.ids) if not gone(name)]
        if len(left) == len(self.ids):
            return self
        rows = self.array()[left].astype("<f2").tobytes() if left else b""
        return msgspec.structs.replace(self, ids=tuple(self.ids[place] for place in left), rows=rows)


def grown(sample: Sample, ids: Sequence[str], x: Float32, grain: float, seed: int) -> Sample:
    """``sample`` of what it is of and of ``x``, unit rows (ids, width), together."""
    rng = np.random.default_rng(reduced_seed(seed))
    names = list(sample.ids)
    rows = list(sample.array()) if names else []
    for place, (name, row) in enumerate(zip(ids, x, strict=True)):
        at = len(names) if len(names) < SIZE else int(rng.integers(sample.seen + place + 1))
        if at < SIZE:
            names[at : at + 1], rows[at : at + 1] = [name], [row]
    kept = np.stack(rows).astype("<f2")
    seen, measured, variance = sample.seen + len(ids), sample.measured, sample.variance
    if seen >= GROWN * measured:
        measured, variance = seen, _variance(kept.astype(np.float32), grain)
    return Sample(ids=tuple(names), rows=kept.tobytes(), seen=seen, measured=measured, variance=variance)


def _variance(rows: Float32, grain: float) -> float:
    """Of a row around its group's mean, in one dimension. Equal rows are one; and a group counts by the root of its
    rows: were each row alike, a tight query that is asked all day would have the others cut to pieces, and were each
    group alike, a few tight ones would.
    """
    rows = rows[distinct(rows)[0]]
    alone = Groups(np.ones(len(rows)), rows.astype(np.float64))
    scale = scale_of(alone, grain)
    of = agglomerated(alone, scale)
    counts = np.bincount(of).astype(np.float64)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, of, alone.sums)
    told = counts >= FEWEST
    if not told.any():
        return scale.variance
    scatter = Groups(counts, sums).scatter[told] / (counts[told] - 1)
    return float(np.average(scatter, weights=np.sqrt(counts[told])) / rows.shape[1])
