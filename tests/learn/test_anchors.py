from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from sona.errors import InvalidInputError, ModelError
from sona.learn.anchors import Anchor, combined, limited
from sona.learn.ewc import EwcState, from_tensors, importance, initial_state, to_tensors
from sona.learn.penalty import Penalty
from sona.learn.walk import Walk

SHAPES = {"a": (3, 4), "b": (5, 3)}
SIZE = 27


def vector(seed: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def anchors(count: int) -> list[Anchor]:
    return [Anchor(vector(k).square(), vector(100 + k)) for k in range(count)]


def new_state() -> EwcState:
    state = initial_state({n: torch.ones(s) for n, s in SHAPES.items()}, {n: torch.zeros(s) for n, s in SHAPES.items()})
    return from_tensors(
        to_tensors(state) | {f"fisher/{n}": t for n, t in state.layout.split(vector(5).square()).items()}
    )


def after_cycle(state: EwcState, seed: int) -> EwcState:
    """A cycle that ends at ``vector(seed)``."""
    walk = Walk(state, state.anchor)
    walk.observe_fisher(vector(seed + 1).square(), 0.9)
    walk.observe_step(-torch.ones(SIZE), state.anchor, vector(seed))
    walk.take_score(vector(seed))
    return walk.consolidate(vector(seed))


def after_tasks(count: int, limit: int) -> EwcState:
    state = new_state()
    for task in range(count):
        state = after_cycle(state.at_boundary(limit), 10 * task)
    return state


def test_several_anchors_pull_as_the_sum_of_their_penalties() -> None:
    state, weights = after_tasks(3, limit=4), vector(7)
    assert len(state.anchors) == 4
    whole = Penalty.of(state, 3.0)
    parts = [Penalty(3.0 * a.importance, a.weights, torch.tensor(0.0)) for a in state.anchors]
    torch.testing.assert_close(whole.value(weights), torch.stack([part.value(weights) for part in parts]).sum())
    pulls = torch.stack([part.gradient(weights) for part in parts])
    torch.testing.assert_close(whole.gradient(weights), pulls.sum(dim=0), rtol=1e-5, atol=1e-5)


def test_a_weight_that_matters_to_no_task_is_free_and_finite() -> None:
    nothing = [Anchor(torch.zeros(SIZE), vector(k)) for k in range(3)]
    one = combined(nothing)
    assert not one.importance.any()
    assert torch.equal(one.weights, nothing[-1].weights)


def test_a_step_costs_the_same_for_any_number_of_anchors() -> None:
    many = Penalty.of(after_tasks(5, limit=6), 1.0)
    assert many.stiffness.shape == many.anchor.shape == (SIZE,)


def test_one_anchor_is_the_form_without_boundaries() -> None:
    state = new_state()
    assert to_tensors(state).keys() == to_tensors(state.at_boundary(1)).keys()
    with_boundary, without = after_cycle(state.at_boundary(1), 3), after_cycle(state, 3)
    assert all(torch.equal(t, to_tensors(without)[n]) for n, t in to_tensors(with_boundary).items())


def test_between_boundaries_the_latest_anchor_moves_and_the_others_stay() -> None:
    first = after_tasks(2, limit=4)
    second = after_cycle(first, 77)
    assert len(second.anchors) == len(first.anchors)
    assert torch.equal(second.anchor, vector(77))
    for before, after in zip(first.earlier, second.earlier, strict=True):
        assert torch.equal(before.weights, after.weights)
        assert torch.equal(before.importance, after.importance)


def test_the_pull_at_a_boundary_is_that_from_before() -> None:
    state, weights = after_tasks(1, limit=4), vector(7)
    opened = state.at_boundary(4)
    torch.testing.assert_close(Penalty.of(opened, 2.0).gradient(weights), Penalty.of(state, 2.0).gradient(weights))
    again = opened.at_boundary(4)
    assert len(again.earlier) == len(opened.earlier), "an anchor that nothing was learned for is not kept"


def test_a_new_tasks_importance_is_its_own() -> None:
    opened = after_tasks(1, limit=3).at_boundary(3)
    walk = Walk(opened, opened.anchor)
    batch = vector(50).square()
    walk.observe_fisher(batch, 0.9)
    torch.testing.assert_close(importance(walk.consolidate(vector(51))), batch / batch.mean())


def test_the_ring_is_bounded_and_its_importance_keeps_its_mean() -> None:
    state = after_tasks(9, limit=3)
    assert len(state.anchors) == 3
    for anchor in state.anchors:
        assert float(anchor.importance.mean()) == pytest.approx(1.0, rel=1e-5)


def test_the_two_oldest_become_half_of_their_sum() -> None:
    given, weights = anchors(3), vector(7)
    folded, last = limited(given, 2)
    assert last is given[2]
    pulls = [a.importance * (weights - a.weights) for a in given[:2]]
    torch.testing.assert_close(folded.importance * (weights - folded.weights), 0.5 * (pulls[0] + pulls[1]))
    assert limited(given, 0) == ()


def test_a_lower_limit_is_kept_from_the_next_boundary_on() -> None:
    assert len(after_tasks(4, limit=5).at_boundary(2).earlier) == 1
    assert after_tasks(4, limit=5).at_boundary(1).earlier == ()


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_released_state_pulls_by_its_factor(factor: float) -> None:
    state, weights = after_tasks(2, limit=3), vector(7)
    whole, left = (Penalty.of(s, 2.0).gradient(weights) for s in (state, state.released(factor)))
    torch.testing.assert_close(left, factor * whole, rtol=1e-4, atol=1e-4)


def test_what_is_observed_after_a_release_counts_more() -> None:
    state = after_tasks(2, limit=1)
    forgotten, kept = after_cycle(state.released(0.0), 30), after_cycle(state, 30)
    fresh = after_cycle(new_state().released(0.0), 30)
    torch.testing.assert_close(forgotten.fisher, fresh.fisher)
    assert not torch.allclose(forgotten.fisher, kept.fisher, rtol=1e-3)
    assert forgotten.kept == 1.0


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_release_by_no_share_is_refused(factor: float) -> None:
    with pytest.raises(InvalidInputError, match="factor"):
        new_state().released(factor)


def test_ring_release_and_lambda_survive_a_file() -> None:
    state = replace(after_tasks(3, limit=3).released(0.3), lam=0.07)
    loaded = from_tensors(load(save(to_tensors(state))))
    assert (loaded.kept, loaded.lam, loaded.updates) == (state.kept, state.lam, state.updates)
    for saved, read in zip(state.anchors, loaded.anchors, strict=True):
        assert torch.equal(saved.importance, read.importance)
        assert torch.equal(saved.weights, read.weights)


def test_a_file_from_before_there_were_anchors_still_loads() -> None:
    state = after_tasks(1, limit=1)
    written = {"updates": torch.tensor(4)}
    for group in ("fisher", "score", "anchor"):
        for name, tensor in state.layout.split(getattr(state, group)).items():
            written[f"{group}/{name}"] = tensor.clone()
    loaded = from_tensors(load(save(written)))
    assert (loaded.on, loaded.earlier, loaded.kept, loaded.lam, loaded.updates) == ("weights", (), 1.0, None, 4)
    torch.testing.assert_close(importance(loaded), importance(state))


@pytest.mark.parametrize(
    "change",
    [
        {"importance.0/a": torch.full((3, 4), -1.0)},
        {"weights.1/b": torch.full((5, 3), float("nan"))},
        {"importance.1/c": torch.zeros(2)},
        {"importance.2/a": torch.zeros(3, 4)},
        {"kept": torch.tensor(1.5)},
        {"kept": torch.tensor([0.5, 0.5])},
        {"lambda": torch.tensor(float("nan"))},
        {"lambda": torch.tensor(float("inf"))},
    ],
)
def test_damaged_ring_is_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError):
        from_tensors(to_tensors(after_tasks(2, limit=3)) | change)
