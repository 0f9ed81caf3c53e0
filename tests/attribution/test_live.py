"""A growing conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sona.attribution.context import Context, Segment
from sona.attribution.leave_one_out import LeaveOneOut, OwnTree
from sona.attribution.live import LiveScorer
from sona.attribution.online import Online
from sona.attribution.scorer import Passage, Scores
from sona.errors import InvalidInputError
from tests.attribution.models import POSITIONS, VOCAB, largest_difference, model_of, naive, source_of, watched
from tests.attribution.words import HintScorer, WordCodec, talk

EXACT = 1e-4


def turns(count: int, seed: int = 0, *, strip_all: bool = False) -> list[list[Passage]]:
    """After each turn the whole and each variant so far, the last response to be scored; a memory in every turn. With
    ``strip_all`` the one without any memory comes last.
    """
    more = [ALL] if strip_all else []
    rng = np.random.default_rng(seed)
    stretches: list[tuple[int | None, list[int]]] = []
    calls = []
    for turn in range(count):
        for memory, tokens in ((None, 6), (turn, 5), (None, 4), (None, 8)):
            stretches.append((memory, rng.integers(3, VOCAB, tokens).tolist()))
        calls.append([_passage(stretches, dropped) for dropped in (None, *range(turn + 1), *more)])
    return calls


ALL = -1
"""All memories at once."""


def _passage(stretches: Sequence[tuple[int | None, list[int]]], dropped: int | None) -> Passage:
    def is_there(memory: int | None) -> bool:
        return memory is None or dropped not in (memory, ALL)

    ids = [token for memory, tokens in stretches if is_there(memory) for token in tokens]
    return Passage(np.asarray(ids, np.int32), ((len(ids) - 8, len(ids)),))


def scored(scorer: LiveScorer, passages: Sequence[Passage]) -> list[Scores]:
    found = dict(scorer.score_all(passages))
    return [found[place] for place in range(len(passages))]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "step", "count"), [("llama", 9, 4), ("qwen3", 2048, 5), ("falcon_h1", 2048, 2)])
def test_each_turn_equals_full_passes(name: str, step: int, count: int) -> None:
    live, model = LiveScorer(LeaveOneOut(source_of(name), step_tokens=step)), model_of(name)
    for passages in turns(count):
        assert largest_difference(scored(live, passages), naive(model, passages)) < EXACT


def test_a_turn_costs_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    read = watched(monkeypatch)
    live = LiveScorer(LeaveOneOut(source_of("llama")))
    assert live.noise_floor > 0
    for passages in turns(5):
        read.clear()
        scored(live, passages)
        assert sum(read) <= 23 * len(passages)  # a turn has 23 tokens


def test_a_variant_goes_on_at_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """That without any memory stands last, wherever that is."""
    read = watched(monkeypatch)
    live, model = LiveScorer(LeaveOneOut(source_of("llama"))), model_of("llama")
    assert live.noise_floor > 0
    for passages in turns(6, strip_all=True):
        read.clear()
        assert largest_difference(scored(live, passages), naive(model, passages)) < EXACT
        assert sum(read) <= 23 * len(passages)


def test_the_bytes_that_are_kept_are_bounded() -> None:
    calls, model = turns(6, strip_all=True), model_of("llama")
    free = LiveScorer(LeaveOneOut(source_of("llama")))
    for passages in calls:
        scored(free, passages)
    most = free.kept_bytes // 2
    live = LiveScorer(LeaveOneOut(source_of("llama")), live_bytes=most)
    for passages in calls:
        assert largest_difference(scored(live, passages), naive(model, passages)) < EXACT
        assert 0 < live.kept_bytes <= most
    with pytest.raises(InvalidInputError, match="live_bytes"):
        LiveScorer(LeaveOneOut(source_of("llama")), live_bytes=-1)


def test_a_past_that_changes_is_read_anew_and_right() -> None:
    live, model = LiveScorer(LeaveOneOut(source_of("llama"))), model_of("llama")
    for passages in (turns(4)[-1], turns(4, seed=1)[-1], turns(2)[-1], [], turns(3)[-1][:2], turns(4)[-1]):
        if passages:
            assert largest_difference(scored(live, passages), naive(model, passages)) < EXACT


def test_passages_in_another_order_are_right() -> None:
    live, model = LiveScorer(LeaveOneOut(source_of("llama"))), model_of("llama")
    *_, before, after = turns(4)
    scored(live, before)
    shuffled = [after[0], *after[:0:-1]]
    assert largest_difference(scored(live, shuffled), naive(model, shuffled)) < EXACT


def test_what_is_kept_is_bounded() -> None:
    live, model = LiveScorer(LeaveOneOut(source_of("llama")), live_tokens=60), model_of("llama")
    for passages in turns(5):
        assert largest_difference(scored(live, passages), naive(model, passages)) < EXACT
        assert live.kept_tokens <= 60
    with pytest.raises(InvalidInputError, match="live_tokens"):
        LiveScorer(LeaveOneOut(source_of("llama")), live_tokens=-1)


def test_what_is_broken_off_is_forgotten() -> None:
    live, model = LiveScorer(LeaveOneOut(source_of("llama"))), model_of("llama")
    first, second, *_ = turns(3)
    scored(live, first)
    answers = live.score_all(second)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert live.kept_tokens == 0
    assert largest_difference(scored(live, second), naive(model, second)) < EXACT


def test_another_adapter_starts_anew() -> None:
    class Switched(OwnTree):
        def use(self, model: torch.nn.Module, key: str) -> None:
            from sona.ports import ModelTree

            self._tree = ModelTree(model, model.get_output_embeddings(), key)  # type: ignore[arg-type, operator]

    source = Switched(model_of("llama"), POSITIONS)
    live = LiveScorer(LeaveOneOut(source))
    first, second, *_ = turns(3)
    scored(live, first)
    other = model_of("llama")
    for value in other.parameters():
        value.mul_(1.05)
    source.use(other, "v2")
    assert largest_difference(scored(live, second), naive(other, second)) < EXACT


def test_online_scores_each_response_once() -> None:
    codec = WordCodec()
    scorer = HintScorer(codec, {("ann", "nine"): 0.5, ("rain", "coat"): 0.25})
    online = Online(codec, scorer)
    first = talk("a=ann", "user: hi", "assistant: nine")
    found = online.extend(first)
    assert [one.index for one in found.responses] == [2]
    assert found.signed.tolist() == [[0.5]]
    more = Context((*first.segments, *talk("b=rain", "user: go", "assistant: coat nine").segments))
    found = online.extend(more)
    assert [one.index for one in found.responses] == [5]
    assert found.signed.tolist() == [[0.5], [0.25]]
    assert online.extend(more).responses == ()
    other = Context((Segment("user", "new"), Segment("memory", "rain", "b"), Segment("assistant", "coat")))
    assert online.extend(other).signed.tolist() == [[0.25]]
