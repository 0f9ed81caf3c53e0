"""How tokens are chosen, and which wishes are refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from sona.config import ServeConfig
from sona.errors import InvalidInputError
from sona.serving.local import LocalModel
from sona.types import Message


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def answer(model: LocalModel, **sampling: Any) -> tuple[int, ...]:
    prompt = model.encode_prompt([Message(role="user", content="echo blue river")])
    return model.generate(prompt, **{"max_new_tokens": 6, **sampling}).token_ids


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_new_tokens", value) for value in (0, -1, 2.5, "5", True, None, math.nan)),
        *(("temperature", value) for value in (-0.1, 100.5, math.nan, math.inf, "1", True, None)),
        *(("top_p", value) for value in (0.0, -1.0, 1.5, math.nan, "1", True, None)),
        *(("top_k", value) for value in (-1, 2.5, "5", True, None)),
        *(("seed", value) for value in (2**63, -(2**63) - 1, 1.5, "1", True)),
    ],
)
def test_a_wrong_sampling_value_is_refused_by_name(model: LocalModel, name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        answer(model, **{"temperature": 1.0, name: value})


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6, 9e-4])
def test_a_temperature_too_low_to_divide_by_is_greedy(model: LocalModel, temperature: float) -> None:
    assert answer(model, temperature=temperature, seed=0) == answer(model)


@pytest.mark.parametrize("temperature", [1e-3, 1, 2, 100, np.float64(0.5)])
def test_every_allowed_temperature_answers(model: LocalModel, temperature: float) -> None:
    assert answer(model, temperature=temperature, seed=0)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_every_64_bit_seed_gives_the_same_answer_again(model: LocalModel, seed: int) -> None:
    assert answer(model, temperature=3.0, seed=seed) == answer(model, temperature=3.0, seed=seed)


def test_without_a_seed_answers_differ(model: LocalModel) -> None:
    torch.manual_seed(0)
    assert len({answer(model, temperature=3.0) for _ in range(4)}) > 1


@pytest.mark.parametrize("seed", [7, None])
def test_other_devices_generators_are_not_reseeded(
    model: LocalModel, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reseeded: list[object] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    answer(model, temperature=3.0, seed=seed)
    assert reseeded == []


def test_sampling_leaves_the_host_s_random_state_alone(model: LocalModel) -> None:
    before = torch.get_rng_state()
    for seed in (1, None):
        answer(model, temperature=1.0, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
