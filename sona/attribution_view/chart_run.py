"""A chart in the making, by one of three ways to leave memories out."""

from __future__ import annotations

from sona.attribution.ablate import MOST_RUNS, RUNS, drop_of, random_masks, weigh
from sona.attribution.context import ALL_MEMORIES, Context
from sona.attribution.memories import MatrixRun
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import TotalsRun
from sona.attribution_view.chart import Chart, Method, ablated_chart, matrix_chart, together_chart
from sona.checks import check_count
from sona.errors import InvalidInputError
from sona.ports import Report, ignore_progress


class ChartRun:
    """:meth:`run` scores, :meth:`chart` tells what is there at any time, also after what broke it off.

    Args:
        context: with memories and responses.
        codec: the model's.
        scorer: the model.
        method: each memory by itself and then all (``loo``), all at once alone, or random ablations.
        runs: of the ablations.
        seed: of theirs.
        report: told of what is done; what it raises ends the work.

    Raises:
        InvalidInputError: no memory or no response in the context, too few runs, or a turn with the fixed beginning is
            longer than the model takes.
        ModelError: the chat template refuses the context, or the scorer is no good.
    """

    def __init__(
        self,
        context: Context,
        codec: Codec,
        scorer: Scorer,
        method: Method = "loo",
        *,
        runs: int = RUNS,
        seed: int = 0,
        report: Report = ignore_progress,
    ) -> None:
        check_count(runs, "runs", MOST_RUNS)
        if runs < 2:
            raise InvalidInputError(f"runs: {runs}; from 2 to {MOST_RUNS} are allowed, and 32 or more tell most")
        for what, there in (("memory", context.keys), ("response", context.responses)):
            if not there:
                raise InvalidInputError(f"context: no {what} in it; there is nothing to score")
        self._context, self._method = context, method
        if method == "loo":
            self._matrix = MatrixRun(context, codec, scorer, strip_all=True, report=report)
            return
        self._kept = random_masks(len(context.keys), runs, seed)
        drops = [ALL_MEMORIES] if method == "strip_all" else [drop_of(context, row) for row in self._kept]
        self._totals = TotalsRun(context, codec, scorer, drops, report=report, stage=method)
        self._noise_floor = scorer.noise_floor

    def run(self) -> None:
        """Score; used once."""
        if self._method == "loo":
            for _ in self._matrix.rows():
                pass
        else:
            self._totals.run()

    def chart(self) -> Chart:
        """What is done by now."""
        if self._method == "loo":
            return matrix_chart(self._context, self._matrix.matrix())
        totals, missing = self._totals.totals(), self._totals.missing
        if self._method == "strip_all":
            return together_chart(self._context, totals, self._noise_floor, missing)
        return ablated_chart(self._context, weigh(self._context, self._kept, totals, self._noise_floor), missing)
