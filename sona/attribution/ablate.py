"""Memories' weights from random ablations: what leave-one-out can't see, since a fact that is stored twice is still
there when either memory is gone.

Of many variants, in each of which every memory is there or not by the toss of a coin, the log-odds of a response are
explained by a sparse linear model of which memories were there (Cohen-Wang et al. 2024, "ContextCite: Attributing
model generation to context", arXiv:2409.00729, section 3.2). As there: the log-odds are those of the whole response,
``log p - log(1 - p)`` with p the product over its tokens; they are divided by the number of tokens, the columns are
standardised, and the LASSO's alpha is 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.attribution.comparison import CHUNK_TOKENS
from sona.attribution.context import Context, Drop
from sona.attribution.lasso import Fit, Float64, lasso
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import Totals, total_log_probs
from sona.checks import check_count, check_number
from sona.errors import InvalidInputError
from sona.ports import Report, ignore_progress

Bool = npt.NDArray[np.bool_]
RUNS = 64
MOST_RUNS = 10_000
ALPHA = 0.01


@dataclass(frozen=True, eq=False)
class Ablated:
    """What random ablations say about each memory and each response."""

    keys: tuple[str, ...]
    """The memories, in the order in which they first surface."""
    responses: tuple[int, ...]
    """By their segments' indices."""
    tokens: tuple[int, ...]
    """Of each response."""
    kept: Bool
    """(runs, memories) which memories were there."""
    log_odds: Float64
    """(runs, responses) nats; NaN in a run that failed."""
    weights: Float64
    """(memories, responses) nats of log-odds that a memory's presence gives, signed; 0 for one that surfaces after the
    response; NaN for a response of which too many runs failed."""
    intercepts: Float64
    """(responses,) log-odds without any memory, by the same model."""
    noise_floor: Float64
    """(responses,) nats that a weight may be by rounding alone: nothing below it is a finding."""
    failures: Mapping[int, str]
    """Why a run has none, by run."""
    version: str = ""
    """The version of the model that scored all of it; empty where it has none, or nobody knows."""

    @property
    def per_token(self) -> Float64:
        """(memories, responses) the weights for each of the response's tokens."""
        return np.asarray(self.weights / np.asarray(self.tokens), dtype=np.float64)

    def findings(self, response: int) -> list[tuple[str, float]]:
        """The memories whose presence made the response likelier by more than noise, the heaviest first.

        Raises:
            InvalidInputError: no response is at this segment.
        """
        if response not in self.responses:
            raise InvalidInputError(f"response: segment {response} is none that was scored; {self.responses} are")
        column = self.responses.index(response)
        weights, floor = self.weights[:, column], self.noise_floor[column]
        order = np.argsort(-weights, kind="stable")
        return [(self.keys[row], float(weights[row])) for row in order if weights[row] > floor]

    def predict(self, kept: Bool) -> Float64:
        """The log-odds (runs, responses) that the model expects where these memories (runs, memories) are there."""
        return self.intercepts + kept.astype(np.float64) @ self.weights


def ablate(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    *,
    runs: int = RUNS,
    seed: int = 0,
    alpha: float = ALPHA,
    chunk_tokens: int = CHUNK_TOKENS,
    report: Report = ignore_progress,
) -> Ablated:
    """Weigh every memory by random ablations.

    Args:
        context: with memories and responses; without either the result is empty.
        codec: the model's chat template and tokenizer.
        scorer: who scores.
        runs: how many variants. With so few memories that there are no more subsets than this, each subset once.
        seed: of the masks.
        alpha: of the LASSO, in nats of log-odds a token.
        chunk_tokens: a longer context is scored in chunks of about so many tokens.
        report: told of each variant; what it raises ends the work.

    Raises:
        InvalidInputError: ``runs`` below 2, a negative alpha, or a turn with the fixed beginning is longer than the
            model takes.
        ModelError: the chat template refuses the context.
    """
    check_count(runs, "runs", MOST_RUNS)
    if runs < 2:
        raise InvalidInputError(f"runs: {runs}; from 2 to {MOST_RUNS} are allowed, and 32 or more tell memories apart")
    check_number(alpha, "alpha", low=0.0)
    kept = random_masks(len(context.keys), runs, seed)
    drops = [drop_of(context, row) for row in kept]
    totals = total_log_probs(context, codec, scorer, drops, chunk_tokens=chunk_tokens, report=report)
    return weigh(context, kept, totals, scorer.noise_floor if drops else 0.0, alpha)


