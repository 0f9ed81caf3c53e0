"""How likely each response is in each of many variants of one context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from sona.attribution.comparison import CHUNK_TOKENS, Comparison
from sona.attribution.context import Context, Drop
from sona.attribution.lasso import Float64
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.ports import Report, ignore_progress
from sona.types import Progress


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over the responses' tokens."""

    responses: tuple[int, ...]
    """The responses that have tokens, by their segments' indices."""
    tokens: tuple[int, ...]
    """How many each has."""
    whole: Float64
    """(responses,) log p of each response with everything there, in nats; NaN where no variant could change it, or
    where it failed."""
    effects: Float64
    """(variants, responses) nats that what was dropped gave each response, signed: 0 where it could give none, NaN
    where it failed."""
    failures: Mapping[int, str]
    """Why, by variant. Those that were done before a backend died are kept."""

    @property
    def dropped(self) -> Float64:
        """(variants, responses) log p of each response in each variant, in nats."""
        return self.whole - self.effects


def total_log_probs(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    drops: Sequence[Drop],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    report: Report = ignore_progress,
    stage: str = "ablate",
) -> Totals:
    """Score every response of the context, whole and without each of ``drops``.

    Args:
        context: in chunks where it is long, as in :class:`sona.attribution.comparison.Comparison`.
        codec: the model's.
        scorer: the model.
        drops: what to leave out, variant by variant.
        chunk_tokens: a longer context is scored in chunks of about so many tokens.
        report: told of each variant that is done in a chunk; what it raises ends the work.
        stage: of what it is told.

    Raises:
        InvalidInputError: a turn with the fixed beginning is longer than the model takes.
        ModelError: the chat template refuses the context.
    """
    comparison = Comparison(context, codec, scorer, chunk_tokens=chunk_tokens)
    columns = {index: column for column, index in enumerate(comparison.tokens)}
    whole, effects = np.full(len(columns), np.nan), np.zeros((len(drops), len(columns)))
    failures, done = dict[int, str](), 0
    of = sum(len(comparison.chunks_with(drop)) for drop in drops)
    with closing(comparison.run(drops)) as founds:
        for found in founds:
            for index, effect in found.effects.items():
                whole[columns[index]], effects[found.drop, columns[index]] = effect.whole_nats, effect.nats
            if found.failure:
                failures.setdefault(found.drop, found.failure)
                effects[found.drop, [columns[index] for index in found.lost if index in columns]] = np.nan
            report(Progress(stage=stage, done=(done := done + 1), total=of, note=found.failure))
    return Totals(tuple(comparison.tokens), tuple(comparison.tokens.values()), whole, effects, failures)
