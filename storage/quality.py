"""The effective quality of a trajectory that has several feedbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal, get_args

import apsw

from sona.storage.rows import damaged

STATE = "quality"
"""The state that names the store's policy."""
Policy = Literal["last", "first", "mean", "min", "max"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

_RULES: dict[Policy, Callable[[Sequence[float]], float]] = {
    "last": lambda qualities: qualities[-1],
    "first": lambda qualities: qualities[0],
    "mean": fmean,
    "min": min,
    "max": max,
}


def effective(policy: Policy, qualities: Sequence[float]) -> float | None:
    """What ``policy`` makes of a trajectory's qualities, in the order of arrival; None where there are none."""
    return _RULES[policy](qualities) if qualities else None


def read_policy(connection: apsw.Connection) -> Policy:
    """The store's; ``last`` where nothing else was ever said."""
    value = connection.execute("SELECT value FROM state WHERE name = ?", (STATE,)).get
    name = "last" if value is None else value.decode("ascii", "replace")
    for policy in POLICIES:
        if policy == name:
            return policy
    raise damaged(f"state {STATE!r}", f"{name!r} is no policy")
