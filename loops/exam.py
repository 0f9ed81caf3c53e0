"""What the version in force and the challenger are both asked, and the evidence that their answers are."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, fields, replace

import msgspec
import numpy as np
import numpy.typing as npt

from sona.bank.skills import SkillSet
from sona.learn.likelihood import Scores, empty_scores
from sona.loops.examination import Examiner, Questions, System, nats
from sona.loops.gate import Evidence
from sona.loops.screen import Ready
from sona.loops.split import question_key

USUAL = 24
"""Losses of a skill that are kept to compare later ones with."""
AS_WELL, LEARNED, ENOUGH = 0.02, 0.8, 8
"""Nats a token by which another adapter may be worse and still serves as well; exact answers that make a skill learned;
held-out answers that are enough to say so."""


@dataclass(frozen=True)
class Exam:
    """Answers that were never trained on, and those that a person approved."""

    asked: Sequence[Ready]
    """This cycle's held-out trajectories, those of ``new``."""
    owners: Sequence[str]
    """The id of the skill of each; "" for the base."""
    new: Questions
    earlier: Questions
    """Of earlier cycles, as far as their answers still hold."""
    earlier_keys: Sequence[bytes]
    """Of their questions: see :func:`sona.loops.split.question_key`."""
    earlier_skills: Sequence[str]
    """Of each the skill; "" for the base."""
    probes: Questions
    """The base model's own."""
    approved: Questions = field(default_factory=lambda: Questions([], None))
    """Approved answers that this cycle trains on, without their memories."""
    only_approved: bool = False
    """Whether nothing else is new."""
    spared_earlier: int = 0
    """Earlier ones left out because nothing changes for them."""
    spared_probes: int = 0
    """Probes left out because the base itself answers them."""

    def where_it_matters(self, before: System, after: System, learned: Container[str]) -> Exam:
        """Without what comes out the same: earlier answers by an adapter that neither learned nor is new to them, and
        the base's own answers to its own probes.
        """
        then, now = (self.earlier.answered_by(system.skills) for system in (before, after))
        changed = [
            place
            for place, (old, new) in enumerate(zip(then, now, strict=True))
            if old != new or (new is not None and new in learned)
        ]
        adapted = [place for place, name in enumerate(self.probes.answered_by(after.skills)) if name is not None]
        return replace(
            self,
            earlier=self.earlier.at(changed),
            earlier_keys=[self.earlier_keys[place] for place in changed],
            earlier_skills=[self.earlier_skills[place] for place in changed],
            probes=self.probes.at(adapted),
            spared_earlier=len(then) - len(changed),
            spared_probes=len(self.probes.examples) - len(adapted),
        )


@dataclass(frozen=True)
class Marks:
    """One system's scores in an exam."""

    new: Scores
    earlier: Scores
    probes: Scores
    approved: Scores = field(default_factory=lambda: empty_scores(0))


def evidence_of(
    exam: Exam, base: Marks, before: Marks, after: Marks, kl: npt.NDArray[np.float64], debt: float
) -> Evidence:
    """What the gate decides by. ``kl`` (p,): the challenger's divergence from the base on each probe, nats a token."""
    gain = np.exp(-nats(after.new)) - np.exp(-nats(before.new))
    earlier_gain = np.exp(-nats(after.earlier)) - np.exp(-nats(before.earlier))
    asked = [*(question_key(item.stored.trajectory) for item in exam.asked), *exam.earlier_keys]
    by_question: dict[bytes, list[float]] = {}
    for key, value in zip(asked, [*gain.tolist(), *earlier_gain.tolist()], strict=True):
        by_question.setdefault(key, []).append(value)
    kept = [
        np.average(right, weights=np.exp(log_prob))
        for right, log_prob in zip(after.probes.token_right, base.probes.token_log_prob, strict=True)
    ]
    return Evidence(
        gain=np.asarray([np.mean(values) for values in by_question.values()], dtype=np.float64),
        earlier_before=np.append(before.earlier.share_right, np.ones(exam.spared_earlier)),
        earlier_after=np.append(after.earlier.share_right, np.ones(exam.spared_earlier)),
        earlier_skills=[*exam.earlier_skills, *("" for _ in range(exam.spared_earlier))],
        debt=debt,
        probes_kept=np.append(kept, np.ones(exam.spared_probes)),
        probes_kl=np.append(kl, np.zeros(exam.spared_probes)),
        approved=np.exp(-nats(after.approved)) - np.exp(-nats(before.approved)),
        only_approved=exam.only_approved,
    )


def marks_of(base: Marks, before: Marks, after: Marks) -> dict[str, float]:
    """Exact answers under greedy decoding, and nats a token: of the base model, the version in force, and the
    challenger.

    Parts without examples are absent; ``earlier`` and ``probes`` count what the challenger may have changed.
    """
    metrics: dict[str, float] = {}
    for part in (one.name for one in fields(Marks)):
        for name, marks in (("base", base), ("before", before), ("after", after)):
            found: Scores = getattr(marks, part)
            if len(found.tokens):
                metrics[f"{part}_exact_{name}"] = float(found.exact.mean())
                metrics[f"{part}_nats_{name}"] = float(-found.log_prob.sum() / found.tokens.sum())
    return metrics


def with_usual(skills: SkillSet, exam: Exam, marks: Marks) -> SkillSet:
    """The skills with the losses of their held-out answers: what the next cycles' are compared with."""
    losses = nats(marks.new)
    for skill in skills.skills:
        own = [float(losses[place]) for place, owner in enumerate(exam.owners) if owner in skill.claims]
        if own:
            skills = skills.put(msgspec.structs.replace(skill, usual=(*skill.usual, *own)[-USUAL:]))
    return skills


def serve_as_well(system: System, touched: Sequence[str], exam: Exam, examiner: Examiner) -> SkillSet:
    """The skills, where one that learned its answers but for which another adapter does as well goes over to that."""
    skills = system.skills
    for skill in [one for one in skills.skills if one.id in touched]:
        places = [place for place, owner in enumerate(exam.owners) if owner in skill.claims]
        examples = [exam.new.examples[place] for place in places]
        others = [name for name in skills.adapters if name != skill.adapter]
        if len(places) < ENOUGH or not others:
            continue
        own = examiner.score(examples, [skill.adapter] * len(examples), system.adapters, "compare adapters")
        if own.exact.mean() < LEARNED:
            continue
        for name in others:
            found = examiner.score(examples, [name] * len(examples), system.adapters, "compare adapters")
            as_likely = nats(found).mean() <= nats(own).mean() + AS_WELL
            if as_likely and found.exact.mean() >= own.exact.mean():
                skills = skills.put(msgspec.structs.replace(skill, adapter=name))
                break
    return skills
