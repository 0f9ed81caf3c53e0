"""Rows that lie far from the group that they came to: they wait as strays, so that they move no centroid.

A row is judged by its own group alone, whatever the others are like: one query that is asked all day would otherwise
set the standard for everything else. What the evidence has told apart is a group, however loose; only rows that are
alone, or in a heap that has no middle, belong to none.
"""

from __future__ import annotations

import numpy as np

from sona.bank.outliers import LEAST_ROWS, bar
from sona.bank.vectors import Ints, sums_by_label
from sona.bank.ward import Floats, Groups, Mask, Scale
from sona.checks import Float32

FAR, FAR_DEVIATIONS = 2.0, 6.0
"""A row is far only if it is so many times as far (squared) from its group's mean as is usual there, and, in few
dimensions, in which distances differ more, by so many deviations of a Gaussian's, sqrt(2 / d): where rows are few or
their distances lopsided, the measured deviations alone call one in a hundred far."""
LEAST_SCATTER = 1e-3
"""Usual squared distance from the mean; where all rows are nearly alike, a nearby one is not far."""
LOOSEST = 0.4
"""A new group of few whose mean is shorter, squared, than this share of a usual one's is a heap of strays."""


def far_rows(x: Float32, label: Ints, groups: Groups, of: Ints, known: Mask, scale: Scale, few: int) -> Mask:
    """(n,) the rows that are far from their group, where it has at least :data:`sona.bank.outliers.LEAST_ROWS` to tell;
    those that are alone, where there are groups or patterns; and those of a new group of at most ``few`` that is no
    more than a heap of what lies far from everything.

    Args:
        x: (n, width) unit rows.
        label: (n,) the group that each came to.
        groups: k of them, before they became those that ``of`` says.
        of: (k,) what each of ``groups`` is part of now.
        known: (k,) those that are patterns.
        scale: what is usual for a group.
        few: see above.
    """
    totals = sums_by_label(groups.sums.astype(np.float64), of)
    counts = np.bincount(of, groups.counts).astype(np.float64)
    true = _true_squares(totals, counts)
    far = (counts[label] == 1) & bool((counts > 1).any() or known.any())
    told = (counts >= LEAST_ROWS)[label]
    if told.sum() >= LEAST_ROWS:
        rows, rest, left = x[told].astype(np.float64), (totals[label] - x)[told], counts[label][told] - 1
        # As a share of what is usual in its own group, so that tight and loose groups are judged alike.
        apart = _squared_distance(rows, rest, left) / np.maximum(1 - true[label][told], LEAST_SCATTER)
        far[told] = (-apart < bar((-apart).astype(np.float32))) & (
            apart > max(FAR, 1 + FAR_DEVIATIONS * (2 / x.shape[1]) ** 0.5)
        )
    if known.any():
        new = ~np.isin(np.arange(len(counts)), of[known])
        usual = max(1.0 - scale.variance * x.shape[1], 0.0)
        loose = new & (counts <= few) & (true < LOOSEST * usual)
        far |= loose[label]
    return np.asarray(far)


def _true_squares(totals: Floats, counts: Floats) -> Floats:
    """(k,) the squared length of the true mean of each group's rows: that of the mean of n rows is longer by their
    noise, (1 - μ²) / n.
    """
    measured = np.einsum("kd,kd->k", totals, totals) / counts**2
    return np.asarray(np.clip((counts * measured - 1) / np.maximum(counts - 1, 1), 0.0, 1.0))


def _squared_distance(rows: Floats, rest: Floats, left: Floats) -> Floats:
    """(n,) of each row to the mean of the ``rest``, a sum of so many rows as are ``left``."""
    apart = rows - rest / left[:, None]
    return np.asarray(np.einsum("nd,nd->n", apart, apart))
