"""λ, the strength of the EWC++ penalty, led by the forgetting that was measured."""

from __future__ import annotations

import math
from dataclasses import replace

from sona.config import TrainConfig
from sona.errors import InvalidInputError
from sona.learn.ewc import EwcState

_DEAD_BAND, _FACTOR = 1.5, 2.0


def adapted_lambda(lam: float, forgotten: float, target: float, bounds: tuple[float, float]) -> float:
    """λ for the next cycle: doubled where the last forgot over 1.5 times ``target``, halved where under 1/1.5 of it.

    The rule by which PPO leads its KL penalty (Schulman et al. 2017, arXiv:1707.06347, §4), which met the same
    question: a strength without a natural unit, to be led by a noisy measurement that has one. It multiplies, as the
    right λ is known at best to its order of magnitude, and rests in a band, so that noise alone does not move it. From
    one end of the bounds to the other it takes log2(upper / lower) cycles.

    Args:
        lam: λ of the cycle that was measured; 0, which is a penalty switched off, stays 0.
        forgotten: share of what was known before the cycle and is not after; below 0 where it got better.
        target: what a cycle may forget, in the same unit, above 0.
        bounds: the smallest and the largest λ, above 0; a ``lam`` outside comes back into them.

    Raises:
        InvalidInputError: a number that is not finite or out of its range.
    """
    lower, upper = bounds
    if not (math.isfinite(forgotten) and 0 < target < math.inf and 0 <= lam < math.inf):
        raise InvalidInputError(
            f"adapted λ: lam {lam}, forgotten {forgotten}, target {target}; finite numbers, lam of 0 or more and a "
            "target above 0 are allowed"
        )
    if not 0 < lower <= upper < math.inf:
        raise InvalidInputError(f"adapted λ: bounds {bounds}; 0 < lower <= upper is allowed")
    if lam == 0:
        return 0.0
    if forgotten > target * _DEAD_BAND:
        lam *= _FACTOR
    elif forgotten < target / _DEAD_BAND:
        lam /= _FACTOR
    return min(max(lam, lower), upper)


def lambda_bounds(settings: TrainConfig) -> tuple[float, float]:
    """Between which λ may be led: ``ewc_lambda`` divided and multiplied by ``ewc_lambda_span``."""
    return settings.ewc_lambda / settings.ewc_lambda_span, settings.ewc_lambda * settings.ewc_lambda_span


def current_lambda(state: EwcState, settings: TrainConfig) -> float:
    """λ of the next cycle: the setting, or the state's in bounds where λ is led (``ewc_target_forgetting`` above 0)."""
    if state.lam is None or not settings.ewc_target_forgetting:
        return settings.ewc_lambda
    lower, upper = lambda_bounds(settings)
    return min(max(state.lam, lower), upper)


def adapted(state: EwcState, forgotten: float, settings: TrainConfig) -> EwcState:
    """``state`` with λ led by what its cycle has ``forgotten`` (see :func:`adapted_lambda`), for between two cycles.

    Where λ is not led, or switched off, the state itself. λ is a part of the state, so a rollback takes it back too.

    Raises:
        InvalidInputError: ``forgotten`` is not finite.
    """
    if not (settings.ewc_target_forgetting and settings.ewc_lambda):
        return state
    lam = current_lambda(state, settings)
    return replace(state, lam=adapted_lambda(lam, forgotten, settings.ewc_target_forgetting, lambda_bounds(settings)))
