"""APOLLO against the paper's algorithm in slow float64 steps, against AdamW, and across a cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from sona.config import LoraConfig
from sona.errors import ConfigError, InvalidInputError, ModelError
from sona.learn import apollo, lora
from sona.learn.apollo import MINI, Apollo, ApolloSettings
from tests.learn.tiny_models import VOCAB, tiny_model

Float64 = NDArray[np.float64]
SMALL = ApolloSettings(rank=3, refresh_steps=4)
BOTH = pytest.mark.parametrize("settings", [SMALL, replace(MINI, refresh_steps=4)], ids=["channel", "mini"])
SHAPES = {"wide.weight": (6, 10), "tall.weight": (11, 5), "square.weight": (7, 7), "bias": (9,)}
RATE = 0.01


def weights_of(dtype: torch.dtype = torch.float32, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (0.02 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def gradients(step: int, scale: float = 1.0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    while True:
        yield scale * torch.randn(20_000, generator=generator)


def give(weights: dict[str, Tensor], step: int, scale: float = 1.0) -> None:
    for weight, numbers in zip(weights.values(), gradients(step, scale), strict=False):
        weight.grad = numbers[: weight.numel()].view(weight.shape).to(weight.dtype)


def run(optimizer: Apollo, weights: dict[str, Tensor], steps: range) -> None:
    for step in steps:
        give(weights, step)
        optimizer.step()


def copy_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}


# Against the paper
def by_the_paper(
    W: Float64, grads: list[Float64], settings: ApolloSettings, projections: list[Float64], rate: float
) -> Float64:
    """Algorithm 1, number by number."""
    transposed = W.shape[0] > W.shape[1]
    W = (W.T if transposed else W).copy()
    m, n = W.shape
    M, V, last = np.zeros((settings.rank, n)), np.zeros((settings.rank, n)), 0.0
    for t, grad in enumerate(grads, 1):
        G, P = (grad.T if transposed else grad), projections[t - 1]
        R = np.zeros((settings.rank, n))
        for i in range(settings.rank):
            for j in range(n):
                R[i, j] = sum(P[i, k] * G[k, j] for k in range(m))
        b1, b2 = settings.betas
        M, V = b1 * M + (1 - b1) * R, b2 * V + (1 - b2) * R**2
        U = (M / (1 - b1**t)) / (np.sqrt(V / (1 - b2**t)) + settings.eps)
        scaled = np.zeros((m, n))
        for j in range(n):
            s = np.sqrt((U**2).sum() / (R**2).sum())
            if not settings.per_tensor:
                s = np.sqrt((U[:, j] ** 2).sum() / (R[:, j] ** 2).sum())
            scaled[:, j] = math.sqrt(settings.scale) * s * G[:, j]
        norm = math.sqrt((scaled**2).sum())
        if last and norm / last > settings.growth_limit:
            scaled, norm = scaled / norm * settings.growth_limit * last, settings.growth_limit * last
        last = norm
        W = W - rate * scaled - rate * settings.weight_decay * W
    return W.T if transposed else W


def projections_of(name: str, settings: ApolloSettings, width: int, steps: int, seed: int) -> list[Float64]:
    drawn = [1 + step // settings.refresh_steps * settings.refresh_steps for step in range(steps)]
    generators = [apollo._generator(torch.device("cpu"), seed, "project", name, at) for at in drawn]
    return [apollo.projection(settings.rank, width, generator).double().numpy() for generator in generators]


@BOTH
@pytest.mark.parametrize("name", ["wide.weight", "tall.weight", "square.weight"])
def test_steps_are_those_of_the_paper(name: str, settings: ApolloSettings) -> None:
    settings, steps = replace(settings, weight_decay=0.1), 11  # two refreshes
    weights = weights_of()
    start = weights[name].detach().double().numpy().copy()
    optimizer = Apollo(weights.items(), settings, RATE, seed=7)
    grads = []
    for step in range(steps):
        give(weights, step, scale=1.0 + step)  # so that the limiter has something to do
        gradient = weights[name].grad
        assert gradient is not None
        grads.append(gradient.double().numpy().copy())
        optimizer.step()
    expected = by_the_paper(start, grads, settings, projections_of(name, settings, min(SHAPES[name]), steps, 7), RATE)
    np.testing.assert_allclose(weights[name].detach().numpy(), expected, rtol=0, atol=2e-6)


def test_first_step_has_adamws_length_times_the_root_of_rank_over_width() -> None:
    """All numbers of AdamW's first update are ±1, so s_j is √r / ‖P g_j‖, and ‖g_j‖² / ‖P g_j‖² is 1 but for chance."""
    rank, rows, columns = 16, 64, 4096
    weight = torch.zeros(rows, columns, requires_grad=True)
    weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    Apollo([("w", weight)], ApolloSettings(rank=rank, eps=1e-30), 1.0).step()
    adams = math.sqrt(rows * columns)
    # E ‖g‖² / ‖P g‖² = r / (r - 2), the mean of an inverse chi-squared
    expected = adams * math.sqrt(rank / rows) * math.sqrt(rank / (rank - 2))
    assert float(weight.detach().norm()) == pytest.approx(expected, rel=0.03)


