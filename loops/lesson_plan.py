"""Who has to learn what in a cycle, and what of the past still holds for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.novelty import told_apart
from sona.bank.skills import SHARED, Skill, SkillSet
from sona.config import Config
from sona.learn.boundary import loss_shift
from sona.learn.dataset import Example
from sona.learn.likelihood import Scores
from sona.loops.approved import Moved
from sona.loops.credit import advantage_weights, push_weights
from sona.loops.examination import Examiner, nats
from sona.loops.lesson import AdapterState, Lesson
from sona.loops.mixture import NEUTRAL_QUALITY, Scope
from sona.loops.roster import Roster
from sona.loops.screen import Ready
from sona.loops.sorting import ALIKE

NOTHING_TO_LEARN = 0.99
"""Share of an adapter's new answers that it gives already, from which it is left as it is."""
KNOWN_EFFORT, NEW_EFFORT = 0.25, 1.5
"""Times ``train.passes``: for an answer that is given already, and for one that is not."""
LEAST_OF_A_SOURCE = 0.5
"""Times its effort, for a source that is held back: one answer of another source must not silence it."""
DRIFT_LEVEL, DRIFT_GAP = 0.001, 0.3
"""A skill's right answers changed where new ones are less likely than its last held-out ones: beyond chance at this
level, and by so many nats a token."""
FEWEST = 8
"""Losses of a skill on either side that are enough to see its answers change."""


class Plan(NamedTuple):
    """The lessons of a cycle."""

    lessons: list[tuple[Lesson, AdapterState]]
    """What each adapter learns, and where it starts."""
    skills: SkillSet
    """With those whose right answers changed told to leave their past behind."""
    metrics: dict[str, float]
    drifted: list[str]
    """The ids of these."""


def plan_lessons(
    roster: Roster,
    start_of: Callable[[str], AdapterState],
    baseline: Mapping[str, float],
    examiner: Examiner,
    probes: Sequence[Example],
    config: Config,
    cycle: int,
    moved: Sequence[Moved] = (),
) -> Plan:
    """A lesson for each adapter that something new was said for, unless it gives these answers already.

    Args:
        roster: the cycle's trajectories by skill.
        start_of: the state of an adapter by name, a fresh one where there is none.
        baseline: the usual quality of each trajectory's pattern, by trajectory id.
        examiner: scores the new answers before anything is learned.
        probes: the base's own answers, for an adapter that answers everything.
        config: its ``train`` settings, and whether review is required: then no past is replayed that nobody approved.
        cycle: the number of this one.
        moved: approved answers that earlier cycles moved into the weights.
    """
    skills, lessons, drifted = roster.taken_in(cycle), [], list[str]()
    for adapter in dict.fromkeys(skill.adapter for skill in roster.touched()):
        draft = _Draft(roster, adapter, start_of(adapter), baseline, examiner, config)
        for skill in (one for one in roster.touched() if one.adapter == adapter):
            if draft.add(skill):
                drifted.append(skill.id)
                skills = skills.put(msgspec.structs.replace(_of(skills, skill.id), replay_after=cycle - 1, usual=()))
        if not draft.nothing_new:
            everything = adapter == SHARED and skills.router is None
            scopes = [Scope(one.claims, one.replay_after) for one in skills.of_adapter(adapter)]
            past, own = ([Scope(None)], probes) if everything else (scopes, ())
            known = [one.example for one in moved if any(_holds(scope, one) for scope in past)]
            lesson = Lesson(
                adapter,
                draft.new,
                () if config.review == "required" else past,
                own,
                draft.capped_effort(),
                draft.approved,
                known,
            )
            lessons.append((lesson, draft.start))
    metrics = {"drift_detected": float(len(drifted)), "skills_born": float(len(roster.born))}
    return Plan(lessons, skills, metrics, drifted)


def _holds(scope: Scope, moved: Moved) -> bool:
    """Whether what was moved is of a past."""
    return (scope.skills is None or moved.skill in scope.skills) and moved.cycle > scope.after_cycle


