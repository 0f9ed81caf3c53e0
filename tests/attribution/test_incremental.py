"""A few memories at a time, and the responses that depend on any."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from sona.attribution.dependence import score_dependence
from sona.attribution.incremental import Incremental, Scored, score_incremental
from sona.attribution.scorer import Range, Scores
from sona.attribution.weights import WeightsInMemory, first_weight
from sona.candidate import MemoryWeight
from sona.checks import Int32
from sona.errors import InvalidInputError, ScoringError
from sona.ports import Spelled
from tests.attribution.words import FailingScorer, HintScorer, WordCodec, talk

TALK = talk(
    *("i=ann", "identity: me", "user: hi", "a=rain", "user: one", "assistant: nine coat"),
    *("i=ann", "user: two", "assistant: nine coat", "b=snow", "user: three", "assistant: coat", "c=sun"),
)
HINTS = {("ann", "nine"): 0.5, ("rain", "coat"): 0.25, ("snow", "coat"): 0.125}
NOW, S = 10**18, 10**9


def run(store: WeightsInMemory, **settings: object) -> list[Scored]:
    codec = WordCodec()
    made = Incremental(**{"max_age_s": 60.0, **settings})  # type: ignore[arg-type]
    return list(score_incremental(TALK, codec, HintScorer(codec, HINTS), store, made, now_ns=NOW))


def weight(key: str, age_s: int, nats: float = 1.0) -> MemoryWeight:
    return MemoryWeight(key=key, weight=nats, last_scored_ns=NOW - age_s * S)


def test_each_memory_is_scored_once_wherever_it_surfaces() -> None:
    found = run(WeightsInMemory(), cut_off=1.0)
    assert [one.key for one in found] == ["i", "a", "b", "c"]
    assert [one.nats for one in found[:3]] == pytest.approx([1.0, 0.75, 0.125])


def test_what_was_scored_lately_is_not_due_and_the_oldest_score_comes_first() -> None:
    store = WeightsInMemory()
    for one in (weight("i", 70), weight("a", 30), weight("b", 90)):
        store.write_weight(one)
    assert [one.key for one in run(store, cut_off=1.0)] == ["c", "b", "i"]


def test_a_memory_beyond_the_cut_off_or_without_a_response_is_skipped_with_the_reason() -> None:
    found = {one.key: one for one in run(WeightsInMemory())}
    assert (found["b"].status, found["c"].status) == ("skipped", "skipped")
    assert "beyond 60%" in found["b"].reason
    assert found["c"].reason == "no response after it"
    assert found["a"].status == "scored"


def test_identity_counts_as_at_the_contexts_start() -> None:
    assert {one.key: one.status for one in run(WeightsInMemory(), cut_off=0.0)}["i"] == "scored"


def test_each_result_moves_the_weight_and_the_time_in_the_store() -> None:
    store = WeightsInMemory()
    store.write_weight(weight("i", 70, nats=3.0))
    run(store, keep=0.75)
    assert store.weight_of("i") == MemoryWeight(key="i", weight=2.5, last_scored_ns=NOW, times=2)
    assert store.weight_of("a") == first_weight("a", 0.75, NOW)


def test_an_error_goes_on_to_the_next() -> None:
    codec = WordCodec()

    class Once(HintScorer):
        def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
            if not self.asked:
                self.asked.append((0, 0))
                raise ScoringError("timed out")
            return super().score(ids, ranges)

    store = WeightsInMemory()
    found = list(score_incremental(TALK, codec, Once(codec, HINTS), store, Incremental(max_age_s=60), now_ns=NOW))
    assert [(one.key, one.status) for one in found[:2]] == [("i", "failed"), ("a", "scored")]
    assert "timed out" in found[0].reason
    assert store.weight_of("i") is None


def test_it_stops_at_its_limit_or_when_told() -> None:
    assert [one.key for one in run(WeightsInMemory(), limit=1)] == ["i"]
    stop, codec = threading.Event(), WordCodec()
    going = score_incremental(
        TALK, codec, HintScorer(codec, HINTS), WeightsInMemory(), Incremental(max_age_s=1), stop=stop
    )
    assert next(going).key == "i"
    stop.set()
    assert list(going) == []


def test_where_nothing_is_due_nothing_is_rendered() -> None:
    class Broken(WordCodec):
        def spell_out(self, text: str, said: object) -> Spelled:
            raise AssertionError("asked")

    codec = Broken()
    store = WeightsInMemory()
    for key in "iabc":
        store.write_weight(weight(key, 5))
    scorer = HintScorer(codec, HINTS)
    assert list(score_incremental(TALK, codec, scorer, store, Incremental(max_age_s=60), now_ns=NOW)) == []


def test_settings_out_of_range_are_refused() -> None:
    for age, cut_off, keep in ((-1.0, 0.6, 0.7), (1.0, 1.5, 0.7), (1.0, 0.6, 1.0), (float("nan"), 0.6, 0.7)):
        with pytest.raises(InvalidInputError, match="cut_off"):
            Incremental(max_age_s=age, cut_off=cut_off, keep=keep)


def test_dependence_strips_all_memories_from_the_last_responses_and_sorts_them() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS)
    found = score_dependence(TALK, codec, scorer, 2)
    assert [one.index for one in found.effects] == [8, 11]
    assert [one.divergence for one in found.effects] == pytest.approx([0.75, 0.375])
    assert [ranges for _, ranges in scorer.asked] == [2, 2]


def test_dependence_without_memories_is_empty_and_asks_nobody() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS)
    assert score_dependence(talk("user: hi", "assistant: yes"), codec, scorer, 3).effects == ()
    assert scorer.asked == []


def test_dependence_tells_why_there_is_none() -> None:
    codec = WordCodec()
    scorer = FailingScorer(codec, HINTS)
    scorer.dies_at = 0
    found = score_dependence(TALK, codec, scorer, 3)
    assert (found.effects, found.failures) == ((), ("the server is gone",))
