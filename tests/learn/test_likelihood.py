from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from sona.checks import Int32
from sona.learn.dataset import Example, collate
from sona.learn.likelihood import (
    LanguageModel,
    causal_lm,
    default_batch_tokens,
    empty_scores,
    evaluate,
    kl_from_base,
    put_scores,
    response_logits,
    response_nll,
)
from tests.learn.tiny_models import ARCHITECTURES, PAD, VOCAB, random_examples, reference_log_probs, tiny_adapter

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "initializer_range": 0.3,
}


def scaled_models() -> dict[str, PreTrainedModel]:
    """Architectures that change the logits after their head, and one with other layers."""
    torch.default_generator.manual_seed(0)
    models: dict[str, PreTrainedModel] = {
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0)),
        "cohere": CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
        "granite": GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, pad_token_id=PAD)),
    }
    for model in models.values():
        model.train(False)
    return models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_log_prob_equals_a_naive_loop(architecture: str) -> None:
    model, examples = tiny_adapter(architecture), random_examples(12)
    scores = evaluate(model, examples, PAD, batch_tokens=40)
    naive = [float(reference_log_probs(model, example).double().sum()) for example in examples]
    np.testing.assert_allclose(scores.log_prob, naive, rtol=0, atol=2e-4)
    assert scores.tokens.tolist() == [len(example.response) for example in examples]
    nll, tokens = response_nll(model, collate(examples, PAD))
    np.testing.assert_allclose(-nll.numpy(), naive, rtol=0, atol=2e-4)
    assert tokens.tolist() == scores.tokens.tolist()


@torch.no_grad()
def test_head_on_response_rows_gives_the_models_own_logits() -> None:
    batch = collate(random_examples(5), PAD)
    for name, model in scaled_models().items():
        full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        rows = full.flatten(0, 1)[batch.rows]
        torch.testing.assert_close(response_logits(model, batch), rows, rtol=0, atol=2e-5, msg=name)
        assert not causal_lm(model).get_output_embeddings()._forward_pre_hooks, "the hook must be gone"


@torch.no_grad()
def test_padding_does_not_change_a_score() -> None:
    model, (short, *rest) = tiny_adapter(), random_examples(6)
    alone = evaluate(model, [short], PAD).log_prob[0]
    long = Example(np.full(40, 5, np.int32), np.full(10, 6, np.int32))
    padded = evaluate(model, [*rest, long, short], PAD).log_prob[-1]
    assert padded == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_is_what_greedy_decoding_gives(architecture: str) -> None:
    model, prompts = tiny_adapter(architecture), random_examples(10, seed=3)
    examples = []
    for index, example in enumerate(prompts):
        response = greedy(model, example.prompt, 5)
        if index % 2:  # one wrong token, anywhere
            place = index % len(response)
            response[place] = (response[place] + 1) % VOCAB
        examples.append(Example(example.prompt, response))
    exact = evaluate(model, examples, PAD).exact
    assert exact.tolist() == [index % 2 == 0 for index in range(10)]


def greedy(model: LanguageModel, prompt: Int32, count: int) -> Int32:
    """At most ``count`` tokens, the end token included where the model writes it."""
    ids = torch.tensor(prompt).long()[None]
    mask = torch.ones_like(ids)
    out = causal_lm(model).generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    return np.asarray(out[0, len(prompt) :], np.int32)


def test_share_right_counts_the_likeliest_tokens() -> None:
    model, (example, *_) = tiny_adapter(), random_examples(3)
    response = greedy(model, example.prompt, 4)
    response[-1] = (response[-1] + 1) % VOCAB  # the last, so that those before it keep their context
    scores = evaluate(model, [Example(example.prompt, response)], PAD)
    assert scores.share_right.tolist() == [1 - 1 / len(response)]


def test_a_large_vocabulary_bounds_the_batch() -> None:
    model = tiny_adapter()
    assert default_batch_tokens(model) == 8192
    causal_lm(model).get_input_embeddings().num_embeddings = 2**18
    assert default_batch_tokens(model) == 1024


def test_bfloat16_model_is_scored_in_float32() -> None:
    model, examples = tiny_adapter(spread=0.05), random_examples(6)
    exact = evaluate(model, examples, PAD).log_prob
    half = evaluate(causal_lm(model).to(torch.bfloat16), examples, PAD)
    assert half.log_prob.dtype == np.float64
    np.testing.assert_allclose(half.log_prob, exact, rtol=0.05)
    assert not np.allclose(half.log_prob, half.log_prob.astype(np.float16)), "sums rounded to half precision"


def test_on_batch_counts_and_can_cancel() -> None:
    model, examples = tiny_adapter(), random_examples(9)
    seen: list[tuple[int, int]] = []
    evaluate(model, examples, PAD, batch_tokens=30, on_batch=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert len(seen) > 1

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, examples, PAD, on_batch=cancel)


def test_nothing_to_score_gives_empty_scores() -> None:
    assert evaluate(tiny_adapter(), [], PAD).log_prob.shape == (0,)


@pytest.mark.parametrize("batch_tokens", [None, 12])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_divergence_from_the_base_is_that_of_every_next_token(architecture: str, batch_tokens: int | None) -> None:
    model = tiny_adapter(architecture, seed=2)
    examples = random_examples(7, seed=3)
    found = kl_from_base(model, examples, PAD, batch_tokens=batch_tokens)
    for example, value in zip(examples, found, strict=True):
        ids = torch.tensor(np.concatenate([example.prompt, example.response])).long()[None]
        at = slice(len(example.prompt) - 1, -1)
        with torch.no_grad():
            adapted = model(input_ids=ids).logits[0, at].double().softmax(-1)  # (response, V)
            with model.disable_adapter():
                base = model(input_ids=ids).logits[0, at].double().softmax(-1)
        wanted = (base * (base / adapted).log()).sum(-1).mean()
        assert value == pytest.approx(float(wanted), rel=1e-3, abs=1e-6)
    assert (found > 0).all()


def test_an_adapter_that_changes_nothing_does_not_diverge() -> None:
    assert kl_from_base(tiny_adapter(zero=True), random_examples(5), PAD).tolist() == [0.0] * 5
    assert kl_from_base(tiny_adapter(), [], PAD).tolist() == []


def test_scores_put_together_in_parts_are_those_of_the_whole() -> None:
    model, examples = tiny_adapter(), random_examples(9, seed=6)
    whole, parts = evaluate(model, examples, PAD), empty_scores(9)
    assert parts.log_prob.tolist() == [0.0] * 9
    for places in ([8, 0, 3], [1, 2, 4, 5], [7, 6], []):
        put_scores(parts, places, evaluate(model, [examples[place] for place in places], PAD))
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, rtol=1e-5)
    for name in ("tokens", "exact", "share_right"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    for place in range(9):
        np.testing.assert_allclose(parts.token_log_prob[place], whole.token_log_prob[place], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(parts.token_right[place], whole.token_right[place])
