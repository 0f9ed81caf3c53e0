"""Where the traffic changes, without labels: tests of whether new samples come from where the earlier ones came from.

Two changes, two tests. Other questions move the distribution of the embeddings (:func:`embedding_shift`). Other answers
to the same questions do not; they show in the losses that the model in force has on them before it is trained on them
(:func:`loss_shift`).

Both are permutation tests: under the hypothesis that all samples come from one distribution, each way of cutting them
into two groups of these sizes is as likely as any other. So their level holds exactly, for any size, and with any ties:
P(p_value <= level) <= level (Phipson, Smyth 2010, arXiv:1603.05766, §3). What they assume is that samples are drawn
independently of each other. Fifty copies of one question are fifty samples to them, and so a change of traffic: drop
repeats first (``benchmarks/bench_boundary.py`` measures it: where a fifth of each hour is one question, the embeddings
raise an alarm every hour with the repeats, and one or two in a hundred without).

The permutations follow from ``seed``, and results do not depend on the order of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.checks import Float32
from sona.errors import InvalidInputError

_Float64 = npt.NDArray[np.float64]
_SAME = 1e-9
"""Relative difference up to which two statistics are tied: the same numbers, added in another order."""


@dataclass(frozen=True, slots=True)
class EmbeddingShift:
    """What :func:`embedding_shift` found."""

    value: float
    """MMD², in [0, 2]: 0 where the two samples are the same."""
    p_value: float
    """How likely so large a value is without a change, in (0, 1]."""
    shifted: bool
    """Whether ``p_value`` is at most the level."""


@dataclass(frozen=True, slots=True)
class LossShift:
    """What :func:`loss_shift` found."""

    value: float
    """The effect's size, in [0, 1]: the chance that a new loss is above a reference loss, ties counting half. 0.5 is no
    effect; it is U / (n m) of Mann and Whitney, also the area under the ROC curve."""
    p_value: float
    """How likely so large a value is without a change, in (0, 1]."""
    shifted: bool
    """Whether ``p_value`` is at most the level."""
    gap: float
    """Mean of the new losses minus that of the reference, in the unit of the losses."""


def embedding_shift(
    reference: Float32, new: Float32, *, level: float = 0.01, permutations: int = 499, seed: int = 0
) -> EmbeddingShift:
    """Whether embeddings ``new`` (n, D) come from another distribution than ``reference`` (m, D).

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y) over all pairs, with k(a, b) = exp(−‖a − b‖² / h): the biased
    estimate of Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, "A Kernel Two-Sample Test", JMLR 13. h is the median
    of ‖a − b‖² over the pairs that differ (Garreau, Jitkrittum, Kanagawa 2017, arXiv:1707.07269). It finds any kind of
    change, not of the mean alone. Time and memory grow with (n + m)²: for 400 embeddings 2 MB and some 10 ms.

    Args:
        reference: at least one row, finite.
        new: at least one row of the same width, finite.
        level: of the test: the share of false alarms where nothing changed. Below 1 / (permutations + 1) nothing can
            be found.
        permutations: random ones, beside the one that was observed.
        seed: of the permutations.

    Raises:
        InvalidInputError: an array of another shape or with a number that is not finite, or a level or number of
            permutations out of range.
    """
    _check_test(level, permutations)
    for name, rows in (("reference", reference), ("new", new)):
        if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
            raise InvalidInputError(f"embedding shift: {name} of shape {rows.shape}; (rows, width), finite, is allowed")
    if reference.shape[1] != new.shape[1]:
        raise InvalidInputError(
            f"embedding shift: widths {reference.shape[1]} and {new.shape[1]}; give embeddings of one model"
        )
    pooled, is_new = _pooled(reference, new)
    kernel = _gaussian_kernel(pooled)
    groups = _groups(is_new, permutations, seed)  # (1 + P, N)
    weights = np.where(groups, 1.0 / len(new), -1.0 / len(reference))
    statistics = ((weights @ kernel) * weights).sum(axis=1)  # (1 + P,)
    p_value = _p_value(statistics, scale=2.0)
    value = float(statistics[0]) if statistics[0] > _SAME else 0.0
    return EmbeddingShift(value, p_value, p_value <= level)


def loss_shift(
    reference: npt.ArrayLike, new: npt.ArrayLike, *, level: float = 0.01, permutations: int = 999, seed: int = 0
) -> LossShift:
    """Whether losses ``new`` (n,) are higher than ``reference`` (m,) beyond chance: the one-sided rank-sum test.

    Mann, Whitney 1947, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other", with
    tied losses at their mean rank. Ranks, since a single answer of a huge loss would carry a mean. Both losses must be
    of the same model: what it makes of answers from before, never trained on, and of new ones. An answer that was
    trained on has a low loss for that reason, and would make any new one look like a change.

    Args:
        reference: at least one loss, finite, such as nats a token.
        new: at least one, in the same unit.
        level: of the test: the share of false alarms where nothing changed.
        permutations: random ones, beside the one that was observed.
        seed: of the permutations.

    Raises:
        InvalidInputError: as :func:`embedding_shift`.
    """
    _check_test(level, permutations)
    before, after = (np.asarray(losses, dtype=np.float64) for losses in (reference, new))
    for name, losses in (("reference", before), ("new", after)):
        if losses.ndim != 1 or not losses.size or not np.isfinite(losses).all():
            raise InvalidInputError(f"loss shift: {name} of shape {losses.shape}; (losses,), finite, is allowed")
    pooled, is_new = _pooled(before[:, None], after[:, None])
    ranks = _mean_ranks(pooled[:, 0])
    n, m = len(after), len(before)
    chance = (_groups(is_new, permutations, seed) @ ranks - n * (n + 1) / 2) / (n * m)  # (1 + P,): U / (n m)
    p_value = _p_value(chance, scale=1.0)
    return LossShift(float(chance[0]), p_value, p_value <= level, gap=float(after.mean() - before.mean()))


def _check_test(level: float, permutations: int) -> None:
    if not 0.0 < level < 1.0 or permutations < 1:
        raise InvalidInputError(
            f"test of level {level} by {permutations} permutations; a level in (0, 1) and at least 1 are allowed"
        )


def _pooled(
    reference: npt.NDArray[np.floating], new: npt.NDArray[np.floating]
) -> tuple[_Float64, npt.NDArray[np.bool_]]:
    """All rows (N, D) in an order that does not depend on theirs, and which of them are new (N,)."""
    rows = np.concatenate([reference, new]).astype(np.float64) + 0.0  # −0.0 becomes 0.0: equal, so equal bytes
    is_new = np.arange(len(rows)) >= len(reference)
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    order = np.argsort(keys, kind="stable")
    # Equal rows are one and the same to every permutation, so which of them is the new one must not matter either.
    return rows[order], is_new[order]


def _gaussian_kernel(rows: _Float64) -> _Float64:
    """exp(−‖a − b‖² / h) of all pairs (N, N), h the median of ‖a − b‖² over those that differ; ones where none do."""
    rows = rows - rows.mean(axis=0)  # distances far from the origin would be differences of large numbers
    squares = np.einsum("nd,nd->n", rows, rows)
    distances = squares[:, None] + squares[None, :] - 2.0 * (rows @ rows.T)
    noise = _SAME * float(squares.max())
    distances[distances <= noise] = 0.0  # exact duplicates, and each row with itself
    apart = distances[np.triu_indices(len(rows), k=1)]
    apart = apart[apart > 0]
    if not apart.size:
        return np.ones_like(distances)
    kernel: _Float64 = np.exp(distances / -np.median(apart))
    return kernel


def _mean_ranks(values: _Float64) -> _Float64:
    """Ranks from 1 on (N,), equal values at the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    means: _Float64 = (last - (count - 1) / 2.0)[place]
    return means


def _groups(is_new: npt.NDArray[np.bool_], permutations: int, seed: int) -> npt.NDArray[np.bool_]:
    """Which samples count as new (1 + P, N): the observed in the first row, then random groups of the same size."""
    keys = np.random.default_rng(seed).random((permutations, len(is_new)), dtype=np.float32)
    random = keys.argsort(axis=1) < is_new.sum()  # each row is a random order of 0 to N − 1
    return np.concatenate([is_new[None], random])


def _p_value(statistics: _Float64, scale: float) -> float:
    """(1 + those at least as large as the observed) / (1 + P), for the observed in front of the P permuted."""
    beyond = statistics[1:] >= statistics[0] - _SAME * scale
    return (1 + int(beyond.sum())) / len(statistics)
