"""The matrix, by a scorer whose effects are known."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sona.attribution.context import Context
from sona.attribution.matrix import MemoryMatrix
from sona.attribution.memories import MatrixRun, score_memories, score_memory
from sona.errors import InvalidInputError, ScoringError
from sona.types import Progress
from tests.attribution.words import FailingScorer, HintScorer, WordCodec, talk

TALK = talk(
    "system: be kind", "a=ann", "user: hi", "assistant: hello nine", "b=rain", "user: go", "assistant: coat nine"
)
HINTS = {("ann", "nine"): 0.5, ("rain", "coat"): 0.25, ("rain", "nine"): -0.75, ("ann", "hello"): 0.005}


def scored(hints: dict[tuple[str, str], float] = HINTS, context: Context = TALK, **options: object) -> MemoryMatrix:
    codec = WordCodec()
    return score_memories(context, codec, HintScorer(codec, hints), **options)  # type: ignore[arg-type]


def failing(**faults: object) -> tuple[WordCodec, FailingScorer]:
    codec = WordCodec()
    scorer = FailingScorer(codec, HINTS)
    vars(scorer).update(faults)
    return codec, scorer


def test_each_cell_is_log_p_with_minus_log_p_without_and_a_negative_total_counts_as_0() -> None:
    found = scored()
    np.testing.assert_allclose(found.signed, [[0.505, 0.5], [0.0, -0.5]], atol=1e-6)
    np.testing.assert_allclose(found.divergence, [[0.505, 0.5], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(found.nats_per_token, [[0.2525, 0.25], [0.0, -0.25]], atol=1e-6)


def test_row_sums_are_weights_and_column_sums_are_dependence() -> None:
    found = scored()
    np.testing.assert_allclose(found.weights, [1.005, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.dependence, [0.505, 0.5], atol=1e-6)


def test_important_memories_are_those_above_a_hundredth_sorted() -> None:
    found = scored({("ann", "nine"): 0.02, ("rain", "nine"): 0.3, ("ann", "hello"): 0.005})
    assert [key for key, _ in found.important_memories(1)] == ["b", "a"]
    assert [key for key, _ in scored({("ann", "hello"): 0.009}).important_memories(0)] == []


def test_nothing_below_the_noise_floor_is_a_finding() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, {("ann", "hello"): 0.2})
    scorer.noise_floor = 0.27
    found = score_memories(TALK, codec, scorer)
    assert found.weights[0] > 0.1
    assert (found.important_memories(0), found.heaviest()) == ([], [])


def test_the_five_heaviest_are_summarised_with_the_responses_above_a_tenth() -> None:
    names = [f"w{n}" for n in range(7)]
    context = talk(*(f"k{n}={name}" for n, name in enumerate(names)), "user: go", "assistant: yes", "assistant: no")
    hints = {(name, "yes"): 0.11 + 0.01 * n for n, name in enumerate(names)} | {("w6", "no"): 0.09}
    found = scored(hints, context).heaviest()
    assert [one.key for one in found] == ["k6", "k5", "k4", "k3", "k2"]
    assert [column for column, _ in found[0].responses] == [0]


def test_rows_appear_as_they_are_done_and_progress_is_told() -> None:
    rows, told = list[str](), list[Progress]()
    scored(on_row=lambda row: rows.append(row.key), report=told.append, strip_all=True)
    assert sorted(rows) == ["", "a", "b"]
    assert [(one.done, one.total) for one in told] == [(1, 3), (2, 3), (3, 3)]


def test_empty_input_gives_an_empty_result_and_asks_nobody() -> None:
    for context in (talk("user: hi", "assistant: yes"), talk("a=ann", "user: hi")):
        codec = WordCodec()
        scorer = HintScorer(codec, HINTS)
        found = score_memories(context, codec, scorer, strip_all=True)
        assert found.signed.size == 0
        assert (found.heaviest(), scorer.asked) == ([], [])


def test_strip_all_shows_what_single_memories_hide() -> None:
    context = talk("a=nine", "b=nine", "user: age", "assistant: nine")
    found = scored({("nine", "nine"): 0.9}, context, strip_all=True)
    np.testing.assert_allclose(found.signed, [[0.0], [0.0]])
    assert found.unexplained == pytest.approx([0.9])
    assert scored().unexplained is None


@pytest.mark.parametrize(
    ("kind", "why"), [("nan", "nan at token"), ("error", "timed out"), ("short", "were asked for")]
)
def test_a_failed_row_is_marked_failed_and_the_others_are_kept(kind: str, why: str) -> None:
    codec, scorer = failing(wrong={1: kind})
    found = score_memories(TALK, codec, scorer)
    assert why in found.failed["a"]
    assert np.isnan(found.signed[0]).all()
    np.testing.assert_allclose(found.signed[1], [0.0, -0.5], atol=1e-6)
    assert found.important_memories(0) == []


def test_a_backend_that_dies_amid_the_matrix_leaves_the_finished_rows() -> None:
    codec, scorer = failing(dies_at=2)
    found = score_memories(TALK, codec, scorer)
    assert found.failed == {"b": "the server is gone"}
    np.testing.assert_allclose(found.signed[0], [0.505, 0.5], atol=1e-6)
    assert found.weights[0] == pytest.approx(1.005)
    assert np.isnan(found.weights[1])


def test_where_the_whole_has_no_scores_every_row_says_why() -> None:
    codec, scorer = failing(wrong={0: "nan"})
    found = score_memories(TALK, codec, scorer)
    assert found.failed.keys() == {"a", "b"}
    assert np.isnan(found.signed).all()


def test_what_is_cancelled_keeps_what_is_done() -> None:
    stop = threading.Event()
    found = scored(on_row=lambda row: stop.set(), stop=stop)
    assert (found.cancelled, found.missing, list(found.rows)) == (True, ("b",), ["a"])


def test_what_a_report_raises_ends_the_work_and_the_run_still_tells_what_is_done() -> None:
    codec = WordCodec()

    def refuse(progress: Progress) -> None:
        raise KeyboardInterrupt

    run = MatrixRun(TALK, codec, HintScorer(codec, HINTS), report=refuse)
    with pytest.raises(KeyboardInterrupt):
        list(run.rows())
    assert list(run.matrix().rows) == ["a"]


def test_a_context_longer_than_the_model_is_told_before_anything_is_asked() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS, max_tokens=9)
    with pytest.raises(InvalidInputError, match="the model takes 9"):
        score_memories(TALK, codec, scorer)
    assert scorer.asked == []


def test_one_memory_takes_two_passes_and_looks_at_50_responses_after_it() -> None:
    turns = [f"assistant: nine{n}" for n in range(60)]
    context = talk("user: hi", "assistant: nine", "a=ann", "user: go", *turns)
    codec = WordCodec()
    scorer = HintScorer(codec, {("ann", f"nine{n}"): 0.01 for n in range(60)})
    found = score_memory(context, codec, scorer, "a")
    assert found.weight == pytest.approx(0.5)
    assert [ranges for _, ranges in scorer.asked] == [50, 50]


def test_a_memory_that_is_absent_or_that_nothing_follows_is_worth_0() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS)
    assert score_memory(TALK, codec, scorer, "nobody").weight == 0
    assert score_memory(talk("user: hi", "assistant: yes", "a=ann"), codec, scorer, "a").weight == 0
    assert scorer.asked == []


def test_one_memory_that_can_not_be_scored_is_an_error() -> None:
    codec, scorer = failing(wrong={1: "error"})
    with pytest.raises(ScoringError, match="timed out"):
        score_memory(TALK, codec, scorer, "a")
