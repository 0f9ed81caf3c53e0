from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from sona.errors import CycleError
from sona.learn import fisher, lora
from sona.learn.dataset import Example, collate
from sona.learn.fisher import PerExampleTaps, fisher_diagonal, sample_tokens
from sona.learn.likelihood import token_nll
from sona.learn.products import Products, adapted_layers
from tests.learn.tiny_models import ARCHITECTURES, PAD, random_examples, reference_log_probs, tiny_adapter


def empirical(model: PeftModel, examples: list[Example], batch_tokens: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator()
    return fisher_diagonal(model, examples, PAD, sampled=False, generator=generator, batch_tokens=batch_tokens)


def on_products(model: PeftModel, examples: list[Example], batch_tokens: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator()
    return fisher_diagonal(
        model, examples, PAD, sampled=False, generator=generator, batch_tokens=batch_tokens, on="delta"
    )


def slow_fisher(model: PeftModel, examples: list[Example]) -> dict[str, Tensor]:
    """One backward pass for each example, squared, averaged."""
    parameters = lora.parameters(model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for example in examples:
        gradients = torch.autograd.grad(reference_log_probs(model, example).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient.square() / len(examples)
    return total


def slow_product_fisher(model: PeftModel, examples: list[Example]) -> dict[str, Tensor]:
    """The same of ΔW, by autograd on a ΔW that is added to each layer as a parameter of its own."""
    deltas, handles = dict[str, Tensor](), []
    for name, layer in adapted_layers(model).items():
        out, width = Products.of_model(model).layout.shapes[name]
        deltas[name] = torch.zeros(out, width, requires_grad=True)

        def add(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor, delta: Tensor = deltas[name]) -> Tensor:
            return output + inputs[0] @ delta.T

        handles.append(layer.register_forward_hook(add))
    total = {name: torch.zeros_like(delta) for name, delta in deltas.items()}
    for example in examples:
        gradients = torch.autograd.grad(reference_log_probs(model, example).sum(), list(deltas.values()))
        for name, gradient in zip(deltas, gradients, strict=True):
            total[name] += gradient.square() / len(examples)
    for handle in handles:
        handle.remove()
    return total


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    scale = max(float(tensor.max()) for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_empirical_fisher_equals_a_loop_over_examples(architecture: str) -> None:
    model, examples = tiny_adapter(architecture), random_examples(7)
    assert_equal(empirical(model, examples), slow_fisher(model, examples))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fisher_of_products_equals_a_loop_over_examples(architecture: str) -> None:
    model, examples = tiny_adapter(architecture), random_examples(7)
    assert_equal(on_products(model, examples), slow_product_fisher(model, examples))


def test_fisher_of_products_does_not_depend_on_batches_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_adapter(), random_examples(9)
    expected = on_products(model, examples)
    assert_equal(on_products(model, examples, batch_tokens=1), expected)
    assert_equal(on_products(model, examples[::-1], batch_tokens=50), expected)
    monkeypatch.setattr(fisher, "_CHUNK_NUMBERS", 3000)
    assert_equal(on_products(model, examples), expected)


def test_fisher_of_products_is_the_models_own_however_it_is_factored() -> None:
    """(B R)(R⁻¹ A) is the same model: the information of ΔW stays, that of A and B does not."""
    model, examples, turned = tiny_adapter(), random_examples(4), tiny_adapter()
    factor = torch.tensor(3.0)
    scaled = {name: w * factor if "lora_A" in name else w / factor for name, w in lora.weights(model).items()}
    lora.load_weights(turned, scaled)
    assert_equal(on_products(turned, examples), on_products(model, examples))
    name = next(iter(lora.weights(model)))
    assert not torch.allclose(empirical(turned, examples)[name], empirical(model, examples)[name], rtol=0.1)


def test_fisher_does_not_depend_on_batches_padding_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_adapter(), random_examples(9)
    expected = empirical(model, examples)
    assert_equal(empirical(model, examples, batch_tokens=1), expected)
    assert_equal(empirical(model, examples[::-1], batch_tokens=50), expected)
    monkeypatch.setattr(fisher, "_CHUNK_NUMBERS", 300)  # two examples at a time for the smaller layers
    assert_equal(empirical(model, examples), expected)


def test_fisher_in_a_training_step_does_not_depend_on_the_loss_weights() -> None:
    model, examples = tiny_adapter(), random_examples(6)
    coefficients = [0.03, 2.0, 0.0, 0.5, 1.0, 0.0]
    batch = collate(examples, PAD)
    share = torch.tensor(np.repeat(coefficients, batch.lengths), dtype=torch.float32)
    with PerExampleTaps(model) as taps:
        taps.expect(coefficients)
        (token_nll(model, batch) * share).sum().backward()  # type: ignore[no-untyped-call]
    counted = [example for example, coefficient in zip(examples, coefficients, strict=True) if coefficient]
    assert_equal(taps.mean(), slow_fisher(model, counted))


def test_taps_leave_gradients_and_model_as_they_are() -> None:
    model, batch = tiny_adapter(), collate(random_examples(4), PAD)
    plain = torch.autograd.grad(token_nll(model, batch).sum(), list(lora.parameters(model).values()))
    with PerExampleTaps(model) as taps:
        taps.expect([1.0] * 4)
        tapped = torch.autograd.grad(token_nll(model, batch).sum(), list(lora.parameters(model).values()))
    assert all(torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))
    assert not any(layer._forward_hooks for layer in lora.layers(model).values())


def test_new_adapter_has_information_in_b_alone() -> None:
    information = empirical(tiny_adapter(zero=True), random_examples(4))
    for name, tensor in information.items():
        assert bool(tensor.any()) == name.endswith("lora_B.weight"), name


def test_linear_softmax_model_has_its_analytic_fisher() -> None:
    """For logits z = B A x and labels drawn from p = softmax(z), F of B is E[(p_v (1 − p_v)) (A x)_r²]."""
    torch.default_generator.manual_seed(0)
    model, draws = OneLayer(), 4000
    generator = torch.Generator().manual_seed(0)
    with PerExampleTaps(model) as taps:  # type: ignore[arg-type]
        x = torch.randn(5, 1, 6).repeat(draws, 1, 1)  # (N, T=1, in)
        logits = model(x).squeeze(1)  # (N, V)
        taps.expect([1.0] * len(x))
        labels = sample_tokens(logits.detach(), generator)
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    p, h = logits.detach().softmax(-1), model.get_submodule("layer.lora_A.default")(x).detach().squeeze(1)
    expected = (p * (1 - p)).T @ h.square() / len(x)  # (V, r)
    torch.testing.assert_close(taps.mean()["layer.lora_B.weight"], expected, rtol=0.1, atol=2e-3)


def test_linear_softmax_model_has_its_analytic_fisher_of_the_product() -> None:
    """For logits z = (W₀ + ΔW) x and labels drawn from p = softmax(z), F of ΔW is E[p_v (1 − p_v) x_i²]."""
    layer, draws = torch.nn.Linear(6, 5, bias=False), 4000
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
    base: Any = torch.nn.Sequential(layer)
    model: Any = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]))
    x = torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(2)).repeat(draws, 1, 1)  # (N, T=1, in)
    with PerExampleTaps(model, "delta") as taps:
        logits = model(x).squeeze(1)  # (N, V)
        taps.expect([1.0] * len(x))
        labels = sample_tokens(logits.detach(), torch.Generator().manual_seed(0))
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    p = logits.detach().softmax(-1)
    expected = (p * (1 - p)).T @ x.squeeze(1).square() / len(x)  # (V, in)
    (measured,) = taps.mean().values()
    torch.testing.assert_close(measured, expected, rtol=0.1, atol=2e-3)


