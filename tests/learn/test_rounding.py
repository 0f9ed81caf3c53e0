"""Stochastic rounding: unbiased, seeded, and no small step lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sona.errors import InvalidInputError
from sona.learn.rounding import stochastically_rounded


def rounded(values: Tensor, seed: int = 0) -> Tensor:
    return stochastically_rounded(values, torch.Generator().manual_seed(seed))


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above, by trying: slow, and without a word about bits."""
    near = torch.tensor(value, dtype=torch.bfloat16)
    down = torch.nextafter(near, torch.tensor(-math.inf, dtype=torch.bfloat16))
    up = torch.nextafter(near, torch.tensor(math.inf, dtype=torch.bfloat16))
    around = sorted(float(one) for one in (down, near, up))
    return max(one for one in around if one <= value), min(one for one in around if one >= value)


@pytest.mark.parametrize("share", [0.004, 0.1, 0.5, 0.77])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0197, -3.1e-5, 0.999, 2.0**-126, 1e-39, 3e38, 257.0])
def test_the_mean_is_the_value(value: float, share: float) -> None:
    below, above = neighbours(value + math.copysign(1e-3 * value, value))
    middle = float(torch.tensor(below + share * (above - below)))
    draws = 40_000
    found = rounded(torch.full((draws,), middle)).double()
    assert set(found.tolist()) == {below, above}
    chance = (middle - below) / (above - below)
    deviation = math.sqrt(chance * (1 - chance) / draws)
    assert float((found == above).double().mean()) == pytest.approx(chance, abs=5 * deviation)


def test_what_bfloat16_holds_stays() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)  # all there are
    assert torch.equal(
        rounded(every.float()).view(torch.int16)[~every.isnan()], every.view(torch.int16)[~every.isnan()]
    )
    assert rounded(every.float()).isnan().equal(every.isnan())


def test_nothing_goes_further_than_to_a_neighbour() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).double().exp().float()
    step = (rounded(values).double() - values.double()).abs() / values.double()
    assert float(step.max()) < 2**-7


def test_chance_is_the_generators_alone() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    first = rounded(values, 5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(first, rounded(values, 5))
    assert not torch.equal(first, rounded(values, 6))
    assert torch.equal(torch.get_rng_state(), state)


def test_values_of_another_precision_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="float32"):
        rounded(torch.zeros(3, dtype=torch.float64))
