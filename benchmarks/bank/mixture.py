"""Mixtures of Gaussians on the sphere, whose groups are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.bank.vectors import unit_rows
from sona.checks import Float32

WIDTH = 256
GROUPS = 50

Truth = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Case:
    """How a mixture is drawn."""

    rows: int
    noise: float
    """Length of a row's deviation from its group's centre, which has length 1."""
    skewed: bool = False
    """The groups' sizes fall as 1, 1/2, 1/3, ...; otherwise they are alike, but for chance."""
    outliers: float = 0.0
    """Share of the rows that lie in any direction."""


CASES = {
    "easy_5k": Case(5000, 0.5),
    "mid_5k": Case(5000, 1.0),
    "hard_1k": Case(1000, 2.0),
    "hard_5k": Case(5000, 2.0),
    "skewed_5k": Case(5000, 1.0, skewed=True),
    "outliers5_5k": Case(5000, 1.0, outliers=0.05),
    "outliers20_2k": Case(2000, 1.0, outliers=0.2),
}


def draw(case: Case, seed: int) -> tuple[Float32, Truth]:
    """Unit rows (rows, WIDTH) and the group of each, -1 of an outlier."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.standard_normal((GROUPS, WIDTH)).astype(np.float32))
    shares = 1.0 / np.arange(1, GROUPS + 1) if case.skewed else np.ones(GROUPS)
    truth = rng.choice(GROUPS, case.rows, p=shares / shares.sum())
    rows = centres[truth] + case.noise / WIDTH**0.5 * rng.standard_normal((case.rows, WIDTH))
    strays = round(case.outliers * case.rows)
    rows[:strays], truth[:strays] = rng.standard_normal((strays, WIDTH)), -1
    order = rng.permutation(case.rows)
    return unit_rows(rows[order].astype(np.float32)), truth[order].astype(np.intp)
