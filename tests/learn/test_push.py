"""Answers that were turned down become less likely, and no further than they should."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from peft import PeftModel

from sona.config import TrainConfig
from sona.errors import InvalidInputError
from sona.learn import lora
from sona.learn.dataset import Example
from sona.learn.ewc import EwcState, measured_state
from sona.learn.likelihood import evaluate
from sona.learn.trainer import TrainResult, push_signs, train
from tests.learn.tiny_models import PAD, random_examples, reference_log_probs, tiny_adapter

PROMPT = np.asarray([5, 9, 7], np.int32)
RIGHT, WRONG = np.asarray([11, 12, 2], np.int32), np.asarray([21, 22, 23, 2], np.int32)
SETTINGS = TrainConfig(warmup_steps=0, ema_decay=0.0)


def log_prob(model: PeftModel, *responses: np.ndarray) -> list[float]:
    scores = evaluate(model, [Example(PROMPT, response) for response in responses], PAD)
    return [float(value) for value in scores.log_prob]


def learn(
    model: PeftModel,
    examples: Sequence[Example],
    steps: int,
    settings: TrainConfig = SETTINGS,
    ewc: EwcState | None = None,
) -> TrainResult:
    return train(model, lambda _: examples, steps=steps, settings=settings, learning_rate=3e-3, pad_id=PAD, ewc=ewc)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.one_of(st.none(), st.floats(-20, 0)), st.floats(0, 8)), min_size=1, max_size=6
    )
)
def test_signs_are_those_of_a_slow_loop(answers: list[tuple[int, float | None, float]]) -> None:
    lengths, bounds = [length for length, _, _ in answers], [bound for _, bound, _ in answers]
    nll = torch.cat([torch.full((length,), each) for length, _, each in answers])
    wanted: list[float] = []
    for length, bound, each in answers:
        total = -float(torch.full((length,), each).sum())
        wanted += [1.0 if bound is None else -1.0 if total > np.float32(bound) else 0.0] * length
    assert push_signs(nll, lengths, bounds).tolist() == wanted


def test_the_right_answer_rises_and_the_wrong_one_falls_by_the_margin_and_no_further() -> None:
    model = tiny_adapter(zero=True)
    right, wrong = log_prob(model, RIGHT, WRONG)
    bound = wrong - 4.0
    learn(model, [Example(PROMPT, RIGHT), Example(PROMPT, WRONG, 0.5, push_below=bound)], 60)
    after_right, after_wrong = log_prob(model, RIGHT, WRONG)
    assert after_right > right + 5
    assert after_wrong <= bound
    longer = tiny_adapter(zero=True)
    learn(longer, [Example(PROMPT, RIGHT), Example(PROMPT, WRONG, 0.5, push_below=bound)], 240)
    assert log_prob(longer, WRONG)[0] > bound - 60, "pushed without a bound it falls for ever"


def test_pushed_alone_it_comes_to_rest_below_the_bound_where_without_one_it_falls_for_ever() -> None:
    """AdamW's momentum carries it past the bound, but not on and on."""
    found = {}
    before = log_prob(tiny_adapter(zero=True), WRONG)[0]
    for bound in (before - 2.0, -1e6):
        for steps in (60, 160):
            model = tiny_adapter(zero=True)
            learn(model, [Example(PROMPT, WRONG, push_below=bound)], steps)
            found[bound, steps] = log_prob(model, WRONG)[0]
    assert found[before - 2.0, 60] <= before - 2.0
    assert found[before - 2.0, 160] > found[before - 2.0, 60] - 1.0
    assert found[-1e6, 160] < found[before - 2.0, 160] - 15


def test_what_is_unlikely_enough_already_changes_nothing() -> None:
    model = tiny_adapter()
    start = lora.weights(model)
    result = learn(model, [Example(PROMPT, WRONG, push_below=0.0)], 3)
    assert all(torch.equal(tensor, start[name]) for name, tensor in lora.weights(model).items())
    assert result.metrics["loss_first"] == 0.0


def test_one_step_s_gradient_is_that_of_the_slow_loss() -> None:
    """Imitated: w nll / T; pushed and above its bound: the same with a minus; below it: nothing."""
    data = random_examples(3, seed=4)
    bounds = [None, -1e6, 0.0]
    examples = [
        Example(one.prompt, one.response, weight, bound)
        for one, weight, bound in zip(data, (1.0, 0.5, 0.25), bounds, strict=True)
    ]
    ours, slow = tiny_adapter(), tiny_adapter()
    settings = TrainConfig(warmup_steps=0, ema_decay=0.0, max_grad_norm=0.5)
    train(ours, lambda _: examples, steps=1, settings=settings, learning_rate=1e-3, pad_id=PAD)

    parameters = list(lora.parameters(slow).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    means = [reference_log_probs(slow, one).mean() for one in data]
    ((-1.0 * means[0] + 0.5 * means[1]) / 1.75).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    optimizer.step()
    for name, tensor in lora.weights(slow).items():
        torch.testing.assert_close(lora.weights(ours)[name], tensor, rtol=0, atol=2e-6)


def test_the_loss_that_is_told_is_that_of_what_is_imitated() -> None:
    right, wrong = Example(PROMPT, RIGHT), Example(PROMPT, WRONG, 1.0, push_below=-1e6)
    first = learn(tiny_adapter(), [right, wrong], 1).metrics["loss_first"]
    assert first == pytest.approx(-log_prob(tiny_adapter(), RIGHT)[0] / len(RIGHT) / 2, rel=1e-4)


def test_what_is_pushed_away_tells_nothing_of_what_the_weights_know() -> None:
    """The Fisher information is that of the imitated answers, whatever is pushed beside them."""
    found = []
    for pushed in ([], [Example(PROMPT, WRONG, 1.0, push_below=0.0)]):
        model = tiny_adapter()
        state = measured_state(model, [Example(PROMPT, RIGHT)], PAD, torch.Generator().manual_seed(0), on="weights")
        examples = [Example(PROMPT, RIGHT), *pushed]
        settings = TrainConfig(warmup_steps=0, ema_decay=0.0, fisher_every=1, ewc_lambda=0.0)
        result = learn(model, examples, 1, settings, state)
        assert result.ewc is not None
        # Each example counts by its share of the batch's weight, which is half of it beside a pushed one.
        found.append(result.ewc.fisher / result.ewc.fisher.mean())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_bound_must_be_a_number(bound: float) -> None:
    with pytest.raises(InvalidInputError, match="push_below"):
        Example(PROMPT, WRONG, push_below=bound)
