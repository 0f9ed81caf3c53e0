"""Skills: which queries one adapter answers for, and what is kept of them to recognise more."""

from __future__ import annotations

import hashlib
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
NOBODY_KNOWS = ""
"""In the place of a row's owner: it is of a file from before rows had any."""
KEPT = 256
"""Rows kept of each skill, newest last: so that what a skill is can drift, and two-sample tests cost the same."""


def owner_of(source: str) -> str:
    """Whose a row is, for its erasure: no name, which would outlive the trajectories that retention deletes."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


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
    whose: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As ``rows``, the owner of each (:func:`owner_of` its source); no name where nobody knows any of them."""

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

    def owners(self, name: str) -> tuple[str, ...]:
        """Of each of the rows under ``name`` the owner, or :data:`NOBODY_KNOWS`."""
        return self.whose.get(name) or (NOBODY_KNOWS,) * len(self.rows.get(name, ()))

    def with_rows(self, skill_id: str, features: Float32, sources: Sequence[str] = ()) -> SkillSet:
        """With these features (n, width) added to the skill's, or to the base's (``""``); the oldest leave.

        Args:
            skill_id: whose.
            features: float32 (n, width).
            sources: who sent the query of each of them; none where nobody knows.
        """
        added = tuple(map(owner_of, sources)) or (NOBODY_KNOWS,) * len(features)
        before = self.rows.get(skill_id)
        rows = features if before is None else np.concatenate([before, features])
        kept = rows[-KEPT:].astype(np.float16).astype(np.float32)  # as they come back from a file
        return self._with(skill_id, kept, (*self.owners(skill_id), *added)[-KEPT:])

    def _with(self, name: str, rows: Float32, owners: tuple[str, ...]) -> SkillSet:
        return replace(self, rows={**self.rows, name: rows}, whose={**self.whose, name: owners})

    def without_source(self, source: str) -> SkillSet:
        """Without the rows of a source, and without what was usual for a skill some of whose held-out queries were its
        own, or may have been: a loss beside the adapter that it was measured with tells an answer as well as a row
        tells a query. Itself where there are none. The router stays, which answers as before.

        A skill whose queries were all of the source keeps its adapter, and the next cycle knows none of its kind.
        """
        left, owner = self, owner_of(source)
        for skill in self.skills:
            asked = self.owners(HELD_OUT + skill.id)
            if skill.usual and (not asked or owner in asked or NOBODY_KNOWS in asked):
                left = left.put(msgspec.structs.replace(skill, usual=()))
        for name, rows in self.rows.items():
            kept = [place for place, whose in enumerate(self.owners(name)) if whose != owner]
            if len(kept) < len(rows):
                left = left._with(name, rows[kept], tuple(self.owners(name)[place] for place in kept))
        full = {name: rows for name, rows in left.rows.items() if len(rows)}
        return left if len(full) == len(left.rows) else left._only(full)

    def _only(self, rows: Mapping[str, Float32]) -> SkillSet:
        return replace(self, rows=rows, whose={name: self.whose[name] for name in rows if name in self.whose})

    @property
    def row_count(self) -> int:
        """Of all skills and the base, held out or not."""
        return sum(map(len, self.rows.values()))

    @property
    def of_nobody(self) -> bool:
        """Whether there are rows of which nobody knows who sent the query."""
        return any(NOBODY_KNOWS in self.owners(name) for name in self.rows)

    def known(self, skill_id: str) -> Float32 | None:
        """All rows of a skill or of the base, to recognise more of its queries by; None where there are none."""
        found = [self.rows[name] for name in (skill_id, HELD_OUT + skill_id) if name in self.rows]
        return np.concatenate(found) if found else None

    def without(self, skill_id: str) -> SkillSet:
        """Without this skill: its queries are again like nothing known."""
        left = {name: rows for name, rows in self.rows.items() if name not in (skill_id, HELD_OUT + skill_id)}
        return replace(self._only(left), skills=tuple(skill for skill in self.skills if skill.id != skill_id))

    def merged(self, kept: str, gone: str) -> SkillSet:
        """With the skill ``gone`` a part of ``kept``, whose adapter answers for both."""
        into, part = self._known(kept), self._known(gone)
        half = KEPT // 2
        most = max(half, KEPT - len(self.rows[kept])), KEPT
        if len(self.rows[gone][-most[0] :]) + len(self.rows[kept]) > KEPT:
            most = half, half
        rows = np.concatenate([self.rows[gone][-most[0] :], self.rows[kept][-most[1] :]])
        owners = (*self.owners(gone)[-most[0] :], *self.owners(kept)[-most[1] :])
        whole = msgspec.structs.replace(
            into,
            count=into.count + part.count,
            merged=(*into.merged, *part.claims),
            touched_cycle=max(into.touched_cycle, part.touched_cycle),
            replay_after=max(into.replay_after, part.replay_after),
        )
        merged = self.without(gone)._with(kept, rows, owners).put(whole)
        return merged._with_held_out_of(self, gone, kept)

    def _with_held_out_of(self, before: SkillSet, gone: str, kept: str) -> SkillSet:
        part, name = before.rows.get(HELD_OUT + gone), HELD_OUT + kept
        if part is None:
            return self
        whole = part if name not in self.rows else np.concatenate([self.rows[name], part])
        return self._with(name, whole[-KEPT:], (*self.owners(name), *before.owners(HELD_OUT + gone))[-KEPT:])

    def _known(self, skill_id: str) -> Skill:
        return next(skill for skill in self.skills if skill.id == skill_id)


def least_burdened(skills: SkillSet, adapters: Sequence[str]) -> str:
    """Of ``adapters`` the one that answers for the fewest skills, the fewest trajectories among equals."""

    def burden(adapter: str) -> tuple[int, int]:
        own = skills.of_adapter(adapter)
        return len(own), sum(skill.count for skill in own)

    return min(adapters, key=burden)
