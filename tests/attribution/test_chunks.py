"""Long contexts."""

from __future__ import annotations

import numpy as np

from sona.attribution.chunks import chunks_of
from sona.attribution.context import ALL_MEMORIES, NOTHING, Drop
from sona.attribution.memories import score_memories
from sona.attribution.tokens import encode
from tests.attribution.words import FailingScorer, HintScorer, WordCodec, talk

TALK = talk(
    *("system: be kind", "i=ann", "journal: day one"),
    *("a=rain", "user: one two three", "assistant: nine coat"),
    *("user: four five six", "assistant: nine coat"),
    *("b=snow now", "user: seven eight", "assistant: nine coat"),
    "user: bye",
)
HINTS = {("ann", "nine"): 0.5, ("rain", "coat"): 0.25, ("snow", "coat"): 0.125}


def test_chunks_end_with_responses_and_repeat_the_fixed_beginning() -> None:
    whole = encode(TALK, WordCodec())
    chunks = chunks_of(TALK, whole, 20)
    assert [chunk.indices for chunk in chunks] == [(0, 1, 2, 3, 4, 5), (0, 1, 2, 6, 7), (0, 1, 2, 8, 9, 10)]
    assert chunks_of(TALK, whole, 10_000)[0].context == TALK


def test_borders_are_those_of_the_full_context_whatever_is_dropped() -> None:
    codec = WordCodec()
    chunks = chunks_of(TALK, encode(TALK, codec), 20)
    for drop in (NOTHING, ALL_MEMORIES, Drop(keys=("a",)), Drop(indices=(8,))):
        assert [list(chunk.encode(codec, drop).responses) for chunk in chunks] == [[5], [7], [10]]


def test_chunks_are_of_about_the_tokens_asked_for() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS)
    found = score_memories(TALK, codec, scorer, chunk_tokens=20)
    assert max(tokens for tokens, _ in scorer.asked) <= 20
    np.testing.assert_allclose(found.signed[0], [0.5, 0.5, 0.5], atol=1e-6)  # identity is in each
    np.testing.assert_allclose(found.signed[1], [0.25, 0.0, 0.0], atol=1e-6)  # it is seen in its own chunk alone
    np.testing.assert_allclose(found.signed[2], [0.0, 0.0, 0.125], atol=1e-6)


def test_a_context_longer_than_the_model_is_scored_in_chunks_that_it_takes() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, HINTS, max_tokens=20)
    assert score_memories(TALK, codec, scorer).failed == {}
    assert max(tokens for tokens, _ in scorer.asked) <= 20


def test_a_backend_that_dies_is_not_asked_for_the_next_chunks() -> None:
    codec = WordCodec()
    scorer = FailingScorer(codec, HINTS)
    scorer.dies_at = 2
    found = score_memories(TALK, codec, scorer, chunk_tokens=20)
    assert len(scorer.asked) == 2
    assert found.failed.keys() == {"i", "a", "b"}
    assert found.signed[0][0] == 0.5  # what it had said by then