@BOTH
def test_an_update_points_along_the_gradient(settings: ApolloSettings) -> None:
    weights = weights_of()
    optimizer = Apollo(weights.items(), settings, RATE)
    for step in range(6):
        before = copy_of(weights)
        give(weights, step)
        optimizer.step()
        for name in ("wide.weight", "tall.weight"):
            moved, gradient = (before[name] - weights[name]).detach(), weights[name].grad
            assert gradient is not None
            channels = 0 if moved.shape[0] < moved.shape[1] else 1
            over = None if settings.per_tensor else channels
            dot = (moved * gradient).sum(dim=over)
            lengths = torch.linalg.vector_norm(moved, dim=over) * torch.linalg.vector_norm(gradient, dim=over)
            torch.testing.assert_close(dot / lengths, torch.ones_like(dot), rtol=0, atol=1e-4)


def test_a_projection_keeps_lengths_in_the_mean() -> None:
    vector = torch.randn(200, generator=torch.Generator().manual_seed(0))
    ratios = [
        float((apollo.projection(4, 200, torch.Generator().manual_seed(seed)) @ vector).square().sum())
        / float(vector.square().sum())
        for seed in range(1000)
    ]
    # Each is a chi-squared of 4 over 4, of variance 1/2.
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * math.sqrt(0.5 / 1000))


def test_projections_differ_between_weights_refreshes_and_seeds() -> None:
    draws = [
        apollo.projection(2, 8, apollo._generator(torch.device("cpu"), *words))
        for words in [(0, "project", "a", 1), (0, "project", "b", 1), (0, "project", "a", 5), (1, "project", "a", 1)]
    ]
    assert len({tuple(one.flatten().tolist()) for one in draws}) == 4


# The growth limit
def test_updates_grow_by_the_limit_at_most() -> None:
    weights = {"w": torch.zeros(6, 10, requires_grad=True)}
    optimizer = Apollo(weights.items(), replace(SMALL, betas=(0.0, 0.999)), 1.0)
    norms = []
    for step in range(8):
        before = weights["w"].detach().clone()
        give(weights, step, scale=1000.0 if step == 4 else 1.0)
        optimizer.step()
        norms.append(float((weights["w"].detach() - before).norm()))
    ratios = np.array(norms[1:]) / np.array(norms[:-1])
    assert ratios.max() == pytest.approx(1.01, rel=1e-3)


def test_limited_leaves_what_is_short_as_it_is() -> None:
    update = torch.tensor([3.0, 4.0])
    for last in (5.0, 100.0, 0.0):
        same, norm = apollo.limited(update, torch.tensor(last), 1.01)
        assert torch.equal(same, update)
        assert float(norm) == 5.0
    shorter, norm = apollo.limited(update, torch.tensor(1.0), 1.01)
    torch.testing.assert_close(shorter, update / 5 * 1.01)
    assert float(norm) == pytest.approx(1.01)


def test_a_step_without_gradient_does_not_hold_a_matrix() -> None:
    weight = torch.zeros(6, 10, requires_grad=True)
    optimizer = Apollo([("w", weight)], SMALL, RATE)
    weight.grad = torch.zeros(6, 10)
    optimizer.step()
    assert not weight.detach().any()
    weight.grad = torch.ones(6, 10)
    optimizer.step()
    assert bool(weight.detach().all())


def test_a_channel_without_gradient_stays() -> None:
    weight = torch.ones(6, 10, requires_grad=True)
    optimizer = Apollo([("w", weight)], SMALL, RATE)
    for step in range(3):
        weight.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(step))
        weight.grad[:, 4] = 0.0
        optimizer.step()
    assert bool((weight.detach()[:, 4] == 1.0).all())
    assert bool(torch.isfinite(weight.detach()).all())


