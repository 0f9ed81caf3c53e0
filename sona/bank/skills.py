"""Skills: which queries one adapter answers for, and what is kept of them to recognise more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from sona.bank.router import SkillRouter
from sona.checks import Float32
from sona.types import Record

SHARED = "shared"
"""The one skill that everything belongs to where nothing is routed; its adapter has the same name."""
HELD_OUT = "held-out/"
"""Before a skill's id: rows that its router is not fitted to, so that it can be judged by them again and again."""
KEPT = 256
"""Rows kept of each skill, newest last: so that what a skill is can drift, and two-sample tests cost the same."""


class Skill(Record, kw_only=True):
    """A kind of query. Its id is never used again for anything else."""

    id: str
    adapter: str
    """The name of the adapter that answers; several skills may share one."""
    born_cycle: int
    touched_cycle: int
    """The last cycle with queries of its kind."""
    count: int = 0
    """Trajectories learned from."""
    merged: tuple[str, ...] = ()
    """Ids of skills that became part of it: what was claimed for them is its own."""
    replay_after: int = 0
    """Right answers changed with the cycle after this one: what was claimed up to it is no longer replayed, nor held
    against a candidate."""
    usual: tuple[float, ...] = ()
    """Nats a token of its last held-out answers under the adapter that had just learned: what is to be expected."""

    @property
    def claims(self) -> tuple[str, ...]:
        """The ids under which the store has its trajectories."""
        return (self.id, *self.merged)


@dataclass(frozen=True)
class SkillSet:
    """All skills of a version. Immutable: what changes it returns another."""

    skills: tuple[Skill, ...] = ()
    rows: Mapping[str, Float32] = field(default_factory=dict)
    """By skill id, float32 (up to :data:`KEPT`, width): features of its queries. Under ``""`` those of queries that
    the untouched base answers. Queries that are held out have rows of their own, under :data:`HELD_OUT` and the id."""
    router: SkillRouter | None = None
    """None before the first skill, and where nothing is routed."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters in use, once each, in the order of their first skill's birth."""
        return tuple(dict.fromkeys(skill.adapter for skill in self.skills))

    def get(self, skill_id: str) -> Skill | None:
        """The skill of this id, or the one that it became part of."""
        return next((skill for skill in self.skills if skill_id in skill.claims), None)

    def of_adapter(self, adapter: str) -> list[Skill]:
        """The skills that ``adapter`` answers for."""
        return [skill for skill in self.skills if skill.adapter == adapter]

    def put(self, skill: Skill) -> SkillSet:
        """With ``skill`` in the place of the one of its id, or added."""
        known = [skill if one.id == skill.id else one for one in self.skills]
        return replace(self, skills=tuple(known if skill in known else [*known, skill]))

    def with_rows(self, skill_id: str, features: Float32) -> SkillSet:
        """With these features (n, width) added to the skill's, or to the base's (``""``); the oldest leave."""
        before = self.rows.get(skill_id)
        rows = features if before is None else np.concatenate([before, features])
        kept = rows[-KEPT:].astype(np.float16).astype(np.float32)  # as they come back from a file
        return replace(self, rows={**self.rows, skill_id: kept})

    def known(self, skill_id: str) -> Float32 | None:
        """All rows of a skill or of the base, to recognise more of its queries by; None where there are none."""
        found = [self.rows[name] for name in (skill_id, HELD_OUT + skill_id) if name in self.rows]
        return np.concatenate(found) if found else None

    def without(self, skill_id: str) -> SkillSet:
        """Without this skill: its queries are again like nothing known."""
        left = {name: rows for name, rows in self.rows.items() if name not in (skill_id, HELD_OUT + skill_id)}
        return replace(self, skills=tuple(skill for skill in self.skills if skill.id != skill_id), rows=left)

    def merged(self, kept: str, gone: str) -> SkillSet:
        """With the skill ``gone`` a part of ``kept``, whose adapter answers for both."""
        into, part = self._known(kept), self._known(gone)
        half = KEPT // 2
        rows = np.concatenate([self.rows[gone][-max(half, KEPT - len(self.rows[kept])) :], self.rows[kept]])
        if len(rows) > KEPT:
            rows = np.concatenate([self.rows[gone][-half:], self.rows[kept][-half:]])
        whole = msgspec.structs.replace(
            into,
            count=into.count + part.count,
            merged=(*into.merged, *part.claims),
            touched_cycle=max(into.touched_cycle, part.touched_cycle),
            replay_after=max(into.replay_after, part.replay_after),
        )
        left, asked = self.without(gone), self.rows.get(HELD_OUT + gone)
        merged = replace(left, rows={**left.rows, kept: rows[-KEPT:]}).put(whole)
        return merged if asked is None else merged.with_rows(HELD_OUT + kept, asked)

    def _known(self, skill_id: str) -> Skill:
        return next(skill for skill in self.skills if skill.id == skill_id)


def least_burdened(skills: SkillSet, adapters: Sequence[str]) -> str:
    """Of ``adapters`` the one that answers for the fewest skills, the fewest trajectories among equals."""

    def burden(adapter: str) -> tuple[int, int]:
        own = skills.of_adapter(adapter)
        return len(own), sum(skill.count for skill in own)

    return min(adapters, key=burden)
