"""How likely each response is in each of many variants of one context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from sona.attribution.comparison import CHUNK_TOKENS, Comparison
from sona.attribution.context import Context, Drop
from sona.attribution.effects import Found
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
    version: str = ""
    """The version of the model that scored all of it; empty where it has none, or nobody knows."""

    @property
    def dropped(self) -> Float64:
        """(variants, responses) log p of each response in each variant, in nats."""
        return self.whole - self.effects


class TotalsRun:
    """Totals in the making: :meth:`run` computes them, :meth:`totals` tells what is there at any time, also after what
    broke it off.

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

    def __init__(
        self,
        context: Context,
        codec: Codec,
        scorer: Scorer,
        drops: Sequence[Drop],
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        report: Report = ignore_progress,
        stage: str = "ablate",
    ) -> None:
        self._comparison = Comparison(context, codec, scorer, chunk_tokens=chunk_tokens)
        self._drops, self._report, self._stage = drops, report, stage
        self._columns = {index: column for column, index in enumerate(self._comparison.tokens)}
        self._whole = np.full(len(self._columns), np.nan)
        self._effects = np.zeros((len(drops), len(self._columns)))
        self._failures: dict[int, str] = {}
        self._open = [len(self._comparison.chunks_with(drop)) for drop in drops]
        """Of each variant how many chunks are still to be done."""

    @property
    def missing(self) -> int:
        """Variants that are not done."""
        return sum(chunks > 0 for chunks in self._open)

    def run(self) -> None:
        """Score all of them."""
        done, of = 0, sum(self._open)
        with closing(self._comparison.run(self._drops)) as founds:
            for found in founds:
                self._take(found)
                self._report(Progress(stage=self._stage, done=(done := done + 1), total=of, note=found.failure))

    def _take(self, found: Found) -> None:
        for index, effect in found.effects.items():
            self._whole[self._columns[index]] = effect.whole_nats
            self._effects[found.drop, self._columns[index]] = effect.nats
        if found.failure:
            self._failures.setdefault(found.drop, found.failure)
            lost = [self._columns[index] for index in found.lost if index in self._columns]
            self._effects[found.drop, lost] = np.nan
        self._open[found.drop] -= 1

    def totals(self) -> Totals:
        """What is done by now; a variant that is not is NaN."""
        effects = self._effects.copy()
        effects[np.asarray(self._open, dtype=np.int64) > 0] = np.nan
        tokens = self._comparison.tokens
        return Totals(
            tuple(tokens),
            tuple(tokens.values()),
            self._whole.copy(),
            effects,
            dict(self._failures),
            self._comparison.version,
        )


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
    """Score every response of the context, whole and without each of ``drops``; see :class:`TotalsRun` for the
    arguments, and for what is raised.
    """
    run = TotalsRun(context, codec, scorer, drops, chunk_tokens=chunk_tokens, report=report, stage=stage)
    run.run()
    return run.totals()