def test_a_lora_that_begins_with_b_of_zero_learns_in_a_too() -> None:
    """The limit as the paper writes it, 1.01 times the length of a first update of zero, would hold A for good."""
    model = lora.attach(tiny_model(), LoraConfig(rank=2), 0)
    before = lora.weights(model)
    optimizer = Apollo(lora.parameters(model).items(), MINI, 1e-2)
    ids = torch.randint(3, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    for step in range(20):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        moved = {name: float((weight - before[name]).norm()) for name, weight in lora.weights(model).items()}
        assert all((moved[name] == 0.0) == (step == 0) for name in moved if "lora_A" in name)
    assert min(moved.values()) > 0.1


# AdamW for the rest
@pytest.mark.parametrize("settings", [ApolloSettings(rank=7), replace(SMALL, plain=("weight",))])
def test_what_is_not_projected_is_adamw(settings: ApolloSettings) -> None:
    ours, theirs = weights_of(), weights_of()
    settings = replace(settings, weight_decay=0.1)
    shapes = {name: state for name, state in ours.items() if name != "wide.weight" or settings.plain}
    optimizer = Apollo(ours.items(), settings, RATE)
    reference = torch.optim.AdamW(theirs.values(), lr=RATE, weight_decay=0.1)
    for step in range(10):
        give(ours, step)
        give(theirs, step)
        optimizer.step()
        reference.step()
    for name in shapes:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_the_state_is_of_the_projections_size() -> None:
    weights = {"inner.weight": torch.zeros(64, 96, requires_grad=True), "embed.weight": torch.zeros(80, 64)}
    weights["embed.weight"].requires_grad_()
    optimizer = Apollo(weights.items(), ApolloSettings(rank=4, plain=("embed",)), RATE)
    run(optimizer, weights, range(1))
    state = optimizer.to_tensors()
    assert state["exp_avg/inner.weight"].shape == state["exp_avg_sq/inner.weight"].shape == (4, 96)
    assert state["exp_avg/embed.weight"].shape == (80, 64)
    assert {key for key, tensor in state.items() if tensor.numel() == 1} == {
        "seed",
        *(f"{kind}/inner.weight" for kind in ("step", "drawn_at", "norm")),
        "step/embed.weight",
    }


def test_a_language_model_learns_with_it() -> None:
    model = tiny_model("qwen3")
    ids = torch.randint(3, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = Apollo(model.named_parameters(), replace(MINI, plain=("embed_tokens", "lm_head")), 1e-2)
    losses = []
    for _ in range(40):
        loss = model(input_ids=ids, labels=ids).loss
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_closure_is_called_with_gradients() -> None:
    weight = torch.ones(6, 10, requires_grad=True)
    optimizer = Apollo([("w", weight)], SMALL, RATE)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 60.0
    assert bool((weight.detach() < 1.0).all())


# Half precision
@pytest.mark.parametrize(
    ("rounding", "low", "high"), [("masters", 0.999, 1.001), ("stochastic", 0.98, 1.02), ("nearest", 0.0, 0.25)]
)
def test_fifty_small_steps_in_bfloat16_are_kept_or_lost(rounding: Any, low: float, high: float) -> None:
    """AdamW under a constant gradient takes steps of the learning rate, so 50 of 1e-5 are 5e-4; 17 % is left of them
    where each is rounded to nearest.
    """
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(50_000, generator=generator)).bfloat16().requires_grad_()
    start = weight.detach().float()
    optimizer = Apollo([("w", weight)], replace(MINI, rounding=rounding), 1e-5)
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    end = optimizer.to_tensors().get("master/w", weight.detach().float())
    assert low < float((start - end).double().mean()) / 5e-4 < high


def test_adding_in_bfloat16_itself_keeps_a_sixth() -> None:
    weight = (0.02 * torch.randn(50_000, generator=torch.Generator().manual_seed(0))).bfloat16()
    start = weight.float()
    for _ in range(50):
        weight -= 1e-5
    assert float((start - weight.float()).double().mean()) / 5e-4 == pytest.approx(0.17, abs=0.01)


def test_masters_are_what_float32_training_would_have() -> None:
    half, whole = weights_of(torch.bfloat16), {}
    for name, weight in half.items():
        whole[name] = weight.detach().float().requires_grad_()
    optimizers = [Apollo(weights.items(), SMALL, RATE) for weights in (half, whole)]
    for step in range(9):
        give(half, step)
        for name, weight in whole.items():
            gradient = half[name].grad
            assert gradient is not None
            weight.grad = gradient.float()
        for optimizer in optimizers:
            optimizer.step()
    for name, weight in whole.items():
        assert torch.equal(half[name].detach(), weight.detach().bfloat16())


# A cut in between
@BOTH
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float32, "masters"),
        (torch.bfloat16, "masters"),
        (torch.bfloat16, "stochastic"),
        (torch.float16, "masters"),
    ],
)
@pytest.mark.parametrize("way", ["tensors", "state_dict"])
def test_resumed_run_equals_the_unbroken_one(
    way: str, dtype: torch.dtype, rounding: Any, settings: ApolloSettings
) -> None:
    settings = replace(settings, rounding=rounding, weight_decay=0.01)
    whole = weights_of(dtype)
    run(Apollo(whole.items(), settings, RATE, seed=5), whole, range(13))

    first = weights_of(dtype)
    begun = Apollo(first.items(), settings, RATE, seed=5)
    run(begun, first, range(6))  # between two refreshes
    second = copy_of(first)
    resumed = Apollo(second.items(), settings, RATE, seed=99)
    if way == "tensors":
        resumed.load_tensors(load(save(begun.to_tensors())))
    else:
        resumed.load_state_dict(begun.state_dict())
    run(begun, first, range(6, 7))  # what goes on with the old one must not reach the new one
    run(resumed, second, range(6, 13))
    for name, weight in whole.items():
        assert torch.equal(weight, second[name]), name


