"""The parts of bench_optimizers: the search of a rate, the size of a state, a short run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.optimizers import methods, sync
from benchmarks.optimizers.course import Course, agent, exam_loss, shipped
from benchmarks.optimizers.methods import APOLLO, METHODS, RATIO, Curve, Method, best_rate, learn, state_bytes
from sona.learn.apollo import Apollo
from sona.tiny import model_path


def searched(monkeypatch: pytest.MonkeyPatch, loss: Callable[[float], float]) -> dict[float, float]:
    def learned(course: Course, method: Method, rate: float, seed: int, steps: int, exams: int) -> Curve:
        return Curve([0, steps], [1.0, loss(rate)])

    monkeypatch.setattr(methods, "learn", learned)
    return best_rate(agent, Method(methods.adamw, 1e-3), 0, 1)


@pytest.mark.parametrize("best", [1e-3, 1e-2, 3e-5])
def test_the_search_ends_with_a_worse_rate_on_each_side(best: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = searched(monkeypatch, lambda rate: abs(math.log(rate / best)))
    found = min(ends, key=ends.__getitem__)
    assert abs(math.log(found / best)) <= math.log(RATIO) / 2
    assert min(ends) < found < max(ends)


def test_a_search_that_finds_no_end_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(searched(monkeypatch, lambda rate: -rate)) <= methods.MOST_RATES + 1


def test_the_shipped_model_is_loaded_whole() -> None:
    from transformers import AutoModelForCausalLM

    reference = dict(AutoModelForCausalLM.from_pretrained(model_path()).named_parameters())
    ours = dict(shipped().named_parameters())
    assert ours.keys() == reference.keys()
    assert all(torch.equal(weight, reference[name]) for name, weight in ours.items())


def test_a_state_is_counted_without_its_counters() -> None:
    weight = torch.zeros(10, 64, requires_grad=True)
    weight.grad = torch.ones(10, 64)
    adamw = torch.optim.AdamW([weight])
    apollo = Apollo([("w", weight)], replace(APOLLO, rank=4), 1e-3)
    for optimizer in (adamw, apollo):
        optimizer.step()
    assert state_bytes(adamw) == 2 * 4 * 640
    assert state_bytes(apollo) == 2 * 4 * 4 * 64


def test_a_short_run_learns_and_gives_the_same_twice() -> None:
    runs = [learn(agent(1), METHODS["apollo"], 3e-3, 1, 4) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].steps == [0, 1, 2, 3, 4]
    assert runs[0].losses[-1] < 0.8 * runs[0].losses[0]
    course = agent(1)
    assert exam_loss(course.model, course.exam) == runs[0].losses[0]


def test_what_an_adapter_sends_is_less_than_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "BEFORE", 1)
    found = {name: sync.synced(sync.TRAININGS[name], 1e-3, 0, 1, 1) for name in ("lora", "bf16_masters")}
    assert found["lora"].full < 0.2 * found["bf16_masters"].full
    assert all(0 < one.delta < 1.1 * one.full for one in found.values())
    assert all(0 < one.blocks <= 1 for one in found.values())
