"""Which skill each query of a cycle belongs to, and which skills it founds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank.novelty import TOLD_APART, found_again, sort_rows, told_apart
from sona.bank.router import RouterFit, fit_router
from sona.bank.skills import Skill, SkillSet, least_burdened
from sona.checks import Float32
from sona.config import SkillsConfig

BASE = ""
"""In the place of a skill's id: the untouched base answers."""
BASE_KNOWS = 0.9
"""Share of new queries that the base answers as the host's best answers do, from which no skill is needed."""
BASE_FAILS = 0.5
"""Share of queries like the base's own that it answers otherwise, from which they need one nevertheless."""
FOUND_AGAIN = 0.95
"""Agreement of an hour's halves on what is new, from which a router brings such queries to an adapter of their own.
Agent tasks have 1.0, domains of real queries 0 to .86. There a router brings 65 to 85 % of the queries to their domain,
and one adapter for several loses less than that: .59 of right answers over six domains, against .51."""
ALIKE = 0.65
"""Held-out accuracy of the two-sample test up to which two skills are one. Same skill: .36-.58 was measured."""

Rows = Sequence[int]
BaseRight = Callable[[Rows], npt.NDArray[np.bool_]]
"""For those of the places among the queries that have an answer to learn, whether the base's own is the same."""


class Sorting(NamedTuple):
    """What a cycle's queries are."""

    skills: SkillSet
    """With those that were founded, and without those that are retired."""
    owners: list[str]
    """The skill's id for each query; :data:`BASE` where the untouched base answers."""
    born: list[str]


def sort_queries(
    features: Float32,
    skills: SkillSet,
    probes: Float32,
    base_right: BaseRight,
    settings: SkillsConfig,
    *,
    cycle: int,
    rng: np.random.Generator,
) -> Sorting:
    """Give each query a skill, a known one or a new one, or leave it to the base.

    Queries are judged one by one, not by the bank's patterns: the pieces that clustering cuts one skill into can be
    told apart by definition, so that a test of each piece would found a skill for every one of them.

    Args:
        features: float32 (n, width), the queries as the router reads them.
        skills: what is known.
        probes: float32 (m, width), the base model's own queries; may be none.
        base_right: tells what the base knows already.
        settings: the least number of queries that make a skill, how many adapters there may be, and whether new queries
            must be routable to found a skill (``auto``) or join the one that they are like.
        cycle: names what is founded.
        rng: draws which of a skill's rows are compared.
    """
    for skill in skills.skills:
        if cycle - skill.touched_cycle > settings.retire_cycles:
            skills = skills.without(skill.id)
    own = _together(probes, skills.known(BASE))
    seen = {BASE: own, **{skill.id: skills.known(skill.id) for skill in skills.skills}}
    known = {name: rows for name, rows in seen.items() if rows is not None and len(rows) > 1}
    found = sort_rows(features, known, settings.min_queries, rng)
    owners = [BASE if label is None else label for label in found.labels]
    new = [place for place, label in enumerate(found.labels) if label is None]
    if new and _share(base_right(new)) >= BASE_KNOWS:
        new = []
    founds_anyway = settings.mode != "auto" or not skills.skills
    if new:
        apart = founds_anyway or found_again(features, known, settings.min_queries, rng) >= FOUND_AGAIN
    else:
        like_base = [place for place, owner in enumerate(owners) if owner == BASE]
        enough = len(like_base) >= settings.min_queries
        new = like_base if enough and 1 - _share(base_right(like_base)) > BASE_FAILS else []
        apart = founds_anyway or not new or told_apart(features[new], own) < TOLD_APART
    if not apart:  # a router could not bring them to an adapter of their own
        for place, skill_id in zip(new, _nearest(features[new], known, rng), strict=True):
            owners[place] = skill_id
    if not apart or not new:
        return Sorting(skills, owners, [])
    skill = _found(skills, settings, cycle)
    for place in new:
        owners[place] = skill.id
    return Sorting(skills.put(skill), owners, [skill.id])


def _nearest(rows: Float32, known: Mapping[str, Float32], rng: np.random.Generator) -> list[str]:
    """Of each row the skill that it is most like: to that one's adapter a router would bring it."""
    skills = {name: own for name, own in known.items() if name != BASE}
    return [label or BASE for label in sort_rows(rows, skills, len(rows) + 1, rng).labels]


def _share(right: npt.NDArray[np.bool_]) -> float:
    """1 where there is no answer to learn: all turned down, such queries wait for a better one."""
    return float(right.mean()) if len(right) else 1.0


def base_rows(skills: SkillSet, probes: Float32) -> Float32:
    """What the base answers, as far as is known: its own probes, and traffic that it answered."""
    return _together(probes, skills.rows.get(BASE))


def _together(probes: Float32, traffic: Float32 | None) -> Float32:
    """Both; the probes may be none, of no width either."""
    if traffic is None:
        return probes
    return np.concatenate([probes, traffic]) if len(probes) else traffic


def _found(skills: SkillSet, settings: SkillsConfig, cycle: int) -> Skill:
    """A new skill, with an adapter of its own as long as there may be more."""
    name = f"s{cycle}"
    full = len(skills.adapters) >= settings.max_adapters
    adapter = least_burdened(skills, skills.adapters) if full else name
    return Skill(id=name, adapter=adapter, born_cycle=cycle, touched_cycle=cycle)


def merge_alike(skills: SkillSet, touched: Sequence[str]) -> tuple[SkillSet, list[str]]:
    """Put together what can no longer be told apart; returns the ids that are no longer skills of their own.

    The one with the most trajectories answers for both. Only pairs with a skill in ``touched`` are looked at: the
    others are as they were.
    """
    gone: list[str] = []
    for one in touched:
        for other in [skill.id for skill in skills.skills]:
            pair = [skill for skill in skills.skills if skill.id in (one, other)]
            if len(pair) < 2 or any(skill.id not in skills.rows for skill in pair):
                continue
            if pair[0].replay_after != pair[1].replay_after:  # the past of only one of them still holds
                continue
            if told_apart(skills.rows[one], skills.rows[other]) <= ALIKE:
                kept, part = sorted(pair, key=lambda skill: (-skill.count, skill.born_cycle))
                skills = skills.merged(kept.id, part.id)
                gone.append(part.id)
    return skills, gone


def with_router(skills: SkillSet, probes: Float32) -> tuple[SkillSet, RouterFit | None]:
    """The skills with a router fitted to them, and how well it does; None where there is no skill to route to."""
    rows = {skill.id: skills.rows[skill.id] for skill in skills.skills if len(skills.rows.get(skill.id, ()))}
    if not rows:
        return replace(skills, router=None), None
    own = base_rows(skills, probes)
    if not len(own):
        own = -np.concatenate(list(rows.values()))  # the opposite of all that is known: like no query at all
    fitted = fit_router(own, rows, {skill.id: skill.adapter for skill in skills.skills})
    return replace(skills, router=fitted.router), fitted
