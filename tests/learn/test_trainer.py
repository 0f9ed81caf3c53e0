from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from torch import Tensor

from sona.config import TrainConfig
from sona.errors import ConfigError, CycleError, InvalidInputError, ModelError
from sona.learn import lora
from sona.learn.dataset import Example
from sona.learn.ewc import EwcState, from_tensors, importance, measured_state, to_tensors
from sona.learn.fisher import Coordinates, fisher_diagonal
from sona.learn.flat import Layout
from sona.learn.likelihood import causal_lm, evaluate
from sona.learn.penalty import Penalty
from sona.learn.products import Products
from sona.learn.strength import adapted
from sona.learn.trainer import TrainResult, auto_learning_rate, loss_coefficients, train
from tests.learn.tiny_models import ARCHITECTURES, PAD, VOCAB, random_examples, reference_log_probs, tiny_adapter

PLAIN = TrainConfig(warmup_steps=0, ema_decay=0.0)
DATA = random_examples(24, seed=5)


def draw(step: int) -> list[Example]:
    order = np.random.default_rng(step).permutation(len(DATA))[:8]
    return [DATA[index] for index in order]


def held(model: PeftModel, on: Coordinates = "weights") -> EwcState:
    return measured_state(model, DATA, PAD, torch.Generator().manual_seed(0), on=on)


def run(model: PeftModel, steps: int = 12, settings: TrainConfig = PLAIN, **options: object) -> TrainResult:
    arguments: dict[str, object] = {"learning_rate": 3e-3, "pad_id": PAD, **options}
    return train(model, draw, steps=steps, settings=settings, **arguments)  # type: ignore[arg-type]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss_and_leaves_the_base_bit_identical(architecture: str) -> None:
    model = tiny_adapter(architecture, zero=True)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = evaluate(model, DATA, PAD).log_prob.sum()
    result = run(model, 60, TrainConfig(), ewc=held(model))
    assert evaluate(model, DATA, PAD).log_prob.sum() > before
    assert result.metrics["loss_last"] < 0.8 * result.metrics["loss_first"]
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


