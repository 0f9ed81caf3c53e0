from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sona.errors import ModelError
from sona.learn.ewc import EwcState, from_tensors, importance, initial_state, to_tensors
from sona.learn.penalty import Penalty
from sona.learn.walk import Walk

SHAPES = {"a": (3, 4), "b": (5, 3)}


def tensors(seed: int, *, positive: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: tensor.square() for name, tensor in drawn.items()} if positive else drawn


def some_state() -> EwcState:
    state = initial_state(tensors(0, positive=True), tensors(1))
    walk = Walk(state, state.anchor)
    walk.observe_step(torch.ones(27), state.anchor, state.anchor - torch.rand(27, generator=torch.Generator()))
    walk.take_score(state.anchor - 0.5)
    return walk.consolidate(state.anchor - 0.5)


def test_penalty_gradient_equals_autograd() -> None:
    penalty, weights = Penalty.of(some_state(), 3.0), torch.randn(27, requires_grad=True)
    (expected,) = torch.autograd.grad(penalty.value(weights), weights)
    torch.testing.assert_close(penalty.gradient(weights.detach()), expected)


def test_penalty_and_its_gradient_are_zero_at_the_anchor() -> None:
    state = some_state()
    penalty = Penalty.of(state, 3.0)
    assert float(penalty.value(state.anchor)) == 0.0
    assert not penalty.gradient(state.anchor).any()


def test_importance_has_mean_one_whatever_the_units() -> None:
    state = some_state()
    scaled = initial_state({name: 1e-7 * t for name, t in tensors(0, positive=True).items()}, tensors(1))
    assert float(importance(state).mean()) == pytest.approx(1.0)
    assert float(importance(scaled).mean()) == pytest.approx(1.0)
    assert float(importance(state).min()) >= 0.0


def test_importance_without_any_measurement_is_zero() -> None:
    state = initial_state({name: torch.zeros(shape) for name, shape in SHAPES.items()}, tensors(1))
    assert not importance(state).any()


def test_running_average_equals_its_closed_form() -> None:
    """After k batches F = dᵏ F_0 + (1 − d) Σ_j d^(k−1−j) F_j."""
    state, decay = some_state(), 0.7
    batches = [torch.rand(27, generator=torch.Generator().manual_seed(k)) for k in range(6)]
    walk = Walk(state, state.anchor)
    for batch in batches:
        walk.observe_fisher(batch, decay)
    closed = decay**6 * state.fisher + (1 - decay) * sum(decay ** (5 - j) * batch for j, batch in enumerate(batches))
    torch.testing.assert_close(walk.consolidate(state.anchor).fisher, closed)
    assert walk.consolidate(state.anchor).updates == state.updates + 6


def test_path_integral_of_a_quadratic_is_its_decrease() -> None:
    """Along small gradient steps on L = ½ Σ h θ², Σ −g·Δθ tends to each weight's own share of the loss decrease."""
    state = some_state()
    curvature, weights = torch.rand(27) + 0.5, torch.randn(27)
    start, walk = weights.clone(), Walk(state, weights)
    for _ in range(2000):
        gradient = curvature * weights
        moved = weights - 5e-4 * gradient
        walk.observe_step(gradient, weights, moved)
        weights = moved
    decrease = 0.5 * curvature * (start.square() - weights.square())
    torch.testing.assert_close(walk.path, decrease, rtol=2e-3, atol=1e-5)


def test_score_is_the_saved_loss_per_nat_of_change() -> None:
    state = initial_state({name: torch.ones(shape) for name, shape in SHAPES.items()}, tensors(1))
    walk, step = Walk(state, state.anchor), torch.full((27,), 0.1)
    walk.observe_step(-torch.ones(27), state.anchor, state.anchor + step)
    walk.take_score(state.anchor + step)
    divergence = 0.5 * 0.1**2  # ½ F Δθ², and ε is its mean
    torch.testing.assert_close(walk.score, torch.full((27,), 0.1 / (2 * divergence)))


def test_weights_whose_change_cost_loss_get_no_score() -> None:
    state = some_state()
    walk = Walk(state, state.anchor)
    walk.observe_step(torch.ones(27), state.anchor, state.anchor + 1.0)
    walk.take_score(state.anchor + 1.0)
    assert not walk.score.any()


def test_a_cycle_without_steps_moves_only_the_anchor() -> None:
    state = some_state()
    walk = Walk(state, state.anchor)
    walk.take_score(state.anchor)
    after = walk.consolidate(state.anchor + 1.0)
    torch.testing.assert_close(importance(after), importance(state))
    assert torch.equal(after.anchor, state.anchor + 1.0)


def test_the_earlier_state_is_not_changed() -> None:
    state = some_state()
    before = {name: tensor.clone() for name, tensor in to_tensors(state).items()}
    walk = Walk(state, state.anchor)
    walk.observe_fisher(torch.ones(27), 0.5)
    walk.observe_step(torch.ones(27), state.anchor, state.anchor - 1)
    walk.take_score(state.anchor - 1)
    walk.consolidate(state.anchor - 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in to_tensors(state).items())


def test_state_survives_a_file(tmp_path: Path) -> None:
    state = some_state()
    save_file(to_tensors(state), tmp_path / "ewc.safetensors")
    loaded = from_tensors(load_file(tmp_path / "ewc.safetensors"))
    assert (loaded.layout, loaded.updates) == (state.layout, state.updates)
    for group in ("fisher", "score", "anchor"):
        assert torch.equal(getattr(loaded, group), getattr(state, group))


def test_damaged_state_is_refused() -> None:
    good = to_tensors(some_state())
    changes: list[dict[str, Tensor]] = [
        {"fisher/a": torch.full((3, 4), float("nan"))},
        {"fisher/a": torch.full((3, 4), -1.0)},
        {"score/b": torch.zeros(2)},
        {"anchor/c": torch.zeros(2)},
    ]
    for change in changes:
        with pytest.raises(ModelError):
            from_tensors(good | change)
    with pytest.raises(ModelError):
        from_tensors({})


def test_state_of_another_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="do not match"):
        initial_state(tensors(0, positive=True), {"a": torch.zeros(3, 4)})
    other = initial_state({"a": torch.zeros(3, 4)}, {"a": torch.zeros(3, 4)})
    with pytest.raises(ModelError, match="another adapter"):
        some_state().fitted(other.layout, torch.device("cpu"))
