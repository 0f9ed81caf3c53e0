"""A cycle's trajectories with their features, each given to a skill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from sona.bank.skills import HELD_OUT, SHARED, Skill, SkillSet
from sona.checks import Float32
from sona.config import SkillsConfig
from sona.loops.screen import Ready
from sona.loops.sorting import BASE, BaseRight, sort_queries
from sona.loops.split import Split
from sona.ports import ServedModel

LATER = "(later)"
"""In the place of a skill's id, which has no brackets: left for the next cycle."""
FEW = "(few)"
"""They waited for more of their kind, and these did not come."""


@dataclass(frozen=True)
class Roster:
    """Who belongs where. A row of the features and an owner for each of train, held out and turned down, in order."""

    parts: Split
    turned_down: Sequence[Ready]
    features: Float32 | None
    """float32 (all, width); None where nothing is routed."""
    owners: list[str]
    """Ids of skills; :data:`BASE` where the untouched base answers, :data:`LATER` for what waits, :data:`FEW` for what
    waited in vain."""
    skills: SkillSet
    """Those of the version in force, with what this cycle founded and without what it retired."""
    born: list[str]
    unanswered: frozenset[int] = frozenset()
    """Places of what is like the base's own queries, but is answered otherwise by the base."""

    @property
    def items(self) -> list[Ready]:
        """All of them."""
        return [*self.parts.train, *self.parts.held_out, *self.turned_down]

    @property
    def trained(self) -> range:
        """Places of what may be imitated."""
        return range(len(self.parts.train))

    @property
    def held_out(self) -> range:
        """Places of what is judged by."""
        return range(len(self.parts.train), len(self.parts.train) + len(self.parts.held_out))

    @property
    def pushed(self) -> range:
        """Places of what was turned down."""
        return range(len(self.parts.train) + len(self.parts.held_out), len(self.owners))

    def touched(self) -> list[Skill]:
        """The skills that something is learned for."""
        named = {self.owners[place] for place in (*self.trained, *self.pushed)}
        return [skill for skill in self.skills.skills if skill.id in named]

    def of(self, skill: Skill, places: range) -> list[int]:
        """Those of ``places`` that are the skill's."""
        return [place for place in places if self.owners[place] == skill.id]

    def rows(self, places: Sequence[int]) -> Float32 | None:
        """The features at ``places``."""
        return None if self.features is None else self.features[list(places)]

    def without_few(self, least: int, seen: int) -> Roster:
        """Skills with fewer than ``least`` answers to learn wait for more of them, and so does what the base can't
        answer and no skill was founded for: these go to :data:`LATER`, and those that waited already to :data:`FEW`.

        A skill that few queries came for learns little from them, and where they are not its own after all, it would
        learn the wrong thing: of 100 queries of a new task one or two look like a known one's.

        Args:
            least: answers that a known skill learns from.
            seen: the latest feedback that was seen by a cycle which left some: what came with an earlier one has
                waited.
        """
        counts = Counter(self.owners[place] for place in self.trained)
        few = {owner for owner, count in counts.items() if count < least and owner not in (BASE, SHARED, *self.born)}
        owners = [*self.owners]
        for place in self.trained:
            if owners[place] in few or place in self.unanswered:
                owners[place] = FEW if (self.items[place].stored.feedback_seq or 0) <= seen else LATER
        return replace(self, owners=owners)

    def taken_in(self, cycle: int) -> SkillSet:
        """The skills with this cycle's queries counted and remembered, but for those that are held out."""
        skills = self.skills
        for skill in self.touched():
            count = skill.count + len(self.of(skill, self.trained))
            skills = skills.put(msgspec.structs.replace(skill, count=count, touched_cycle=cycle))
        # What was turned down, and is of no skill, is no more the base's: its answers were not asked for.
        pushed = [place for place in self.pushed if self.owners[place] != BASE]
        return self._remembered(skills, [*self.trained, *pushed])

    def with_held_out(self, skills: SkillSet) -> SkillSet:
        """``skills`` with the held-out queries remembered too, apart from what the router is fitted to.

        A skill of few questions would otherwise never have seen those that are always held out, and they would look
        like a skill of their own. The router must not see them: it would know the very queries that it is judged by,
        and the gate would find nothing lost where it sends others astray (on real text it sent three in ten).
        """
        return self._remembered(skills, list(self.held_out), HELD_OUT)

    def _remembered(self, skills: SkillSet, places: Sequence[int], apart: str = "") -> SkillSet:
        if self.features is None:
            return skills
        for owner in dict.fromkeys(self.owners[place] for place in places):
            own = [place for place in places if self.owners[place] == owner]
            known = skills.get(owner)
            if owner == BASE or known is not None:
                sources = [self.items[place].stored.trajectory.source for place in own]
                skills = skills.with_rows(apart + (BASE if known is None else known.id), self.features[own], sources)
        return skills


def shared_roster(parts: Split, turned_down: Sequence[Ready], skills: SkillSet, cycle: int) -> Roster:
    """Everything to the one shared skill."""
    found = [skill for skill in skills.skills if skill.id == skill.adapter == SHARED]
    known = found[0] if found else Skill(id=SHARED, adapter=SHARED, born_cycle=cycle, touched_cycle=cycle)
    count = len(parts.train) + len(parts.held_out) + len(turned_down)
    return Roster(parts, turned_down, None, [SHARED] * count, SkillSet((known,)), [])


def routed_roster(
    parts: Split,
    turned_down: Sequence[Ready],
    skills: SkillSet,
    probes: Float32,
    *,
    model: ServedModel,
    base_right: BaseRight,
    settings: SkillsConfig,
    cycle: int,
    rng: np.random.Generator,
) -> Roster:
    """Each to its skill: see :func:`sona.loops.sorting.sort_queries`."""
    roster = Roster(parts, turned_down, None, [], skills, [])
    features = model.features([item.question for item in roster.items])
    # Rounded as what is known comes back from its files: else the rounding alone tells the two apart (one task from
    # itself by .79-.92 instead of .42-.58), since in the embedding of a template's last token nothing else differs.
    features = features.astype(np.float16).astype(np.float32)
    found = sort_queries(features, skills, probes, base_right, settings, cycle=cycle, rng=rng)
    like_base = [place for place in range(len(parts.train)) if found.owners[place] == BASE]
    right = base_right(like_base)
    return replace(
        roster,
        features=features,
        owners=found.owners,
        skills=found.skills,
        born=found.born,
        unanswered=frozenset(place for place, known in zip(like_base, right, strict=True) if not known),
    )
