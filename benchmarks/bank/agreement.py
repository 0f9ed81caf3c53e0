"""How well clusters agree with groups that are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.bank.vectors import lengths, sums_by_label
from sona.checks import Float32

Labels = npt.NDArray[np.intp]


def purity(labels: Labels, truth: Labels) -> float:
    """Share of the rows whose group is the most frequent one of their cluster. Rows of no group (-1) don't count."""
    return float(_table(labels, truth).max(1).sum() / (truth >= 0).sum())


def nmi(labels: Labels, truth: Labels) -> float:
    """Mutual information over the mean of both entropies (Strehl & Ghosh 2002, with the arithmetic mean), from 0 to 1.
    Rows of no group (-1) don't count.
    """
    joint = _table(labels, truth)
    joint = joint / joint.sum()
    mean = (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / 2
    return (2 * mean - _entropy(joint.ravel())) / mean if mean else 1.0


def objective(rows: Float32, labels: Labels) -> float:
    """Mean cosine of unit rows (n, width) to their cluster's mean direction: what spherical k-means makes large."""
    return float(lengths(sums_by_label(rows, labels)).sum() / len(rows))


def _table(labels: Labels, truth: Labels) -> npt.NDArray[np.float64]:
    """(clusters, groups) how many rows are in both."""
    known = truth >= 0
    table = np.zeros((int(labels.max()) + 1, int(truth.max()) + 1))
    np.add.at(table, (labels[known], truth[known]), 1.0)
    return table


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())
