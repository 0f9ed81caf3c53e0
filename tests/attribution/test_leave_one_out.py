"""The in-process scorer against full passes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sona.attribution import cascade, walked
from sona.attribution.leave_one_out import LeaveOneOut, OwnTree, Way
from sona.attribution.scorer import Passage, Scores
from sona.errors import InvalidInputError, ScoringError, UnknownTokenError
from sona.ports import ModelTree
from tests.attribution.models import (
    POSITIONS,
    VOCAB,
    conversation,
    largest_difference,
    model_of,
    naive,
    source_of,
    watched,
)

EXACT = 1e-4


def scored(scorer: LeaveOneOut, passages: Sequence[Passage]) -> list[Scores]:
    found = dict(scorer.score_all(passages))
    assert all(isinstance(one, list) for one in found.values()), found
    return [found[place] for place in range(len(passages))]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", "packed"),
        ("qwen3", "packed"),
        ("mistral", "walked"),  # a sliding window
        ("falcon_h1", "walked"),  # attention and a recurrent state in each layer
        ("qwen3_next", "walked"),  # recurrent layers and attention in turn
        ("lfm2", "walked"),  # convolutions, which say that they can be cropped and can't
        ("jamba", "plain"),  # in transformers 5.23 it does not go on rightly from a cache
    ],
)
def test_it_equals_full_passes_in_the_fastest_way_that_is_right_for_the_model(name: str, way: Way) -> None:
    passages, source = conversation(), source_of(name)
    scorer = LeaveOneOut(source, step_tokens=50)
    assert scorer.way == way
    wanted = naive(model_of(name), passages)
    assert largest_difference(wanted[:1], [one[: len(wanted[0])] for one in wanted[1:2]]) > 0.1  # memories matter
    assert largest_difference(scored(scorer, passages), wanted) < EXACT


@pytest.mark.parametrize("way", ["packed", "walked", "plain"])
@pytest.mark.parametrize("step", [1, 7, 64, 4096])
def test_however_few_tokens_are_read_at_once_it_is_the_same(way: Way, step: int) -> None:
    passages = conversation(turns=2)
    scorer = LeaveOneOut(source_of("qwen3"), step_tokens=step, way=way)
    assert largest_difference(scored(scorer, passages), naive(model_of("qwen3"), passages)) < EXACT


def test_layers_with_a_recurrent_state_are_copied_at_the_borders_and_never_cropped() -> None:
    source = source_of("falcon_h1")
    with source.lend_tree(np.zeros(1, np.int32)) as tree:
        walk = walked.Walk(tree, 64)
        ids = torch.arange(3, 40)
        walk.read(ids[:20])
        assert not walk.rewinds
        before = walk.fork(20).read(ids, [(25, 30)])
        np.testing.assert_array_equal(walk.fork(20).read(ids, [(25, 30)]), before)  # the first fork left it as it was


def test_no_more_tokens_are_read_at_once_than_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    scored(LeaveOneOut(source_of("llama"), step_tokens=30, way="packed"), conversation())
    assert max(seen) <= 30


def test_the_variants_read_only_what_comes_after_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    passages, read = conversation(), watched(monkeypatch)
    scorer = LeaveOneOut(source_of("llama"), way="packed")
    assert scorer.way == "packed"
    read.clear()
    order = [place for place, _ in scorer.score_all(passages)]
    assert sum(read) < 0.75 * sum(len(one.ids) for one in passages)
    assert order[0] == 0
    assert order[-1] == 1  # the memory before all else has the most behind it


def test_responses_before_the_memory_are_the_wholes_own() -> None:
    passages = conversation()
    found = scored(LeaveOneOut(source_of("llama")), passages)
    np.testing.assert_array_equal(found[4][0], found[0][0])
    for mine, its in zip(found[-1], found[0], strict=True):
        np.testing.assert_array_equal(mine, its)


def test_the_models_attention_and_gradients_are_as_before() -> None:
    source = source_of("llama")
    scorer = LeaveOneOut(source)
    with source.lend_tree(np.zeros(1, np.int32)) as tree:
        before = tree.model.config._attn_implementation
        for _ in scorer.score_all(conversation(turns=1)):
            assert torch.is_grad_enabled()
        assert tree.model.config._attn_implementation == before


def test_answers_that_are_not_taken_to_their_end_leave_the_model_free() -> None:
    scorer = LeaveOneOut(source_of("llama"))
    answers = scorer.score_all(conversation())
    next(answers)
    with pytest.raises(ScoringError, match="amid its own answers"):
        scorer.score(np.arange(5, dtype=np.int32), [(1, 3)])
    del answers
    assert len(scorer.score(np.arange(5, dtype=np.int32), [(1, 3)])[0]) == 2


def test_several_threads_get_the_same() -> None:
    scorer, passages, found = LeaveOneOut(source_of("llama")), conversation(), list[list[Scores]]()
    threads = [threading.Thread(target=lambda: found.append(scored(scorer, passages))) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 3
    assert largest_difference(found[0], found[1]) == largest_difference(found[0], found[2]) == 0.0


def test_the_noise_floor_is_that_of_the_models_precision() -> None:
    assert LeaveOneOut(source_of("llama")).noise_floor == pytest.approx(1e-3, rel=0.5)
    assert LeaveOneOut(source_of("llama", torch.bfloat16)).noise_floor >= 0.27


def test_a_model_whose_numbers_overflow_is_told_as_such() -> None:
    model = model_of("llama")
    with torch.no_grad():
        next(model.parameters())[5] = float("nan")  # the embedding table
    scorer = LeaveOneOut(OwnTree(model, POSITIONS), way="plain")
    good, bad = np.array([3, 4, 6, 7], np.int32), np.array([3, 5, 6, 7], np.int32)
    found = dict(scorer.score_all([Passage(good, ((2, 4),)), Passage(bad, ((2, 4),))]))
    assert isinstance(found[0], list)
    assert "nan at token 2" in str(found[1])


def test_out_of_memory_is_told_with_the_setting_that_helps() -> None:
    class Full(OwnTree):
        def fill(self) -> None:
            def refuse(hidden: torch.Tensor) -> torch.Tensor:
                return torch.empty(2**50)

            self._tree = ModelTree(self._tree.model, refuse)

    source = Full(model_of("llama"), POSITIONS)
    scorer = LeaveOneOut(source)
    assert scorer.way == "packed"
    source.fill()
    with pytest.raises(ScoringError, match="lower step_tokens"):
        scorer.score(np.arange(3, 9, dtype=np.int32), [(2, 4)])


def test_another_tokenizers_ids_and_a_context_longer_than_the_model_are_refused() -> None:
    scorer = LeaveOneOut(source_of("llama"))
    with pytest.raises(UnknownTokenError, match="use its tokenizer"):
        scorer.score(np.array([1, VOCAB], np.int32), [(1, 2)])
    with pytest.raises(InvalidInputError, match=f"takes {POSITIONS}"):
        scorer.score(np.zeros(POSITIONS + 1, np.int32), [(1, 2)])
    with pytest.raises(InvalidInputError, match="ranges"):
        scorer.score(np.zeros(4, np.int32), [(0, 2)])


def test_logits_that_the_model_scales_after_its_head_are_not_scored_wrongly() -> None:
    with pytest.raises(ScoringError, match="not known here"):
        LeaveOneOut(source_of("granite")).score(np.arange(3, 9, dtype=np.int32), [(2, 4)])
    model = model_of("granite")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    scorer = LeaveOneOut(OwnTree(model, POSITIONS, lambda hidden: head(hidden) / 3.0))
    passages = conversation(turns=1)
    assert largest_difference(scored(scorer, passages), naive(model, passages)) < EXACT


def test_a_way_that_is_wrong_for_the_model_is_refused() -> None:
    with pytest.raises(ScoringError, match="'walked' is wrong for this model"):
        LeaveOneOut(source_of("jamba"), way="walked").score(np.arange(3, 9, dtype=np.int32), [(2, 4)])


def test_merged_attention_is_that_over_all_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 20, 8, generator=generator) for heads in (4, 2, 2))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    block = cascade.Block()
    for start, end in ((0, 3), (3, 9), (9, 20)):
        piece = cascade.Piece(torch.arange(end - start), ((block, block.tokens),), block)
        part = slice(start, end)
        out = cascade.Plan([piece], last_layer=9).attend(0, q[:, :, part], k[:, :, part], v[:, :, part], None)
        block.tokens = end
        torch.testing.assert_close(out, whole[:, :, part], atol=1e-6, rtol=1e-5)


def test_empty_passages_have_no_scores() -> None:
    scorer = LeaveOneOut(source_of("llama"))
    assert list(scorer.score_all([])) == []
    assert scorer.score(np.zeros(0, np.int32), []) == []
    assert scorer.score(np.arange(5, dtype=np.int32), []) == []
