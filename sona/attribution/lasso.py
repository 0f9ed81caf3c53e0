"""The LASSO: linear weights of which most are nothing, found by coordinate descent.

It minimises ``|y - b - X w|² / 2n + alpha |w|₁``, as scikit-learn's ``Lasso`` does, after every column of X was given
the mean 0 and the deviation 1 (Tibshirani 1996; Friedman, Hastie and Tibshirani 2010, "Regularization paths for
generalized linear models via coordinate descent", section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.errors import InvalidInputError

Float64 = npt.NDArray[np.float64]
SWEEPS = 100_000
TOLERANCE = 1e-10
"""No weight moves by more, of the largest that was possible, in the last sweep."""


@dataclass(frozen=True, eq=False)
class Fit:
    """``y`` is about ``intercept + X @ weights``."""

    weights: Float64
    """(columns,) in the columns' own units; 0 for one that never changes."""
    intercept: float


def lasso(X: npt.ArrayLike, y: npt.ArrayLike, alpha: float) -> Fit:
    """Weights that explain ``y`` with as few columns as ``alpha`` asks for.

    Args:
        X: (rows, columns), finite.
        y: (rows,), finite.
        alpha: 0 or more, in units of ``y``: a standardised column whose covariance with ``y`` is below it gets 0.

    Raises:
        InvalidInputError: no row, unlike lengths, a number that is not finite, or a negative alpha.
    """
    columns, outputs = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if columns.ndim != 2 or outputs.shape != columns.shape[:1] or not len(outputs):
        raise InvalidInputError(
            f"lasso: X {columns.shape} and y {outputs.shape}; (n, m) and (n,) with n > 0 are allowed"
        )
    if not (np.isfinite(columns).all() and np.isfinite(outputs).all() and 0 <= alpha < np.inf):
        raise InvalidInputError("lasso: a number is not finite, or alpha is below 0; leave failed rows out")
    means, scales = columns.mean(0), columns.std(0)
    varied = scales > 1e-12 * np.maximum(1.0, np.abs(means))
    standard = (columns[:, varied] - means[varied]) / scales[varied]  # (n, m')
    centred = outputs - outputs.mean()
    gram, pull = standard.T @ standard / len(outputs), standard.T @ centred / len(outputs)
    weights = np.zeros(columns.shape[1])
    weights[varied] = _descend(gram, pull, alpha) / scales[varied]
    return Fit(weights, float(outputs.mean() - means @ weights))


def _descend(gram: Float64, pull: Float64, alpha: float) -> Float64:
    """Standardised weights (m,) from the columns' correlations (m, m) and their covariances with the output (m,)."""
    weights, rest = np.zeros(len(pull)), pull.copy()  # rest: covariances with what is not explained yet
    still = TOLERANCE * float(np.abs(pull).max(initial=0.0))
    for _ in range(SWEEPS):
        moved = 0.0
        for column in range(len(pull)):
            alone = rest[column] + weights[column]  # its correlation with itself is 1
            found = np.sign(alone) * max(0.0, abs(alone) - alpha)
            if step := found - weights[column]:
                rest -= step * gram[column]
                weights[column] = found
                moved = max(moved, abs(step))
        if moved <= still:
            break
    return weights
