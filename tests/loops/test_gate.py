"""The gate admits on evidence, and only then."""

import numpy as np
import pytest

from sona.config import GateConfig
from sona.loops.gate import Evidence, bootstrap_bound, debt_after, decide

NONE = np.zeros(0)
SETTINGS = GateConfig(min_held_out=8, min_retention=0.9, max_forgetting=0.05, max_kl=0.5)


def evidence(
    gain: float = 1.0,
    n: int = 40,
    noise: float = 0.1,
    forgotten: float = 0.0,
    kept: float = 1.0,
    m: int = 20,
    debt: float = 0.0,
    kl: float = 0.0,
) -> Evidence:
    rng = np.random.default_rng(0)
    return Evidence(
        gain=gain + noise * rng.normal(size=n),
        earlier_before=np.ones(m),
        earlier_after=np.full(m, 1.0 - forgotten),
        earlier_skills=["s1"] * m,
        debt=debt,
        probes_kept=np.full(m, kept),
        probes_kl=np.full(m, kl),
    )


def one_lost(count: int, share: float) -> Evidence:
    """One of 20 skills, with so many answers, lost this share of their tokens."""
    found = evidence(m=200)
    after = found.earlier_after.copy()
    after[:count] -= share
    return found._replace(earlier_after=after, earlier_skills=["s1"] * count + ["s2"] * (200 - count))


def passed(found: Evidence, settings: GateConfig = SETTINGS) -> dict[str, bool]:
    return {check.name: check.passed for check in decide(found, settings, seed=0).checks}


def test_a_clear_gain_without_loss_is_admitted() -> None:
    decision = decide(evidence(), SETTINGS, seed=0)
    assert decision.passed
    assert all(check.passed for check in decision.checks)


def test_no_change_is_not_admitted() -> None:
    assert passed(evidence(gain=0.0, noise=0.0))["gain"] is False


def test_a_gain_within_chance_is_not_admitted() -> None:
    assert passed(evidence(gain=0.05, noise=1.0))["gain"] is False


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (evidence(n=7), "held-out questions"),
        (evidence(n=0), "held-out questions"),
        (evidence(gain=-1.0), "gain"),
        (evidence(forgotten=0.06), "earlier skills"),
        (evidence(forgotten=0.03, debt=-0.03), "earlier skills"),
        (one_lost(8, 0.1), "each skill"),
        (evidence(kept=0.89), "base skills"),
        (evidence(kl=0.51), "distance to the base"),
    ],
)
def test_each_lack_alone_keeps_a_challenger_out(found: Evidence, failed: str) -> None:
    decision = decide(found, SETTINGS, seed=0)
    assert not decision.passed
    assert passed(found)[failed] is False
    assert failed in decision.reason


def test_a_lost_skill_shows_though_the_mean_over_all_does_not() -> None:
    assert passed(one_lost(8, 0.1))["earlier skills"]
    assert passed(one_lost(8, 0.04))["each skill"]
    assert passed(one_lost(7, 1.0))["each skill"], "seven answers are too few to say so of one"


def test_what_can_t_be_measured_is_not_a_check() -> None:
    names = set(passed(evidence(m=0)))
    assert names == {"held-out questions", "gain"}


def test_switched_off_it_still_says_what_it_saw() -> None:
    decision = decide(evidence(kept=0.1), GateConfig(enabled=False), seed=0)
    assert decision.passed
    assert {check.name: check.passed for check in decision.checks}["base skills"] is False


def test_the_bound_is_that_of_the_normal_interval_for_many_values() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, size=4000)
    wanted = values.mean() - 1.96 * values.std() / np.sqrt(4000)
    assert bootstrap_bound(values, 0.95, 2000, seed=3) == pytest.approx(wanted, abs=0.004)
    assert bootstrap_bound(values, 0.95, 2000, seed=3) == bootstrap_bound(values, 0.95, 2000, seed=3)
    assert bootstrap_bound(NONE, 0.95, 200, seed=0) == -np.inf


def test_small_losses_add_up_and_gains_pay_back_but_are_not_saved() -> None:
    assert debt_after(evidence(forgotten=0.03, debt=-0.03)) == pytest.approx(-0.06)
    assert debt_after(evidence(forgotten=-0.02, debt=-0.03)) == pytest.approx(-0.01)
    assert debt_after(evidence(forgotten=-0.5, debt=-0.03)) == 0.0
    assert debt_after(evidence(m=0, debt=-0.03)) == -0.03
