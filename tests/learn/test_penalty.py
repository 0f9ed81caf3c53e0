from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from sona.learn import lora
from sona.learn.ewc import EwcState, from_tensors, measured_state, to_tensors
from sona.learn.flat import Layout
from sona.learn.penalty import Penalty, ProductPenalty
from sona.learn.products import Products
from tests.learn.tiny_models import ARCHITECTURES, PAD, random_examples, tiny_adapter

SIZE = 40


def some_penalty(lam: float = 1.0) -> Penalty:
    generator = torch.Generator().manual_seed(3)
    stiffness = lam * torch.randn(SIZE, generator=generator).square()
    return Penalty(stiffness, torch.randn(SIZE, generator=generator), torch.tensor(0.0))


def test_settled_weights_minimise_penalty_and_distance() -> None:
    """Newton's method in float64 on penalty(z) + ‖z − θ‖² / 2η finds the same point, and no other is lower."""
    penalty, weights, rate = some_penalty(7.0), torch.randn(SIZE, generator=torch.Generator().manual_seed(4)), 0.05
    settled = penalty.settled(weights, rate)

    def objective(z: Tensor) -> Tensor:
        return penalty.value(z) + (z - weights).square().sum() / (2 * rate)

    z = weights.clone().double().requires_grad_()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(objective(z), z)
        z = (z - gradient / (penalty.stiffness + 1 / rate)).detach().requires_grad_()
    torch.testing.assert_close(settled, z.detach().float(), rtol=1e-5, atol=1e-6)
    for seed in range(20):
        near = settled + 0.01 * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
        assert objective(near) > objective(settled)


def test_settled_weights_lie_between_weights_and_anchor_for_any_strength() -> None:
    weights = torch.randn(SIZE, generator=torch.Generator().manual_seed(4))
    for lam in (0.0, 1e-12, 1.0, 1e9, 1e30):
        penalty = some_penalty(lam)
        settled = penalty.settled(weights, 0.005)
        low, high = torch.minimum(weights, penalty.anchor), torch.maximum(weights, penalty.anchor)
        assert bool(((settled >= low - 1e-6) & (settled <= high + 1e-6)).all()), lam
    torch.testing.assert_close(some_penalty(1e30).settled(weights, 0.005), some_penalty().anchor)
    assert torch.equal(some_penalty(0.0).settled(weights, 0.005), weights)


def test_a_small_settling_is_a_gradient_step() -> None:
    penalty, weights = some_penalty(1e-3), torch.randn(SIZE, generator=torch.Generator().manual_seed(4))
    stepped = weights - 0.01 * penalty.gradient(weights)
    torch.testing.assert_close(penalty.settled(weights, 0.01), stepped, rtol=0, atol=1e-7)


def on_products(architecture: str) -> tuple[EwcState, ProductPenalty, Tensor]:
    model = tiny_adapter(architecture)
    state = measured_state(model, random_examples(6), PAD, torch.Generator().manual_seed(0), on="delta")
    weights = Layout.of(lora.weights(model)).join(lora.weights(model))
    return state, ProductPenalty(Penalty.of(state, 2.0), Products.of_model(model)), weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_what_peft_adds_to_the_base(architecture: str) -> None:
    model = tiny_adapter(architecture)
    products = Products.of_model(model)
    weights = Layout.of(lora.weights(model)).join(lora.weights(model))
    for name, delta in products.layout.split(products.of(weights)).items():
        layer = model.get_submodule(name.removesuffix(".delta"))
        torch.testing.assert_close(delta, layer.get_delta_weight("default"))  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_penalty_on_products_and_its_gradient_are_zero_at_the_anchor(architecture: str) -> None:
    _, penalty, weights = on_products(architecture)
    assert float(penalty.value(weights)) == 0.0
    assert not penalty.gradient(weights).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_on_products_equals_finite_differences(architecture: str) -> None:
    _, single, start = on_products(architecture)
    plain, weights = single.penalty, start.double()  # float32 is too coarse for differences
    penalty = ProductPenalty(
        Penalty(plain.stiffness.double(), plain.anchor.double(), plain.rest.double()), single.products
    )
    generator = torch.Generator().manual_seed(1)
    away = weights + 0.1 * torch.randn(weights.shape, generator=generator)
    gradient = penalty.gradient(away)
    for _ in range(5):
        way = torch.randn(weights.shape, generator=generator).double()
        difference = (penalty.value(away + 1e-6 * way) - penalty.value(away - 1e-6 * way)) / 2e-6
        assert float(difference) == pytest.approx(float(gradient @ way), rel=1e-5)


def test_gradient_on_products_equals_autograd() -> None:
    state, penalty, weights = on_products("llama")
    parts = {n: t.clone().requires_grad_() for n, t in penalty.products._adapter.split(weights + 0.1).items()}
    value = torch.zeros(())
    stiffness = state.layout.split(penalty.penalty.stiffness)
    for name, centre in state.layout.split(state.anchor).items():
        path = name.removesuffix(".delta")
        delta = 2.0 * parts[f"{path}.lora_B.weight"] @ parts[f"{path}.lora_A.weight"]  # alpha 8 / rank 4
        value = value + 0.5 * (stiffness[name] * (delta - centre).square()).sum()
    torch.testing.assert_close(penalty.value(weights + 0.1), value.detach())
    expected = torch.autograd.grad(value, list(parts.values()))
    actual = penalty.products._adapter.split(penalty.gradient(weights + 0.1))
    for (name, gradient), wanted in zip(actual.items(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_state_on_products_survives_a_file_under_names_of_its_own() -> None:
    state, penalty, weights = on_products("llama")
    state = state.at_boundary(2)
    tensors = to_tensors(state)
    assert all(name.startswith("delta_") for name in tensors if "/" in name)
    assert not any("score" in name for name in tensors)
    loaded = from_tensors(load(save(tensors)))
    assert (loaded.on, loaded.layout, len(loaded.earlier), loaded.kept) == ("delta", state.layout, 1, 0.0)
    again = ProductPenalty(Penalty.of(loaded, 2.0), penalty.products)
    torch.testing.assert_close(again.gradient(weights + 0.1), penalty.gradient(weights + 0.1))