def test_one_step_equals_torch_adamw_on_the_slow_loss() -> None:
    ours, slow = tiny_adapter(), tiny_adapter()
    examples = [Example(e.prompt, e.response, weight) for e, weight in zip(DATA[:3], (1.0, 0.0, 2.5), strict=True)]
    settings = TrainConfig(warmup_steps=0, ema_decay=0.0, weight_decay=0.1, max_grad_norm=0.5)
    train(ours, lambda step: examples, steps=1, settings=settings, learning_rate=1e-3, pad_id=PAD)

    parameters = list(lora.parameters(slow).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    losses = [-e.weight * reference_log_probs(slow, e).mean() for e in examples]
    (torch.stack(losses).sum() / 3.5).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    optimizer.step()
    for name, tensor in lora.weights(slow).items():
        torch.testing.assert_close(lora.weights(ours)[name], tensor, rtol=0, atol=2e-6)


def test_loss_is_a_weighted_mean_of_means_over_tokens() -> None:
    long, short = (Example(np.ones(2, np.int32), np.ones(n, np.int32), w) for n, w in ((8, 3.0), (2, 1.0)))
    assert loss_coefficients([long, short]) == [3 / (8 * 4), 1 / (2 * 4)]


def test_a_batch_in_parts_gives_the_same_step() -> None:
    whole, parts = tiny_adapter(), tiny_adapter()
    one, many = run(whole, 3, ewc=held(whole)), run(parts, 3, ewc=held(parts), batch_tokens=20)
    for name, tensor in lora.weights(whole).items():
        torch.testing.assert_close(lora.weights(parts)[name], tensor, rtol=0, atol=2e-5)
    assert one.ewc is not None
    assert many.ewc is not None
    torch.testing.assert_close(one.ewc.fisher, many.ewc.fisher, rtol=2e-3, atol=1e-3 * float(one.ewc.fisher.max()))


def test_training_is_deterministic_and_leaves_the_global_random_state() -> None:
    first, second = tiny_adapter(), tiny_adapter()
    torch.default_generator.manual_seed(1)
    state = torch.get_rng_state()
    one = run(first, ewc=held(first))
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(2)
    two = run(second, ewc=held(second))
    assert same(lora.weights(first), lora.weights(second))
    assert same(one.optimizer_state, two.optimizer_state)
    assert one.metrics == two.metrics


def test_lambda_zero_equals_no_ewc_bit_for_bit() -> None:
    without, zero = tiny_adapter(), tiny_adapter()
    run(without)
    result = run(zero, settings=TrainConfig(warmup_steps=0, ema_decay=0.0, ewc_lambda=0.0), ewc=held(zero))
    assert same(lora.weights(without), lora.weights(zero))
    assert result.ewc is not None, "what was observed is kept, for a later λ above 0"
    assert "ewc_penalty_last" not in result.metrics


def test_a_stronger_penalty_moves_important_weights_less() -> None:
    moved = {}
    for lam in (0.01, 1.0, 100.0):
        model = tiny_adapter()
        state = held(model)
        settings = TrainConfig(ewc_lambda=lam)
        run(model, 60, settings, ewc=state)
        moved[lam] = float(Penalty.of(state, 1.0).value(state.layout.join(lora.weights(model))))
    assert moved[100.0] < 0.5 * moved[1.0] < 0.5 * moved[0.01]


def test_state_after_a_cycle_is_anchored_at_the_candidate() -> None:
    model = tiny_adapter()
    state = held(model)
    result = run(model, 25, TrainConfig(fisher_every=4), ewc=state)
    assert result.ewc is not None
    assert torch.equal(result.ewc.anchor, state.layout.join(lora.weights(model)))
    assert result.ewc.updates == 7  # steps 0, 4, ..., 24
    assert bool(result.ewc.score.any())
    assert run(model, 5, ewc=result.ewc).metrics["ewc_gradient_share"] > 0


FORMS = {
    "proximal": TrainConfig(ewc_form="proximal", ewc_lambda=1.0),
    "delta": TrainConfig(ewc_on="delta", ewc_lambda=0.01),
    "anchors": TrainConfig(ewc_anchors=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_learns_over_cycles_and_goes_through_a_file(form: str) -> None:
    model, settings = tiny_adapter(zero=True), FORMS[form]
    state: EwcState | None = held(model, settings.ewc_on)
    before = evaluate(model, DATA, PAD).log_prob.sum()
    for _ in range(3):
        assert state is not None
        state = from_tensors(load(save(to_tensors(state)))).at_boundary(settings.ewc_anchors)
        result = run(model, 20, settings, ewc=state)
        assert result.metrics["ewc_gradient_share"] > 0
        assert result.metrics["ewc_penalty_last"] > 0
        state = result.ewc
    assert evaluate(model, DATA, PAD).log_prob.sum() > before
    assert state is not None
    assert len(state.anchors) == settings.ewc_anchors
    values = state.layout.join(lora.weights(model)) if state.on == "weights" else products_of(model)
    assert torch.equal(state.anchor, values)


def products_of(model: PeftModel) -> Tensor:
    products = Products.of_model(model)
    return products.of(Layout.of(lora.weights(model)).join(lora.weights(model)))


def test_a_stronger_penalty_on_products_moves_them_less() -> None:
    moved = {}
    for lam in (0.001, 0.1, 10.0):
        model = tiny_adapter()
        state = held(model, "delta")
        run(model, 60, TrainConfig(ewc_lambda=lam, ewc_on="delta"), ewc=state)
        moved[lam] = float(Penalty.of(state, 1.0).value(products_of(model)))
    assert moved[10.0] < 0.5 * moved[0.1] < 0.5 * moved[0.001]


def test_fisher_of_a_step_on_products_equals_that_of_its_batch() -> None:
    model, start = tiny_adapter(), tiny_adapter()
    result = run(model, 1, TrainConfig(fisher_decay=0.0, ewc_on="delta"), ewc=held(model, "delta"))
    assert result.ewc is not None
    alone = fisher_diagonal(start, draw(0), PAD, sampled=False, generator=torch.Generator(), on="delta")
    expected = result.ewc.layout.join(alone)
    torch.testing.assert_close(result.ewc.fisher, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_proximal_form_stays_finite_where_the_penalty_does_not() -> None:
    model = tiny_adapter()
    state = held(model)
    run(model, 10, TrainConfig(ewc_form="proximal", ewc_lambda=1e9), ewc=state)
    there = importance(state) > 0.01
    values = state.layout.join(lora.weights(model))
    torch.testing.assert_close(values[there], state.anchor[there], rtol=0, atol=1e-4)


def test_proximal_step_is_the_optimizers_then_the_settling() -> None:
    free, settled = tiny_adapter(), tiny_adapter()
    state = replace(held(settled), anchor=held(settled).anchor + 0.1)
    run(free, 1)
    run(settled, 1, TrainConfig(warmup_steps=0, ema_decay=0.0, ewc_form="proximal", ewc_lambda=50.0), ewc=state)
    expected = Penalty.of(state, 50.0).settled(state.layout.join(lora.weights(free)), 3e-3)
    torch.testing.assert_close(state.layout.join(lora.weights(settled)), expected, rtol=0, atol=1e-6)


def test_a_released_state_lets_the_weights_go() -> None:
    moved = []
    for factor in (1.0, 0.0):
        model = tiny_adapter()
        state = held(model)
        result = run(model, 40, TrainConfig(ewc_lambda=10.0), ewc=state.released(factor))
        moved.append(float(Penalty.of(state, 1.0).value(state.layout.join(lora.weights(model)))))
        assert result.ewc is not None
        assert result.ewc.kept == 1.0
    assert moved[1] > 2 * moved[0]


def test_lambda_of_the_state_is_used_where_it_is_led() -> None:
    led = TrainConfig(ewc_lambda=0.01, ewc_target_forgetting=0.02)
    model = tiny_adapter()
    state = adapted(held(model), 0.5, led)
    result = run(model, 2, led, ewc=state)
    assert result.metrics["ewc_lambda"] == pytest.approx(0.02)
    assert result.ewc is not None
    assert result.ewc.lam == pytest.approx(0.02)
    assert run(model, 2, TrainConfig(ewc_lambda=0.01), ewc=result.ewc).metrics["ewc_lambda"] == 0.01


def test_state_on_other_coordinates_is_refused() -> None:
    model = tiny_adapter()
    with pytest.raises(ModelError, match="ewc_on"):
        run(model, 1, TrainConfig(ewc_on="delta"), ewc=held(model))
    with pytest.raises(ModelError, match="ewc_on"):
        run(model, 1, ewc=held(model, "delta"))


def test_proximal_form_on_products_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="proximal"):
        TrainConfig(ewc_form="proximal", ewc_on="delta")


def test_fisher_of_a_step_equals_that_of_its_batch() -> None:
    model, start = tiny_adapter(), tiny_adapter()
    result = run(model, 1, TrainConfig(fisher_decay=0.0), ewc=held(model))
    assert result.ewc is not None
    alone = fisher_diagonal(start, draw(0), PAD, sampled=False, generator=torch.Generator())
    expected = result.ewc.layout.join(alone)
    torch.testing.assert_close(result.ewc.fisher, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_resumed_optimizer_equals_an_uninterrupted_run() -> None:
    whole, parts = tiny_adapter(), tiny_adapter()
    settings = TrainConfig(warmup_steps=8, ema_decay=0.0)  # the warm-up crosses the cut
    run(whole, 12, settings)
    half = run(parts, 5, settings)
    stored = load(save(half.optimizer_state))
    train(
        parts,
        lambda step: draw(step + 5),
        steps=7,
        settings=settings,
        learning_rate=3e-3,
        pad_id=PAD,
        optimizer_state=stored,
    )
    assert same(lora.weights(whole), lora.weights(parts))


def test_candidate_is_the_running_average_of_the_steps() -> None:
    decay, points = 0.8, []
    for steps in range(1, 6):
        model = tiny_adapter()
        run(model, steps)
        points.append(lora.weights(model))
    averaged = tiny_adapter()
    run(averaged, 5, TrainConfig(warmup_steps=0, ema_decay=decay))
    for name, tensor in lora.weights(averaged).items():
        total = sum((1 - decay) * decay ** (4 - k) * point[name] for k, point in enumerate(points))
        torch.testing.assert_close(tensor, total / (1 - decay**5), rtol=0, atol=1e-6)


def test_metrics_are_what_was_measured() -> None:
    model, losses = tiny_adapter(), list[float]()
    before = lora.weights(model)
    result = run(model, 30, TrainConfig(), ewc=held(model), on_step=lambda step, loss: losses.append(loss))
    metrics = result.metrics
    assert metrics["steps"] == len(losses) == 30
    assert metrics["loss_first"] == pytest.approx(sum(losses[:3]) / 3)
    assert metrics["loss_last"] == pytest.approx(sum(losses[-3:]) / 3)
    assert metrics["tokens"] == sum(len(e.response) for step in range(30) for e in draw(step))
    change = sum(float((tensor - before[name]).square().sum()) for name, tensor in lora.weights(model).items())
    assert metrics["weight_change"] == pytest.approx(change**0.5, rel=1e-4)
    assert metrics["ewc_penalty_last"] > 0


def test_no_steps_change_nothing_and_measure_nothing() -> None:
    model = tiny_adapter()
    before = lora.weights(model)
    result = run(model, 0, ewc=held(model))
    assert same(lora.weights(model), before)
    assert result.metrics == {"steps": 0.0, "tokens": 0.0}
    assert int(result.optimizer_state["step"]) == 0
    run(model, 1, optimizer_state=result.optimizer_state)


def test_nan_raises_and_restores_the_weights() -> None:
    model = tiny_adapter()
    network = causal_lm(model)
    before = lora.weights(model)

    def poisoned(step: int) -> Sequence[Example]:
        if step == 3:
            with torch.no_grad():
                network.get_input_embeddings().weight[VOCAB - 1] = float("nan")
        return draw(step) if step < 3 else [Example(np.array([VOCAB - 1], np.int32), np.array([4], np.int32))]

    with pytest.raises(CycleError, match="step 3"):
        train(model, poisoned, steps=6, settings=PLAIN, learning_rate=3e-3, pad_id=PAD)
    assert same(lora.weights(model), before)
    assert all(parameter.grad is None for parameter in lora.parameters(model).values())


def test_overflow_in_the_last_step_raises_and_restores_the_weights() -> None:
    model = tiny_adapter()
    before, state = lora.weights(model), held(model)
    far = replace(state, anchor=state.anchor + 1e35)
    with pytest.raises(CycleError, match="ewc_lambda"):
        run(model, 1, TrainConfig(ewc_lambda=1e9), ewc=far)
    assert same(lora.weights(model), before)


def test_cancelling_restores_the_weights() -> None:
    model = tiny_adapter()
    before = lora.weights(model)

    def cancel(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, on_step=cancel)
    assert same(lora.weights(model), before)


def test_draw_without_anything_to_learn_is_refused() -> None:
    nothing = [Example(DATA[0].prompt, DATA[0].response, 0.0)]
    for examples in ([], nothing):
        with pytest.raises(InvalidInputError, match="weight above 0"):
            train(
                tiny_adapter(),
                lambda step, examples=examples: examples,  # type: ignore[misc]
                steps=1,
                settings=PLAIN,
                learning_rate=1e-3,
                pad_id=PAD,
            )


def test_states_of_another_adapter_are_refused() -> None:
    other = tiny_adapter(rank=2)
    result = run(other, 2, ewc=held(other))
    with pytest.raises(ModelError):
        run(tiny_adapter(), ewc=result.ewc)
    with pytest.raises(ModelError):
        run(tiny_adapter(), optimizer_state=result.optimizer_state)


def test_automatic_learning_rate_falls_with_width_within_its_bounds() -> None:
    assert auto_learning_rate(2000) == pytest.approx(5e-4)
    assert auto_learning_rate(4096) == pytest.approx(5e-4 * (2000 / 4096) ** 0.781)
    assert auto_learning_rate(16) == 5e-3
    assert auto_learning_rate(10**7) == 1e-5
