"""Rows that lie far from the group that they came to: they wait as strays, so that they move no centroid."""

from __future__ import annotations

import numpy as np

from sona.bank.outliers import LEAST_ROWS, bar
from sona.bank.vectors import Ints, lengths, sums_by_label
from sona.bank.ward import Floats, Groups, Mask, Scale
from sona.checks import Float32

FAR = 2.0
"""A row is far only if it is so many times as far (squared) from its group's mean as is usual: where rows are few or
their cosines lopsided, deviations alone call one in a hundred far."""
LOOSEST = 0.4
"""A new group of few whose mean is shorter, squared, than this share of a usual one's is a heap of strays."""


def far_rows(x: Float32, label: Ints, groups: Groups, of: Ints, known: Mask, scale: Scale, few: int) -> Mask:
    """(n,) the rows that are far, by the standard of all of them (:func:`sona.bank.outliers.bar`) and of their group;
    those that are alone, where there are groups or patterns; and those of a new group of at most ``few`` that is no
    more than a heap of what lies far from everything.

    Args:
        x: (n, width) unit rows.
        label: (n,) the group that each came to.
        groups: k of them, before they became those that ``of`` says.
        of: (k,) what each of ``groups`` is part of now.
        known: (k,) those that are patterns.
        scale: what is usual for a group too small to tell its own width.
        few: see above.
    """
    totals = sums_by_label(groups.sums.astype(np.float64), of)
    counts = np.bincount(of, groups.counts).astype(np.float64)
    true = _true_squares(totals, counts)
    usual = max(1.0 - scale.variance * x.shape[1], 0.0)
    others = counts[label] > 1
    far = ~others & bool((counts > 1).any() or known.any())
    if others.sum() >= LEAST_ROWS:
        standard = np.where(counts < LEAST_ROWS, np.maximum(true, usual), true)[label[others]]
        rows, rest, left = x[others].astype(np.float64), (totals[label] - x)[others], counts[label][others] - 1
        short = _shortfall(rows, rest, left, standard)
        outside = _squared_distance(rows, rest, left) > FAR * (1 - standard)
        far[others] = (short < bar(short.astype(np.float32))) & outside
    if known.any():
        new = ~np.isin(np.arange(len(counts)), of[known])
        loose = new & (counts <= few) & (true < LOOSEST * usual)
        far |= loose[label]
    return np.asarray(far)


def _true_squares(totals: Floats, counts: Floats) -> Floats:
    """(k,) the squared length of the true mean of each group's rows: that of the mean of n rows is longer by their
    noise, (1 - μ²) / n.
    """
    measured = np.einsum("kd,kd->k", totals, totals) / counts**2
    return np.asarray(np.clip((counts * measured - 1) / np.maximum(counts - 1, 1), 0.0, 1.0))


def _shortfall(rows: Floats, rest: Floats, left: Floats, true: Floats) -> Floats:
    """(n,) the cosine of each row to the ``rest`` of its group, the sum of so many rows as are ``left``, less what it
    is for a group of that size whose true mean has the squared length ``true``.
    """
    cosines = np.einsum("nd,nd->n", rest, rows) / np.maximum(lengths(rest), 1e-12)
    return np.asarray(cosines - true / np.sqrt(np.maximum(true + (1 - true) / left, 1e-12)))


def _squared_distance(rows: Floats, rest: Floats, left: Floats) -> Floats:
    """(n,) of each row to the mean of the ``rest``."""
    apart = rows - rest / left[:, None]
    return np.asarray(np.einsum("nd,nd->n", apart, apart))