class OneLayer(torch.nn.Module):
    """An adapter alone, named as in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ModuleDict()
        self.layer["lora_A"] = torch.nn.ModuleDict({"default": torch.nn.Linear(6, 2, bias=False)})
        self.layer["lora_B"] = torch.nn.ModuleDict({"default": torch.nn.Linear(2, 5, bias=False)})

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        y = x
        for _ in range(repeats):
            y = self.get_submodule("layer.lora_B.default")(self.get_submodule("layer.lora_A.default")(x))
        return y


def test_layer_that_runs_twice_is_refused() -> None:
    model = OneLayer()
    with PerExampleTaps(model) as taps:  # type: ignore[arg-type]
        taps.expect([1.0])
        with pytest.raises(CycleError, match="twice"):
            model(torch.randn(1, 3, 6), repeats=2)


def test_layer_that_flattens_examples_is_read_example_by_example() -> None:
    model, x = OneLayer(), torch.randn(4, 3, 6)

    def measure(shaped: Tensor) -> dict[str, Tensor]:
        with PerExampleTaps(model) as taps:  # type: ignore[arg-type]
            taps.expect([1.0] * 4)
            model(shaped).square().sum().backward()
        return taps.mean()

    assert_equal(measure(x.flatten(0, 1)), measure(x))
    with pytest.raises(CycleError, match="divide"):
        measure(x.flatten(0, 1)[:5])


def test_sampled_fisher_follows_its_generator() -> None:
    model, examples = tiny_adapter(), random_examples(5)

    def measure(seed: int) -> dict[str, Tensor]:
        return fisher_diagonal(model, examples, PAD, sampled=True, generator=torch.Generator().manual_seed(seed))

    first, again, other = measure(1), measure(1), measure(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_sampled_tokens_have_the_models_frequencies() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, float("-inf")]]).repeat(20_000, 1)
    counts = sample_tokens(logits, torch.Generator().manual_seed(0)).bincount(minlength=4)
    torch.testing.assert_close(counts / 20_000, logits[0].softmax(-1), atol=0.012, rtol=0)
    assert counts[3] == 0


def test_float64_is_computed_where_it_exists() -> None:
    assert fisher._float64_device(torch.device("mps")) == torch.device("cpu")  # Apple's GPUs have none
    assert fisher._float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
