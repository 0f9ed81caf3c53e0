"""Random ablations: weights from which memories were there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sona.attribution.ablate import ablate, log_odds, random_masks
from sona.attribution.context import Context, Segment
from sona.errors import InvalidInputError, ScoringError, SonaError
from sona.types import Progress
from tests.attribution.told import Told, Words, context_of

NAMES = tuple(f"m{place}" for place in range(10))


def additive(before: frozenset[str]) -> float:
    """Far below 0, where log-odds are log-probabilities."""
    return -40.0 + 6.0 * ("m2" in before) - 3.0 * ("m7" in before)


def either(before: frozenset[str]) -> float:
    """One fact, told by two memories."""
    return -0.01 if before & {"m1", "m4"} else -9.0


def test_weights_are_the_true_effects_but_for_the_lassos_pull() -> None:
    codec = Words()
    found = ablate(context_of(*NAMES), codec, Told(codec, additive))
    wanted = np.zeros(10)
    wanted[[2, 7]] = 6.0, -3.0
    # alpha .01 on the standardised column of a two-token answer: 2 * .01 / .5 from each weight
    assert np.allclose(found.weights[:, 0], wanted, atol=0.06)
    assert np.count_nonzero(found.weights) == 2
    assert np.allclose(found.per_token, found.weights / 2)


def test_fact_that_is_told_twice_is_found() -> None:
    codec = Words()
    found = ablate(context_of(*NAMES), codec, Told(codec, either), runs=32)
    assert {key for key, _ in found.findings(11)[:2]} == {"m1", "m4"}


def test_same_seed_gives_the_same_and_another_seed_other_masks() -> None:
    codec = Words()
    one, same, other = (ablate(context_of(*NAMES), codec, Told(codec, either), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.kept, same.kept)
    assert np.array_equal(one.weights, same.weights)
    assert not np.array_equal(one.kept, other.kept)


def test_masks_keep_half() -> None:
    masks = random_masks(20, 400, seed=0)
    assert masks.shape == (400, 20)
    assert masks.mean() == pytest.approx(0.5, abs=0.02)


def test_few_memories_are_ablated_by_every_subset_once() -> None:
    masks = random_masks(3, 64, seed=0)
    assert sorted(map(tuple, masks.tolist())) == sorted((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1))
    codec = Words()
    scorer = Told(codec, additive)
    ablate(context_of("m1", "m2"), codec, scorer)
    assert scorer.calls == 1 + 3  # nothing is dropped in the fourth, which is the whole


def test_memory_that_surfaces_after_a_response_weighs_nothing_in_it() -> None:
    context = Context(
        (
            Segment("memory", "m2", key="m2"),
            Segment("user", "q0"),
            Segment("assistant", "a0 b0"),
            Segment("memory", "m7", key="m7"),
            Segment("user", "q1"),
            Segment("assistant", "a1 b1"),
        )
    )
    codec = Words()
    found = ablate(context, codec, Told(codec, additive))
    assert found.responses == (2, 5)
    assert found.weights[0].tolist() == pytest.approx([6.0, 6.0], abs=0.06)
    assert found.weights[1].tolist() == pytest.approx([0.0, -3.0], abs=0.06)


def test_what_is_below_the_noise_floor_is_no_finding() -> None:
    codec = Words()

    def small(before: frozenset[str]) -> float:
        return -40.0 + 0.2 * ("m2" in before)

    assert ablate(context_of(*NAMES), codec, Told(codec, small, noise_floor=1e-3)).findings(11) != []
    assert ablate(context_of(*NAMES), codec, Told(codec, small, noise_floor=0.27)).findings(11) == []


def test_memory_that_stands_in_the_way_is_no_finding_but_keeps_its_sign() -> None:
    codec = Words()
    found = ablate(context_of(*NAMES), codec, Told(codec, additive))
    assert found.weights[7, 0] < -2.9
    assert [key for key, _ in found.findings(11)] == ["m2"]


def test_log_odds_are_those_of_the_whole_response_and_finite_at_certainty() -> None:
    assert log_odds(np.log([0.5, 0.9]), 1e-3).tolist() == pytest.approx([0.0, math.log(9)])
    sure = log_odds(np.array([0.0, -1e-9, -1e-3]), 1e-3)
    assert sure.tolist() == pytest.approx([math.log(999.5)] * 3, rel=1e-3)


def test_noise_floor_grows_where_log_odds_magnify_rounding() -> None:
    codec = Words()
    sure = ablate(context_of("m2"), codec, Told(codec, lambda _: -0.01, noise_floor=1e-3))
    unsure = ablate(context_of("m2"), codec, Told(codec, lambda _: -40.0, noise_floor=1e-3))
    assert sure.noise_floor[0] == pytest.approx(1e-3 / 0.00995, rel=1e-3)
    assert unsure.noise_floor[0] == pytest.approx(1e-3)


def test_failed_runs_are_left_out_and_told() -> None:
    codec = Words()
    scorer = Told(codec, additive)
    scorer.fails = lambda call: ScoringError("lost") if call % 5 == 0 else None
    found = ablate(context_of(*NAMES), codec, scorer)
    assert len(found.failures) == 13
    assert np.isnan(found.log_odds[list(found.failures)]).all()
    assert found.weights[2, 0] == pytest.approx(6.0, abs=0.06)


def test_too_many_failed_runs_give_no_weights_rather_than_wrong_ones() -> None:
    codec = Words()
    scorer = Told(codec, additive)
    scorer.fails = lambda call: ScoringError("lost") if call > 20 else None
    found = ablate(context_of(*NAMES), codec, scorer)
    assert np.isnan(found.weights).all()
    assert found.findings(11) == []


def test_failure_of_the_whole_context_leaves_no_weight_and_is_told_in_every_run() -> None:
    codec = Words()
    scorer = Told(codec, additive)
    scorer.fails = lambda call: ScoringError("lost")
    found = ablate(context_of(*NAMES), codec, scorer)
    assert np.isnan(found.weights).all()
    assert set(found.failures.values()) == {"lost"}
    assert len(found.failures) == 64


def test_context_without_memories_or_responses_gives_an_empty_result() -> None:
    codec = Words()
    none = ablate(context_of(), codec, Told(codec, additive))
    assert (none.weights.shape, none.findings(1)) == ((0, 1), [])
    silent = ablate(Context((Segment("memory", "m1", key="m1"), Segment("user", "q"))), codec, Told(codec, additive))
    assert silent.weights.shape == (1, 0)


def test_forecast_is_the_linear_model() -> None:
    codec = Words()
    found = ablate(context_of(*NAMES), codec, Told(codec, additive))
    here = np.zeros((1, 10), dtype=bool)
    here[0, 2] = True
    assert found.predict(here)[0, 0] == pytest.approx(-34.0, abs=0.15)


def test_progress_is_told_and_can_end_the_work() -> None:
    codec = Words()
    scorer, told = Told(codec, additive), list[tuple[int, int]]()

    def stop(progress: Progress) -> None:
        told.append((progress.done, progress.total))
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(context_of(*NAMES), codec, scorer, report=stop)
    assert told == [(done, 64) for done in range(1, 6)]
    assert scorer.calls == 1 + 5


@pytest.mark.parametrize("wrong", [{"runs": 1}, {"runs": -3}, {"runs": 2.5}, {"alpha": -1.0}, {"alpha": math.nan}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    codec = Words()
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        ablate(context_of("m1"), codec, Told(codec, additive), **wrong)  # type: ignore[arg-type]


def test_response_that_is_none_is_refused() -> None:
    codec = Words()
    with pytest.raises(SonaError, match="segment 3 is none that was scored"):
        ablate(context_of("m1"), codec, Told(codec, additive)).findings(3)
