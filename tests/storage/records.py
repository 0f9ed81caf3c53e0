"""Records to store, and cycles to commit, in as few words as a test can bear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sona.ports import Claim, Role
from sona.storage.store import Store
from sona.types import CycleReport, CycleStatus, Feedback, Funnel, Message, Step, Trajectory, Version


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def trajectory(name: str, *, source: str = "agent", width: int | None = 8) -> Trajectory:
    """The same record each time it is asked for by the same name."""
    seed = int.from_bytes(name.encode()[-8:], "little")
    return Trajectory(
        id=name,
        source=source,
        created_ns=1_700_000_000_000_000_000,
        messages=ask(f"question {name}"),
        response=f"answer {name}",
        embedding=None if width is None else np.random.default_rng(seed).normal(size=width),
        steps=[Step(name="tool:lookup", reward=0.5, latency_s=0.1, at_ns=1), Step(name="route:fast", at_ns=2)],
        metadata={"lang": "en"},
    )


def feedback(name: str, quality: float = 0.5, *, id: str | None = None) -> Feedback:
    return Feedback(trajectory_id=name, quality=quality, id=id or f"feedback-{name}", at_ns=3)


def rated(names: Iterable[str], quality: float = 0.5) -> list[Trajectory | Feedback]:
    return [record for name in names for record in (trajectory(name), feedback(name, quality))]


def add(store: Store, records: Sequence[Trajectory | Feedback]) -> None:
    """Append what must all go in."""
    assert store.append(records) == [None] * len(records)


def report(
    cycle: int, *, status: CycleStatus = "rejected", parent: str = "v0", version: str | None = None
) -> CycleReport:
    return CycleReport(
        cycle=cycle,
        status=status,
        reason="a test",
        funnel=Funnel(collected=0, trained=0, held_out=0),
        parent=parent,
        version=version,
        metrics={"loss_nats": 0.25},
    )


def collected(store: Store, limit: int = 1000) -> list[str]:
    return [row.trajectory.id for row in store.collect(limit).rows]


def run_cycle(
    store: Store,
    *,
    publish: bool = False,
    role: Role = "train",
    limit: int = 1000,
    meanwhile: Callable[[], object] = lambda: None,
    groups: Mapping[str, tuple[str, str]] | None = None,
) -> list[Claim]:
    """Claim all that is new as ``role``, and publish ``v<cycle>`` if asked to; ``meanwhile`` is called as it trains.

    ``groups`` gives trajectories, by their ids, a skill and a pattern.
    """
    number, parent = store.next_cycle(), store.current().id
    claims = []
    for row in store.collect(limit).rows:
        skill, pattern = (groups or {}).get(row.trajectory.id, ("", ""))
        claims.append(
            Claim(seq=row.seq, role=role, feedback_seq=row.feedback_seq, skill=skill, pattern=pattern),
        )
    meanwhile()
    if publish:
        name = f"v{number}"
        version = Version(
            id=name, parent=parent, cycle=number, created_ns=number, digest="00", trajectories=len(claims)
        )
        store.commit_cycle(report(number, status="published", parent=parent, version=name), claims, version)
    else:
        store.commit_cycle(report(number, parent=parent), claims, None)
    return claims