def random_masks(memories: int, runs: int, seed: int) -> Bool:
    """Which memories are there: (runs, memories), each with probability 1/2; or every subset once, if there are no
    more of them than ``runs``.
    """
    if memories == 0:
        return np.zeros((0, 0), dtype=bool)
    if memories < 63 and 2**memories <= runs:
        return (np.arange(2**memories)[:, None] >> np.arange(memories) & 1).astype(bool)
    return np.random.default_rng(seed).random((runs, memories)) < 0.5


def drop_of(context: Context, kept: Bool) -> Drop:
    """All memories but those (memories,) that are there."""
    return Drop(keys=tuple(key for key, here in zip(context.keys, kept, strict=True) if not here))


def weigh(context: Context, kept: Bool, totals: Totals, noise_floor: float, alpha: float = ALPHA) -> Ablated:
    """Weights from what was measured.

    Args:
        context: of which it was.
        kept: (runs, memories).
        totals: a variant a run.
        noise_floor: the scorer's.
        alpha: as in :func:`ablate`.
    """
    odds = log_odds(totals.dropped, noise_floor)
    weights = np.zeros((len(context.keys), len(totals.responses)))
    intercepts, floors = np.zeros(len(totals.responses)), np.zeros(len(totals.responses))
    for column, response in enumerate(totals.responses):
        before = np.array([_surfaces_before(context, key, response) for key in context.keys], dtype=bool)
        if not before.any() or (np.isnan(totals.whole[column]) and not totals.effects[:, column].any()):
            continue  # nothing could change it
        fit = _fit(kept[:, before], odds[:, column], totals.tokens[column], alpha)
        weights[before, column], intercepts[column] = fit.weights, fit.intercept
        floors[column] = _floor(totals.dropped[:, column], noise_floor)
    return Ablated(
        context.keys,
        totals.responses,
        totals.tokens,
        kept,
        odds,
        weights,
        intercepts,
        floors,
        totals.failures,
        totals.version,
    )


def log_odds(log_probs: Float64, noise_floor: float) -> Float64:
    """``log p - log(1 - p)``, in nats. A log-probability nearer to 0 than the noise floor counts as that: how much
    nearer it is can't be told, and the log-odds of p = 1 are infinite.
    """
    bounded = np.minimum(log_probs, -max(noise_floor, 1e-9))
    return bounded - np.log(-np.expm1(bounded))


def _surfaces_before(context: Context, key: str, response: int) -> bool:
    first = context.first_of(key)
    return first is not None and first < response


def _fit(kept: Bool, odds: Float64, tokens: int, alpha: float) -> Fit:
    good = np.isfinite(odds)
    if good.sum() < max(2, len(odds) / 2):
        return Fit(np.full(kept.shape[1], np.nan), float("nan"))
    found = lasso(kept[good], odds[good] / tokens, alpha)
    return Fit(found.weights * tokens, found.intercept * tokens)


def _floor(log_probs: Float64, noise_floor: float) -> float:
    """Log-odds change 1 / (1 - p) times as much as log p; root mean square over the runs. A weight is a difference of
    means over many runs, so this is on the safe side.
    """
    good = np.minimum(log_probs[np.isfinite(log_probs)], -max(noise_floor, 1e-9))
    if not len(good):
        return noise_floor
    return float(np.sqrt(np.mean((noise_floor / -np.expm1(good)) ** 2)))
