"""Approved candidates on their way through a cycle: what can be trained on, and what became of each.

They are no trajectories: a cycle takes each by its own row, once, so a trajectory that was learned from (or held out)
long ago may still have its answer moved into the weights. None is held out: a fact says nothing of another fact, so
what was never trained on could not show a gain. The gate looks at the very answers instead, without their memories,
and at everything else as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sona.candidate import Candidate, Settled
from sona.checks import Int32
from sona.config import CandidatesConfig, TrainConfig
from sona.learn.dataset import Example
from sona.loops.roster import FEW, LATER
from sona.loops.screen import Ready
from sona.loops.sorting import BASE
from sona.ports import ServedModel, Stored, TrajectoryStore
from sona.types import BASE_VERSION, Trajectory


class Approved(NamedTuple):
    """What a cycle takes of the approved candidates."""

    ready: list[Ready]
    unfit: list[Settled]
    """What can't be trained on, with why."""


class Moved(NamedTuple):
    """An answer that an earlier cycle moved into the weights."""

    skill: str
    cycle: int
    example: Example


NOTHING = Approved([], [])


def take_approved(
    store: TrajectoryStore, model: ServedModel | None, settings: CandidatesConfig, train: TrainConfig
) -> Approved:
    """Screen what is approved, oldest first; nothing without a model."""
    if model is None:
        return NOTHING
    taken = Approved([], [])
    for candidate in store.candidates.approved(settings.max_approved):
        prompt, response = _prompt(candidate, settings), candidate.ids("continuation_ids")
        if (why := _unfit(prompt, response, model, train)) is not None:
            taken.unfit.append(Settled(seq=candidate.seq, state="rejected", note=why))
        else:
            taken.ready.append(
                Ready(_stored(candidate, prompt), prompt, response, candidate.ids("bare_ids"), is_approved=True)
            )
    return taken


def _prompt(candidate: Candidate, settings: CandidatesConfig) -> Int32:
    return candidate.ids("bare_ids" if settings.train_on == "without_memories" else "context_ids")


def _unfit(prompt: Int32, response: Int32, model: ServedModel, train: TrainConfig) -> str | None:
    if not len(prompt) or not len(response):
        return "no token ids"
    most = min(train.max_tokens, model.max_tokens)
    if len(prompt) + len(response) > most:
        return f"longer than {most} tokens"
    if max(prompt.max(), response.max()) >= model.vocab_size:
        return "token ids outside the vocabulary"
    return None


def _stored(candidate: Candidate, prompt: Int32) -> Stored:
    """In the form of a trajectory, as what sorts queries and plans lessons knows nothing else."""
    trajectory = Trajectory(
        id=candidate.trajectory_id,
        source=candidate.source,
        created_ns=candidate.at_ns,
        prompt_ids=prompt,
        response_ids=candidate.continuation_ids,
    )
    return Stored(seq=-candidate.seq, trajectory=trajectory, quality=1.0)


def moved_before(store: TrajectoryStore, settings: CandidatesConfig, rng: np.random.Generator) -> list[Moved]:
    """Of what the version in force was taught of approved answers, some to replay."""
    versions = {version.id: version for version in store.versions()}
    at, cycles = store.current(), set[int]()
    while at.id != BASE_VERSION and at.parent is not None:
        cycles.add(at.cycle)
        at = versions[at.parent]
    if not cycles or not settings.replayed:
        return []
    known = store.candidates.trained(cycles)
    if len(known) > settings.replayed:
        known = [known[place] for place in sorted(rng.choice(len(known), settings.replayed, replace=False).tolist())]
    return [Moved(one.skill, one.cycle, Example(_prompt(one, settings), one.ids("continuation_ids"))) for one in known]


def settled_by(
    ready: Sequence[Ready], owners: Mapping[int, str], idle: Collection[str], *, admitted: bool, learned: bool, why: str
) -> list[Settled]:
    """What becomes of the candidates that were trained on, or were to be.

    Args:
        ready: they.
        owners: the skill of each, by its made-up seq.
        idle: skills whose adapter gives such answers already.
        admitted: whether the version was.
        learned: whether anything was trained.
        why: what the gate said.
    """
    settled = []
    for item in ready:
        seq, owner = -item.stored.seq, owners[item.stored.seq]
        if owner in (LATER, FEW):  # too few of their kind: they stay approved
            continue
        if owner == BASE:
            settled.append(Settled(seq=seq, state="new", note="the base model answers such queries"))
        elif owner in idle:
            settled.append(Settled(seq=seq, state="rejected", note="the model answers so already, without memories"))
        elif admitted and learned:
            settled.append(Settled(seq=seq, state="trained", skill=owner))
        elif not admitted:
            settled.append(Settled(seq=seq, state="approved", note=f"the gate turned the version down: {why}"))
    return settled