def test_same_seed_same_steps_and_another_seed_others() -> None:
    ends = []
    for seed in (1, 1, 2):
        weights = weights_of()
        run(Apollo(weights.items(), SMALL, RATE, seed=seed), weights, range(3))
        ends.append(weights["wide.weight"].detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_torch_random_state_is_left_alone() -> None:
    weights = weights_of(torch.bfloat16)
    state = torch.get_rng_state()
    run(Apollo(weights.items(), replace(MINI, rounding="stochastic"), RATE), weights, range(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_state_dict_holds_tensors_numbers_and_names_only() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str | int) and plain(one) for key, one in value.items())
        if isinstance(value, list | tuple):
            return all(plain(one) for one in value)
        return value is None or isinstance(value, Tensor | int | float | str)

    weights = weights_of(torch.bfloat16)
    optimizer = Apollo(weights.items(), SMALL, RATE)
    run(optimizer, weights, range(2))
    assert plain(optimizer.state_dict())


def test_a_weight_that_got_no_gradient_yet_has_no_state() -> None:
    weights = weights_of()
    optimizer = Apollo(weights.items(), SMALL, RATE)
    give(weights, 0)
    weights["bias"].grad = None
    optimizer.step()
    state = optimizer.to_tensors()
    assert "step/bias" not in state
    other = copy_of(weights)
    resumed = Apollo(other.items(), SMALL, RATE)
    resumed.load_tensors(state)
    for optimizer_, weights_ in ((optimizer, weights), (resumed, other)):
        run(optimizer_, weights_, range(1, 3))
    assert torch.equal(weights["bias"], other["bias"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", None),
        ("norm/wide.weight", None),
        ("exp_avg/wide.weight", torch.zeros(3, 9)),
        ("exp_avg_sq/tall.weight", torch.full((3, 11), math.nan)),
        ("exp_avg/other.weight", torch.zeros(3, 9)),
        ("master/wide.weight", torch.zeros(6, 10)),
    ],
)
def test_a_foreign_or_damaged_state_is_refused_and_changes_nothing(key: str, value: Tensor | None) -> None:
    weights = weights_of()
    optimizer = Apollo(weights.items(), SMALL, RATE)
    run(optimizer, weights, range(2))
    before = optimizer.to_tensors()
    odd = {**before, key: value} if value is not None else {k: v for k, v in before.items() if k != key}
    with pytest.raises(ModelError):
        optimizer.load_tensors(odd)
    after = optimizer.to_tensors()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert before.keys() == after.keys()


def test_a_state_of_another_rank_is_refused() -> None:
    weights = weights_of()
    optimizer = Apollo(weights.items(), SMALL, RATE)
    run(optimizer, weights, range(1))
    with pytest.raises(ModelError):
        Apollo(weights.items(), replace(SMALL, rank=2), RATE).load_tensors(optimizer.to_tensors())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"scale": 0.0},
        {"scale": math.nan},
        {"refresh_steps": 0},
        {"growth_limit": 1.0},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"rounding": "up"},
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ApolloSettings(**wrong)


def test_weights_that_cant_be_trained_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no parameter"):
        Apollo([("w", torch.zeros(3))], SMALL, RATE)
    with pytest.raises(InvalidInputError, match="float64"):
        Apollo([("w", torch.zeros(3, dtype=torch.float64, requires_grad=True))], SMALL, RATE)
    half = torch.zeros(3, dtype=torch.float16, requires_grad=True)
    with pytest.raises(InvalidInputError, match="masters"):
        Apollo([("w", half)], replace(SMALL, rounding="stochastic"), RATE)
    with pytest.raises(ConfigError, match="learning rate"):
        Apollo(weights_of().items(), SMALL, math.nan)
