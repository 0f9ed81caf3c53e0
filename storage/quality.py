"""The effective quality of a trajectory that has several feedbacks.

The policy is the store's: it is kept in it, so that whoever reads beside the writer sees the same qualities, and the
totals of the sources are counted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import get_args

import apsw
import msgspec

from sona.config import QualityPolicy
from sona.errors import StoreVersionError
from sona.ports import Stored
from sona.storage.reading import feedback_of
from sona.storage.sources import read_all_totals, write_totals
from sona.storage.state import read_state, write_state

Policy = QualityPolicy
STATE = "quality"

_RULES: dict[Policy, Callable[[Sequence[float]], float]] = {
    "last": lambda qualities: qualities[-1],
    "first": lambda qualities: qualities[0],
    "mean": fmean,
    "min": min,
    "max": max,
}

# A bare column beside max() or min() is that of their row (sqlite.org/lang_select.html, "Bare columns").
_OF_EACH: dict[Policy, str] = {
    "last": "quality AS counted, max(seq)",
    "first": "quality AS counted, min(seq)",
    "mean": "avg(quality) AS counted",
    "min": "min(quality) AS counted",
    "max": "max(quality) AS counted",
}
_SUMS = """
SELECT t.source, sum(f.counted)
FROM (SELECT trajectory, {of_each} FROM feedback GROUP BY trajectory) f JOIN trajectories t ON t.seq = f.trajectory
GROUP BY t.source
"""


def effective(policy: Policy, qualities: Sequence[float]) -> float | None:
    """What ``policy`` makes of a trajectory's qualities, in the order of arrival; None where there are none."""
    return _RULES[policy](qualities) if qualities else None


def rated(connection: apsw.Connection, rows: Sequence[Stored], policy: Policy) -> list[Stored]:
    """``rows``, which were read with their latest quality, with the effective one."""
    if policy == "last":
        return list(rows)
    return [row if row.quality is None else _rated(connection, row, policy) for row in rows]


def _rated(connection: apsw.Connection, row: Stored, policy: Policy) -> Stored:
    qualities = [feedback.quality for feedback in feedback_of(connection, row.trajectory.id)]
    return msgspec.structs.replace(row, quality=effective(policy, qualities))


def read_policy(connection: apsw.Connection) -> Policy:
    """The store's.

    Raises:
        StoreVersionError: it is none that this sona knows.
    """
    name = (read_state(connection, STATE) or b"last").decode("utf-8", "replace")
    for policy in get_args(Policy):
        if name == policy:
            return policy  # type: ignore[no-any-return]
    raise StoreVersionError(f"quality policy {name!r}: this sona knows {', '.join(get_args(Policy))}; update sona")


def adopt_policy(connection: apsw.Connection, policy: Policy) -> None:
    """Make ``policy`` the store's, in the transaction under way; the totals are counted anew where it was another."""
    if read_policy(connection) == policy:
        return
    sums = dict(connection.execute(_SUMS.format(of_each=_OF_EACH[policy])))
    for totals in read_all_totals(connection):
        write_totals(connection, replace(totals, quality_sum=sums.get(totals.source, 0.0)))
    write_state(connection, STATE, policy.encode())
