"""The decision whether a challenger may be published: from evidence that it never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.config import GateConfig
from sona.types import GateCheck, GateDecision

DEBT = "earlier_debt"  # the metric of a version that the next cycle's gate goes on from

ENOUGH_OF_ONE = 8
"""Earlier held-out answers by which one skill is judged apart."""


class Evidence(NamedTuple):
    """The same answers under the version in force and under the challenger."""

    gain: npt.NDArray[np.float64]
    """(n,) of held-out questions, this cycle's and those of earlier ones whose adapter learned: how much more likely
    the challenger finds a token of the answer than the version in force, in [-1, 1]; the geometric mean over the
    answer's tokens, the mean over the answers to one question. Repeats of a question are no further evidence.
    Probabilities, as they are bounded: in nats one answer that got hopeless outweighs ten that came right (.29 to .65
    of the answers right was once a loss of .07 nats)."""
    earlier_before: npt.NDArray[np.float64]
    """(m,) of earlier cycles' held-out answers: share of its tokens that the version in force predicts."""
    earlier_after: npt.NDArray[np.float64]
    """(m,) the same for the challenger."""
    earlier_skills: Sequence[str]
    """(m,) the skill that each is of."""
    debt: float
    """What the version in force has lost of its earlier skills since they were learned, 0 or below: each cycle's loss
    alone within the bound would let many cycles lose everything."""
    probes_kept: npt.NDArray[np.float64]
    """(p,) of the base model's own answers: share of its tokens that the challenger still predicts, each token weighted
    by the base's own probability of it. Where the base hardly knew, another choice is no skill lost."""
    probes_kl: npt.NDArray[np.float64]
    """(p,) of the same answers: KL(base || challenger), nats a token."""
    approved: npt.NDArray[np.float64] = np.empty(0)
    """(a,) of approved answers, without the memories that they came from: what ``gain`` is of held-out ones. They are
    trained on, as another fact says nothing of a fact: it shows that they have got into the weights, not that anything
    else did."""
    only_approved: bool = False
    """Whether nothing else is new, so that held-out questions have nothing to gain."""


def decide(evidence: Evidence, settings: GateConfig, seed: int) -> GateDecision:
    """Admit the challenger if it helps on what is new, beyond chance, and forgets neither the old nor the base's.

    A check without data is left out, but for the first: no held-out questions, no evidence, no publication. Where
    nothing is new but approved answers, these are the evidence, and the rest must be kept as ever.
    """
    checks = [] if evidence.only_approved else [_enough(evidence, settings), _helps(evidence, settings, seed)]
    if len(evidence.approved):
        checks.append(_unaided(evidence, settings, seed))
    if len(evidence.earlier_before):
        checks += [_keeps_earlier(evidence, settings), _keeps_each(evidence, settings)]
    if len(evidence.probes_kept):
        checks += [_keeps_base(evidence, settings), _stays_near_base(evidence, settings)]
    return GateDecision(passed=not settings.enabled or all(check.passed for check in checks), checks=tuple(checks))


def bootstrap_bound(values: npt.NDArray[np.float64], confidence: float, samples: int, seed: int) -> float:
    """Lower end of the two-sided percentile bootstrap interval of the mean (Efron 1979), of paired differences (n,).

    With few values it is somewhat too narrow: at 8 normal ones a 95 % interval covers the mean about 90 times in 100.
    """
    if not len(values):
        return float("-inf")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [values[rng.integers(0, len(values), (size, len(values)))].mean(1) for size in _chunks(samples)]
    )
    return float(np.quantile(means, (1 - confidence) / 2))


def _chunks(samples: int, size: int = 500) -> list[int]:
    return [min(size, samples - start) for start in range(0, samples, size)]


def _enough(evidence: Evidence, settings: GateConfig) -> GateCheck:
    return _check("held-out questions", len(evidence.gain), settings.min_held_out, "with earlier ones of these skills")


def _helps(evidence: Evidence, settings: GateConfig, seed: int) -> GateCheck:
    bound = bootstrap_bound(evidence.gain, settings.confidence, settings.bootstrap_samples, seed)
    mean = float(evidence.gain.mean()) if len(evidence.gain) else float("nan")
    # Strictly above: an adapter that changes nothing gains exactly 0 and must not pass.
    passed = bound > settings.min_gain
    detail = f"mean gain {mean:.4g} in the probability of a token, lower end of the {settings.confidence:.0%} interval"
    return GateCheck(name="gain", value=bound, bound=settings.min_gain, passed=passed, detail=detail)


def _unaided(evidence: Evidence, settings: GateConfig, seed: int) -> GateCheck:
    bound = bootstrap_bound(evidence.approved, settings.confidence, settings.bootstrap_samples, seed)
    detail = (
        f"mean gain {float(evidence.approved.mean()):.4g} in the probability of a token of {len(evidence.approved)} "
        f"approved answers without their memories, lower end of the {settings.confidence:.0%} interval"
    )
    passed = bound > settings.min_gain
    return GateCheck(name="approved answers", value=bound, bound=settings.min_gain, passed=passed, detail=detail)


def _keeps_earlier(evidence: Evidence, settings: GateConfig) -> GateCheck:
    detail = f"share of tokens lost since they were learned, over {len(evidence.earlier_after)} held-out answers"
    return _check("earlier skills", debt_after(evidence), -settings.max_forgetting, detail)


def _keeps_each(evidence: Evidence, settings: GateConfig) -> GateCheck:
    """Among many skills the loss of one hardly shows in the mean."""
    change = evidence.earlier_after - evidence.earlier_before
    skills = np.asarray(evidence.earlier_skills)
    counts = {skill: int((skills == skill).sum()) for skill in dict.fromkeys(evidence.earlier_skills)}
    means = [float(change[skills == skill].mean()) for skill, count in counts.items() if count >= ENOUGH_OF_ONE]
    worst = min(means, default=float(change.mean()))
    return _check(
        "each skill", worst, -settings.max_forgetting, "change in the share of tokens right, the worst skill's"
    )


def debt_after(evidence: Evidence) -> float:
    """What the challenger has lost of the earlier skills in all, 0 or below; a gain pays back, and is not saved up."""
    if not len(evidence.earlier_before):
        return evidence.debt
    return min(0.0, evidence.debt + float((evidence.earlier_after - evidence.earlier_before).mean()))


def _keeps_base(evidence: Evidence, settings: GateConfig) -> GateCheck:
    detail = f"of the base model's own tokens kept, over {len(evidence.probes_kept)} probes that were not trained on"
    return _check("base skills", float(evidence.probes_kept.mean()), settings.min_retention, detail)


def _stays_near_base(evidence: Evidence, settings: GateConfig) -> GateCheck:
    detail = "minus the KL divergence of the base model's answers to its own probes, nats a token"
    return _check("distance to the base", 0.0 - float(evidence.probes_kl.mean()), -settings.max_kl, detail)


def _check(name: str, value: float, bound: float, detail: str) -> GateCheck:
    return GateCheck(name=name, value=float(value), bound=float(bound), passed=value >= bound, detail=detail)
