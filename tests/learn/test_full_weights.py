"""All weights learn the continuations, and a training that goes on equals the unbroken one bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from sona.errors import ModelError, TrainingError
from sona.learn.full_weights import FullWeights, needed_bytes, own, settings_of
from tests.learn.tiny_models import PAD, random_examples, reference_log_probs, tiny_model
from tests.training import recipe

KINDS = [
    {"optimizer": "apollo"},
    {"optimizer": "apollo-mini", "rank": 1, "scale": 128.0},
    {"optimizer": "adamw", "rank": 1},
]


def fresh(architecture: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> FullWeights:
    model = tiny_model(architecture)
    nn.Module.to(model, dtype)
    return FullWeights(model, pad_id=PAD, seed=seed)


def is_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_is_the_mean_over_samples_of_their_continuations_mean() -> None:
    examples, losses = random_examples(3), []
    reference = tiny_model()
    found = [reference_log_probs(reference, one).detach() for one in examples]
    expected = -sum(float(one.mean()) for one in found) / 3
    counted = -sum(float(one.sum()) for one in found)
    done = fresh().train(examples, recipe(batch_size=3), on_step=lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == [1]
    assert losses[0][1] == pytest.approx(expected, rel=1e-5)
    assert done.tokens == sum(len(one.response) for one in examples)
    assert done.loss_before == pytest.approx(counted / done.tokens, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["optimizer"]))
def test_it_learns_what_it_is_given(kind: dict[str, object]) -> None:
    weights = fresh()
    done = weights.train(random_examples(6), recipe(**kind, learning_rate=3e-3, passes=12, growth_limit=1.5))
    assert done.steps == 36
    assert done.loss_after < done.loss_before - 0.5


def test_a_batch_taken_in_several_passes_has_the_same_gradient() -> None:
    """In the same step: what differs is the order of a sum."""
    whole, parts = fresh(), fresh()
    examples = random_examples(4)
    changed = recipe(optimizer="adamw", batch_size=4, warmup_steps=0, eps=1.0)  # a step in proportion to the gradient
    whole.train(examples, changed)
    parts.train(examples, changed, batch_tokens=1)
    for name, tensor in own(whole.model).items():
        torch.testing.assert_close(own(parts.model)[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rounding", ["masters", "stochastic"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["optimizer"]))
def test_a_run_that_goes_on_equals_the_unbroken_one_bit_for_bit(kind: dict[str, object], rounding: str) -> None:
    how = recipe(**kind, rounding=rounding)
    unbroken = fresh(dtype=torch.bfloat16)
    for part in range(4):
        unbroken.train(random_examples(5, part), how, seed=str(part))
    broken = fresh(dtype=torch.bfloat16)
    for part in range(4):
        broken.train(random_examples(5, part), how, seed=str(part))
        stored, kind_of, steps = broken.to_tensors(), broken.kind, broken.steps
        broken = fresh(dtype=torch.bfloat16)
        broken.load_tensors(stored, kind_of, steps)
        assert is_equal(broken.to_tensors(), stored), "before it has taken a step"
    assert unbroken.steps == broken.steps == 12
    assert is_equal(unbroken.to_tensors(), broken.to_tensors())
    assert {tensor.dtype for tensor in own(broken.model).values()} == {torch.bfloat16}
    has_masters = any("/master/" in name for name in broken.to_tensors())
    assert has_masters == (rounding == "masters")


def test_the_order_of_samples_is_the_trainings_own() -> None:
    runs = [fresh(), fresh(), fresh(seed=1)]
    for run, seed in zip(runs, ("1", "2", "1"), strict=True):
        run.train(random_examples(8), recipe(), seed=seed)
    first, *others = [run.to_tensors() for run in runs]
    assert not any(is_equal(first, other) for other in others)


def test_the_state_goes_on_with_other_rates_and_begins_anew_with_another_rank() -> None:
    weights, examples = fresh(), random_examples(4)
    assert not weights.train(examples, recipe()).continued
    assert weights.train(examples, recipe(learning_rate=1e-4, betas=(0.8, 0.99), refresh_steps=9)).continued
    assert weights.steps == 4
    assert not weights.train(examples, recipe(rank=4)).continued
    assert weights.steps == 2
    assert weights.to_tensors()["optimizer/exp_avg/model.layers.0.mlp.up_proj.weight"].shape == (4, 48)


def test_the_rate_rises_from_where_the_state_began() -> None:
    """Plain Adam's first step is as long as its rate, in each number."""
    moved = []
    for warmup in (0, 10):
        weights = fresh()
        before = {name: tensor.detach().clone() for name, tensor in own(weights.model).items()}
        weights.train(random_examples(2), recipe(optimizer="adamw", warmup_steps=warmup))
        now = {name: tensor.detach() for name, tensor in own(weights.model).items()}
        moved.append(max(float((now[name] - tensor).abs().max()) for name, tensor in before.items()))
    assert moved == [pytest.approx(1e-3, rel=0.01), pytest.approx(1e-4, rel=0.01)]


def test_embedding_and_head_stay_on_adamw() -> None:
    model = tiny_model("qwen3")
    assert set(settings_of(recipe(), model).plain) == {"model.embed_tokens.weight", "lm_head.weight"}
    weights = FullWeights(model, pad_id=PAD)
    weights.train(random_examples(2), recipe())
    state = weights.to_tensors()
    assert state["optimizer/exp_avg/lm_head.weight"].shape == model.lm_head.weight.shape
    assert "optimizer/norm/model.layers.0.mlp.up_proj.weight" in state


def test_a_loss_that_is_not_finite_is_no_step() -> None:
    weights = fresh()
    with torch.no_grad():
        next(iter(own(weights.model).values()))[5] = math.inf
    with pytest.raises(TrainingError, match="not finite; lower lr"):
        weights.train(random_examples(4), recipe())
    assert weights.steps == 0


def test_steps_that_ruin_the_weights_are_told() -> None:
    with pytest.raises(TrainingError, match="not finite; lower lr"):
        fresh().train(random_examples(4), recipe(optimizer="adamw", learning_rate=3e38, warmup_steps=0))


def test_tied_weights_are_stored_once_and_all_others() -> None:
    stored = fresh("llama").to_tensors()
    assert "weight/model.embed_tokens.weight" in stored
    assert "weight/lm_head.weight" not in stored
    assert "weight/lm_head.weight" in fresh("qwen3").to_tensors()


def test_weights_of_another_model_or_precision_are_refused() -> None:
    stored = fresh("qwen3").to_tensors()
    for other in (fresh("llama"), fresh("qwen3", dtype=torch.bfloat16)):
        before = {name: tensor.detach().clone() for name, tensor in own(other.model).items()}
        with pytest.raises(ModelError, match="of another model"):
            other.load_tensors(stored, "", 0)
        assert is_equal(before, own(other.model))


def test_a_model_of_other_numbers_is_refused() -> None:
    with pytest.raises(ModelError, match="quantized"):
        fresh(dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["optimizer"]))
def test_the_memory_that_is_asked_for_is_enough_and_not_twice_that(kind: dict[str, object]) -> None:
    weights, how = fresh("qwen3", dtype=torch.bfloat16), recipe(**kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.model.named_parameters()}
    weights.train(random_examples(2), how)
    kept = weights.to_tensors()
    state = sum(tensor.nbytes for name, tensor in kept.items() if name.startswith("optimizer/"))
    numbers = sum(tensor.numel() for tensor in own(weights.model).values())
    held = 8 * numbers + 2 * state  # weights and gradients in float32, the state and its copy
    assert held <= needed_bytes(shapes, how) <= 1.5 * held