class _Draft:
    """One adapter's lesson in the making."""

    def __init__(
        self,
        roster: Roster,
        adapter: str,
        start: AdapterState,
        baseline: Mapping[str, float],
        examiner: Examiner,
        config: Config,
    ) -> None:
        self.start = start
        self.new: list[Example] = []
        self.approved: list[Example] = []
        self._effort: list[float] = []
        self._sources: list[str] = []
        self._roster, self._adapter, self._baseline = roster, adapter, baseline
        self._examiner, self._config = examiner, config
        self._given: list[bool] = []

    @property
    def nothing_new(self) -> bool:
        """Whether there is no answer to imitate, or all but a few are given already."""
        return not self._given or float(np.mean(self._given)) >= NOTHING_TO_LEARN

    def add(self, skill: Skill) -> bool:
        """Take in what was said for ``skill``; whether its right answers have changed."""
        places = self._roster.of(skill, self._roster.trained)
        trained = [place for place in places if not self._roster.items[place].is_approved]
        self._approve([place for place in places if self._roster.items[place].is_approved])
        # Without what is approved: that it is unlikely without its memories does not say that right answers changed.
        before = self._scored([*trained, *self._roster.of(skill, self._roster.held_out)])
        # Where nothing is routed, other losses may as well come from other queries.
        drifted = _changed(skill, before, self._config.seed) and self._same_queries(skill)
        alone = len(self._roster.skills.of_adapter(self._adapter)) == 1
        if drifted and alone:  # what else the adapter answers for is still to be held
            self.start = self.start.released()
        elif skill.id in self._roster.born:
            self.start = self.start.at_boundary(self._config.train.ewc_anchors)
        given = before.exact[: len(trained)]
        self._given += given.tolist()
        self.new += self._credited(trained)
        self._effort += np.where(given, KNOWN_EFFORT, NEW_EFFORT).tolist()
        worse, pushed = self._pushed(self._roster.of(skill, self._roster.pushed))
        self.new += pushed
        self._effort += [1.0] * len(pushed)
        self._sources += [self._roster.items[place].stored.trajectory.source for place in (*trained, *worse)]
        return drifted

    def _approve(self, places: Sequence[int]) -> None:
        """Take in approved answers: each counts alike, as no quality says more of it than that it was approved."""
        if places:
            self._given += self._scored(places).exact.tolist()
            self.approved += [example_of(self._roster.items[place]) for place in places]

    def _same_queries(self, skill: Skill) -> bool:
        """Whether the queries are those that the skill is known for. Where they are not, as those of a new task that
        could not be told apart enough, other losses mean nothing for the old answers.
        """
        if self._roster.features is None or (known := self._roster.skills.known(skill.id)) is None:
            return False
        places = [*self._roster.of(skill, self._roster.trained), *self._roster.of(skill, self._roster.held_out)]
        return told_apart(self._roster.features[places], known) <= ALIKE

    def capped_effort(self) -> list[float]:
        """For each of ``new`` how often it is seen, times ``train.passes``: of several sources one has more of the
        lesson than ``train.max_source_share`` only where the others have too little to say.
        """
        effort, sources = np.asarray(self._effort), np.asarray(self._sources)
        most = self._config.train.max_source_share
        for source in dict.fromkeys(self._sources):
            own = float(effort[sources == source].sum())
            others = float(effort.sum()) - own
            if others and own > most * (own + others):
                effort[sources == source] *= max(most * others / ((1 - most) * own), LEAST_OF_A_SOURCE)
        return [float(value) for value in effort]

    def _scored(self, places: Sequence[int]) -> Scores:
        examples = [example_of(self._roster.items[place]) for place in places]
        by = {self._adapter: self.start.weights}
        return self._examiner.score(examples, [self._adapter] * len(examples), by, "read what is new")

    def _credited(self, places: Sequence[int]) -> list[Example]:
        """Answers to imitate, weighted against what is usual for their patterns."""
        items = [self._roster.items[place] for place in places]
        credit = advantage_weights(*_qualities(items, self._baseline), self._config.train)
        return [example_of(item, weight) for item, weight in zip(items, credit.tolist(), strict=True)]

    def _pushed(self, places: Sequence[int]) -> tuple[list[int], list[Example]]:
        """Answers to make less likely than the adapter finds them now, where they are worse than usual, with their
        places.
        """
        items, settings = [self._roster.items[place] for place in places], self._config.train
        weights = push_weights(*_qualities(items, self._baseline), settings).tolist()
        worse = [(place, weight) for place, weight in zip(places, weights, strict=True) if weight > 0]
        log_prob = self._scored([place for place, _ in worse]).log_prob - settings.push_margin
        return [place for place, _ in worse], [
            replace(example_of(self._roster.items[place], weight), push_below=float(below))
            for (place, weight), below in zip(worse, log_prob, strict=True)
        ]


def _of(skills: SkillSet, skill_id: str) -> Skill:
    found = skills.get(skill_id)
    assert found is not None
    return found


def example_of(item: Ready, weight: float = 1.0) -> Example:
    """A trajectory's answer, to imitate or to be judged by."""
    return Example(item.prompt, item.response, weight)


def _changed(skill: Skill, scores: Scores, seed: int) -> bool:
    """Whether the same questions have other answers now: those are the skill's own queries, so only the answers can be
    what makes them less likely than the ones that it was last judged by.
    """
    if len(skill.usual) < FEWEST or len(scores.tokens) < FEWEST:
        return False
    shift = loss_shift(skill.usual, nats(scores), level=DRIFT_LEVEL, permutations=1999, seed=seed)
    return shift.shifted and shift.gap >= DRIFT_GAP


def _qualities(items: Sequence[Ready], baseline: Mapping[str, float]) -> tuple[list[float], list[float]]:
    return (
        [item.stored.quality or 0.0 for item in items],
        [baseline.get(item.stored.trajectory.id, NEUTRAL_QUALITY) for item in items],
    )
