"""What a chart makes of matrices, ablations and what was stopped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sona.attribution.context import Context, Segment
from sona.attribution_view import words
from sona.attribution_view.chart import NOT_REACHED, Method
from sona.attribution_view.chart_run import ChartRun
from sona.attribution_view.table import fitting
from sona.errors import InvalidInputError, ScoringError, SonaError
from sona.types import Progress
from tests.attribution.told import Told, Words, context_of
from tests.attribution_view.charts import NOISE, chart

NAN, AFTER = float("nan"), float("inf")


def either(before: frozenset[str]) -> float:
    """One of two memories is enough."""
    return -1.0 if before & {"red", "rot"} else -9.0


def run_of(context: Context, method: Method = "loo", rule: Callable[[frozenset[str]], float] = either) -> ChartRun:
    codec = Words()
    return ChartRun(context, codec, Told(codec, rule), method)


def test_memories_that_say_the_same_are_warned_of_and_ablations_weigh_them() -> None:
    context = context_of("red", "rot", "green")
    run = run_of(context)
    run.run()
    alone = run.chart()
    assert [line.weight for line in alone.lines] == pytest.approx([0.0, 0.0, 0.0])
    assert alone.together is not None
    assert alone.together.weight == pytest.approx(8.0)
    assert alone.heaviest() == []
    (warned,) = alone.warnings
    assert words.warning(alone, warned).startswith("response 1: all memories together give it 8.00 nats")
    run = run_of(context, "ablate")
    run.run()
    assert [one.key for one in run.chart().heaviest()] == ["red", "rot"]


def test_all_at_once_is_one_line() -> None:
    run = run_of(context_of("red", "rot"), "strip_all")
    run.run()
    found = run.chart()
    assert found.lines == ()
    assert found.dependence.tolist() == pytest.approx([8.0])


def test_a_response_before_a_memory_is_told_from_one_that_it_left_as_it_was() -> None:
    talk = [Segment("user", "q"), Segment("assistant", "a b"), Segment("user", "r"), Segment("memory", "red", "red")]
    run = run_of(Context((*talk, Segment("user", "s"), Segment("assistant", "c d"))))
    run.run()
    found = run.chart()
    assert [words.cell(found, found.lines[0], place) for place in (0, 1)] == [words.AFTER, "+8.00"]
    assert found.per_token(found.lines[0]) == pytest.approx(4.0)  # of the second response's two tokens


@pytest.mark.parametrize("method", ["loo", "strip_all", "ablate"])
def test_what_was_stopped_is_there_as_far_as_it_went(method: Method) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    codec = Words()
    scorer = Told(codec, either)
    if method == "strip_all":
        scorer.fails = _interrupted
    run = ChartRun(context_of("red", "green", "blue"), codec, scorer, method, report=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    found = run.chart()
    assert found.note
    assert found.failed == ()
    assert {line.failure for line in found.all_lines} >= {NOT_REACHED}
    if method == "loo":
        assert [np.isnan(line.weight) for line in found.lines] == [False, False, True]


def test_ablations_that_were_stopped_late_still_weigh() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 6:  # of 7: with all there nothing is left out
            raise KeyboardInterrupt

    codec = Words()
    run = ChartRun(context_of("red", "green", "blue"), codec, Told(codec, either), "ablate", report=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.chart().note == "1 of 8 variants were not reached"
    assert [one.key for one in run.chart().heaviest()] == ["red"]


def _interrupted(call: int) -> SonaError | None:
    if call == 2:
        raise KeyboardInterrupt
    return None


def test_a_failed_row_says_why_and_has_no_zeros() -> None:
    codec = Words()
    scorer = Told(codec, either)
    scorer.fails = lambda call: ScoringError("timed out") if call == 2 else None
    run = ChartRun(context_of("red", "green"), codec, scorer)
    run.run()
    found = run.chart()
    (failed,) = found.failed
    assert (failed.key, failed.failure) == ("red", "timed out")
    assert words.weight(found, failed) == words.cell(found, failed, 0) == words.NO_SCORE
    assert found.ranked[-1] is failed


@pytest.mark.parametrize(("context", "what"), [(context_of(), "memory"), (context_of("red", answers=0), "response")])
def test_nothing_to_score_is_refused(context: Context, what: str) -> None:
    with pytest.raises(InvalidInputError, match=f"no {what}"):
        run_of(context)


def test_noise_is_no_finding() -> None:
    found = chart(("a", [NOISE, 0.1]), ("b", [0.3, 0.2]))
    assert [words.weight(found, line) for line in found.lines] == [words.NOISE, "0.50"]
    assert words.summary(found) == ["b: 0.50, of responses 1 (+0.30)"]


def test_dependence_is_of_what_is_known() -> None:
    found = chart(("a", [NAN, 1.0, AFTER]), ("b", [NAN, NAN, AFTER]))
    assert [words.given(found, place) for place in range(3)] == [words.NO_SCORE, "1.00", words.NOISE]


def test_a_narrow_terminal_shows_the_responses_that_depend_most() -> None:
    found = chart(("a", [1.0, 5.0, 2.0, 4.0, 3.0]))
    assert fitting(found, 120) == [0, 1, 2, 3, 4]
    assert fitting(found, 60) == [1, 3]
    assert fitting(found, 10) == [1]
