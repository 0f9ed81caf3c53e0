"""The part of a cycle that changes weights: from a checkpoint and a split to a judged challenger."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel

from sona.bank.router import RouterFit
from sona.bank.skills import SHARED, SkillSet
from sona.checks import Float32
from sona.config import Config, LoraConfig
from sona.errors import ConfigError
from sona.learn.lora import attach, fresh_weights, load_adapter, load_weights, save_adapter
from sona.loops.approved import moved_before
from sona.loops.checkpoint import AdapterFiles, Checkpoint
from sona.loops.exam import Exam, Marks, evidence_of, marks_of, serve_as_well, with_usual
from sona.loops.examination import Examiner, Questions, System, between
from sona.loops.gate import DEBT, Evidence, debt_after, decide
from sona.loops.lesson import AdapterState, Learned, Teacher
from sona.loops.lesson_plan import example_of, plan_lessons
from sona.loops.mixture import Scope, replayed_example, still_good
from sona.loops.probes import read_probes
from sona.loops.roster import FEW, LATER, Roster, routed_roster, shared_roster
from sona.loops.screen import Ready, question_tokens
from sona.loops.sorting import BASE, merge_alike, with_router
from sona.loops.split import Split, question_key
from sona.loops.version_files import ADAPTER, adapter_root
from sona.ports import Report, ServedModel, Stored, TrajectoryStore
from sona.types import GateDecision

FEWEST = 8
"""Answers of a cycle that a known skill learns from; fewer wait for more."""
SEEN_AGAIN = 192
"""Earlier trajectories by which a shared adapter becomes a skill, where a store goes over to routing."""


@dataclass(frozen=True)
class Challenger:
    """What was learned, and whether it holds."""

    state: Checkpoint
    """With the challenger's adapters in the draft's folder."""
    decision: GateDecision | None
    """None where there was nothing to learn: the adapters are those of the version in force."""
    metrics: dict[str, float]
    owners: dict[int, str]
    """The skill of each trajectory, by seq; :data:`BASE` where the untouched base answers such queries."""
    born: Sequence[str] = ()
    """The skills that it founds, or whose right answers have changed: what was said for them is worth another try."""
    idle: Sequence[str] = ()
    """Skills whose adapter gives the new answers already, and learned nothing."""


class _Judged(NamedTuple):
    """A system and what the gate makes of it."""

    system: System
    marks: Marks
    evidence: Evidence
    decision: GateDecision
    share: float


class ChallengerTrainer:
    """Trains and judges one challenger. The learner is a module tree of its own over the served weights: requests go
    on.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        model: ServedModel,
        state: Checkpoint,
        config: Config,
        cycle: int,
        seed: int,
        report: Report,
        seen: int = 0,
    ) -> None:
        """``seen`` is the latest feedback that was seen by a cycle which left few for later; see
        :meth:`Roster.without_few`.
        """
        self.seen = seen
        self.store, self.model, self.state, self.config, self.report = store, model, state, config, report
        self.cycle, self.seed, self.rng = cycle, seed, np.random.default_rng(seed)
        self.routed = config.skills.mode != "shared"
        # A store that goes over to one shared adapter is still judged against what its router served so far.
        self.read_features = self.routed or state.skills.router is not None
        tree, first = model.trainable_copy(), next(iter(state.adapters.values()), None)
        self.learner = attach(tree, config.lora, config.seed) if first is None else load_adapter(tree, first.folder)
        self.learner.eval()
        _check_shape(self.learner, config.lora)
        self.examiner = Examiner(self.learner, model.pad_id, report)
        self.probes = read_probes(store, model, config, report, features=self.read_features)

    def train(
        self, parts: Split, turned_down: Sequence[Ready], baseline: Mapping[str, float], draft: Path
    ) -> Challenger:
        """Train on ``parts.train``, write the adapters to ``draft``, judge them by ``parts.held_out``.

        Args:
            parts: answers to imitate, approved ones among them, and to judge by.
            turned_down: answers to make less likely.
            baseline: the usual quality of each trajectory's pattern, by trajectory id.
            draft: the next version's folder.
        """
        clock = _Clock()
        roster = self._roster(parts, turned_down).without_few(FEWEST, self.seen)
        clock.lap("sort_s")
        own = self.probes.trained
        moved = moved_before(self.store, self.config.candidates, np.random.default_rng(self.seed))
        plan = plan_lessons(roster, self._start_of, baseline, self.examiner, own, self.config, self.cycle, moved)
        teacher = Teacher(self.learner, self.store, self.model, self.state.bank, self.config, self.report)
        learned = {lesson.adapter: teacher.give(lesson, start, self.seed) for lesson, start in plan.lessons}
        clock.lap("train_s")
        plan = plan._replace(skills=_with_adapters(plan.skills, {*self.state.adapters, *learned}))
        idle = [skill.id for skill in roster.touched() if skill.adapter not in learned and plan.skills.get(skill.id)]
        owners = {
            item.stored.seq: owner if owner in (LATER, FEW) or plan.skills.get(owner) else BASE
            for item, owner in zip(roster.items, roster.owners, strict=True)
        }
        if not learned:
            known = roster.with_held_out(plan.skills)
            same_form = self.routed == (
                SHARED not in self.state.skills.adapters or self.state.skills.router is not None
            )
            kept = replace(known, router=self.state.skills.router) if same_form else self.state.skills
            return Challenger(replace(self.state, skills=kept), None, {**plan.metrics, **clock.laps}, owners, (), idle)
        current = System(self.state.skills, {name: files.weights() for name, files in self.state.adapters.items()})
        exam = self._exam(roster, plan.skills)
        trained = System(
            plan.skills, {**current.adapters, **{name: one.after.weights for name, one in learned.items()}}
        )
        settled, metrics = self._settled(trained, roster, exam)
        exam = exam.where_it_matters(current, settled, learned)
        base = self._marks(replace(exam, earlier=exam.earlier.at([])), System(SkillSet(), {}), "base")
        before = self._marks(exam, current, "before")
        judged = self._judged(exam, base, before, settled, learned)
        clock.lap("evaluate_s")
        state = self._written(draft, judged, exam, roster, learned)
        metrics = {
            **plan.metrics,
            **metrics,
            **_summed(learned),
            **marks_of(base, before, judged.marks),
            **clock.laps,
            DEBT: debt_after(judged.evidence),
            "step_taken": judged.share,
        }
        return Challenger(state, judged.decision, metrics, owners, [*roster.born, *plan.drifted], idle)

    # ------------------------------------------------------------------------------------------------ who learns what

    def _roster(self, parts: Split, turned_down: Sequence[Ready]) -> Roster:
        if not self.routed:
            return shared_roster(parts, turned_down, self.state.skills, self.cycle)
        items = [*parts.train, *parts.held_out, *turned_down]

        def base_right(places: Sequence[int]) -> npt.NDArray[np.bool_]:
            asked = [example_of(items[place]) for place in places if place < len(parts.train) + len(parts.held_out)]
            return self.examiner.score(asked, [None] * len(asked), {}, "read what is new").exact

        return routed_roster(
            parts,
            turned_down,
            self._recognised(self.state.skills),
            self.probes.trained_features,
            model=self.model,
            base_right=base_right,
            settings=self.config.skills,
            cycle=self.cycle,
            rng=self.rng,
        )

    def _recognised(self, skills: SkillSet) -> SkillSet:
        """A shared adapter, where a store goes over to routing, as the skill of what it learned."""
        if skills.get(SHARED) is None or SHARED in skills.rows:
            return skills
        rows = self.store.sample("train", SEEN_AGAIN, self.rng)
        rows = [row for row in rows if question_tokens(row.trajectory, self.model) is not None]
        sources = [row.trajectory.source for row in rows]
        return skills.with_rows(SHARED, self._features(rows), sources) if rows else skills

    def _start_of(self, adapter: str) -> AdapterState:
        files = self.state.adapters.get(adapter)
        if files is None:
            return AdapterState(fresh_weights(self.learner, self.config.seed))
        return AdapterState(files.weights(), files.ewc(), files.optimizer())

    # ------------------------------------------------------------------------------------------------ what it is worth

    def _exam(self, roster: Roster, skills: SkillSet) -> Exam:
        places = _limited(roster, self.config.gate.held_out_limit)
        rows = roster.rows(places)
        drawn = sorted(self._earlier(skills, {skill.id for skill in roster.touched()}).items())
        earlier = [row for _, (row, _) in drawn]
        if rows is None and self.read_features:
            rows = self.model.features([roster.items[place].question for place in places])
        return Exam(
            asked=[roster.items[place] for place in places],
            owners=[roster.owners[place] for place in places],
            new=Questions([example_of(roster.items[place]) for place in places], rows),
            earlier=Questions(
                [replayed_example(row, self.model) for row in earlier],
                self._features(earlier) if self.read_features and earlier else None,
            ),
            earlier_keys=[question_key(row.trajectory) for row in earlier],
            earlier_skills=[skill for _, (_, skill) in drawn],
            probes=Questions(self.probes.judged, self.probes.judged_features if self.read_features else None),
            approved=self._approved(roster, skills),
            only_approved=all(roster.items[place].is_approved for place in (*roster.trained, *roster.pushed)),
        )

    def _approved(self, roster: Roster, skills: SkillSet) -> Questions:
        """What is approved, and of a skill, and not of what waits or the base answers."""
        places = [place for place in roster.trained if roster.items[place].is_approved]
        places = [place for place in places if skills.get(roster.owners[place]) is not None]
        rows = roster.rows(places)
        if rows is None and self.read_features:
            rows = self.model.features([roster.items[place].question for place in places]) if places else None
        return Questions([example_of(roster.items[place]) for place in places], rows)

    def _earlier(self, skills: SkillSet, touched: Container[str]) -> dict[int, tuple[Stored, str]]:
        """Held-out answers of earlier cycles, as far as they still hold, each with its skill, by seq; drawn with
        replacement, so each counts once. Half of them are of the skills that learn now: there they also show what is
        gained.
        """
        if not self.routed:
            return self._drawn([Scope(None)], self.config.gate.earlier_limit)
        own = [Scope(skill.claims, skill.replay_after) for skill in skills.skills if skill.id in touched]
        others = [Scope(skill.claims, skill.replay_after) for skill in skills.skills if skill.id not in touched]
        half = self.config.gate.earlier_limit // 2
        return {**self._drawn(own, half), **self._drawn([Scope((BASE,)), *others], half)}

    def _drawn(self, scopes: Sequence[Scope], limit: int) -> dict[int, tuple[Stored, str]]:
        scopes = [scope for scope in scopes if scope.size(self.store, "held_out")]
        each = max(limit // max(len(scopes), 1), 1)
        found: dict[int, tuple[Stored, str]] = {}
        for scope in scopes:
            rows = still_good(scope.sample(self.store, "held_out", each, self.rng), self.config.train.min_quality)
            found |= {row.seq: (row, scope.skills[0] if scope.skills else SHARED) for row in rows}
        return found

    def _features(self, rows: Sequence[Stored]) -> Float32:
        prompts = [question_tokens(row.trajectory, self.model) for row in rows]
        return self.model.features([prompt for prompt in prompts if prompt is not None])

    def _settled(self, system: System, roster: Roster, exam: Exam) -> tuple[System, dict[str, float]]:
        """With skills that have become one put together, and a router for all."""
        if not self.routed:
            return replace(system, adapters={SHARED: system.adapters[SHARED]}), {}
        skills, touched = system.skills, [skill.id for skill in roster.touched()]
        before = len(skills.skills)
        skills, _ = merge_alike(skills, touched)
        if self.config.skills.mode == "auto":
            skills = serve_as_well(replace(system, skills=skills), touched, exam, self.examiner)
        skills, fitted = with_router(skills, self.probes.trained_features)
        used = {name: system.adapters[name] for name in skills.adapters}
        metrics = {"skills": float(len(skills.skills)), "adapters": float(len(used))}
        metrics["skills_merged"] = float(before - len(skills.skills))
        return System(skills, used), {**metrics, **_router_metrics(fitted)}

    def _marks(self, exam: Exam, system: System, stage: str) -> Marks:
        parts = {"new": exam.new, "earlier": exam.earlier, "probes": exam.probes, "approved": exam.approved}
        return Marks(*(self.examiner.ask(part, system, f"evaluate {stage}: {name}") for name, part in parts.items()))

    def _judged(
        self, exam: Exam, base: Marks, before: Marks, challenger: System, learned: Mapping[str, Learned]
    ) -> _Judged:
        """The challenger, or where it fails, what lies between it and the version in force: half of the way, and then a
        quarter more or less. The furthest that passes is taken.
        """
        debt = self.store.current().metrics.get(DEBT, 0.0)

        def judged(share: float) -> _Judged:
            part = {name: between(one.before.weights, one.after.weights, share) for name, one in learned.items()}
            adapters = {name: part.get(name, challenger.adapters[name]) for name in challenger.adapters}
            system = challenger if share == 1.0 else replace(challenger, adapters=adapters)
            marks = self._marks(exam, system, "after")
            kl = self.examiner.divergence(exam.probes, system)
            evidence = evidence_of(exam, base, before, marks, kl, debt)
            return _Judged(system, marks, evidence, decide(evidence, self.config.gate, self.seed), share)

        if (whole := judged(1.0)).decision.passed:
            return whole
        half = judged(0.5)
        nearer = judged(0.75 if half.decision.passed else 0.25)
        return next((one for one in (nearer, half) if one.decision.passed), whole)

    # ------------------------------------------------------------------------------------------------ what is left

    def _written(
        self, draft: Path, judged: _Judged, exam: Exam, roster: Roster, learned: Mapping[str, Learned]
    ) -> Checkpoint:
        """The challenger's files. What holds an adapter, and its optimizer's state, belong to the end of its way: one
        that stopped on it goes on with those from before.
        """
        adapters: dict[str, AdapterFiles] = {}
        for name, tensors in judged.system.adapters.items():
            if name not in learned:
                adapters[name] = self.state.adapters[name]
                continue
            files = AdapterFiles(adapter_root(draft, name))
            load_weights(self.learner, tensors)
            save_adapter(self.learner, files.root / ADAPTER)
            kept = learned[name].after if judged.share == 1.0 else learned[name].before
            if len(judged.evidence.earlier_before):
                kept = kept.led(_forgotten(judged.evidence), self.config.train)
            files.write_state(kept.ewc, kept.optimizer)
            adapters[name] = files
        skills = roster.with_held_out(with_usual(judged.system.skills, exam, judged.marks))
        return replace(self.state, adapters=adapters, skills=skills)


def _with_adapters(skills: SkillSet, adapters: Container[str]) -> SkillSet:
    """Without the skills that were founded and then had nothing to learn: the base answers them."""
    for skill in skills.skills:
        if skill.adapter not in adapters:
            skills = skills.without(skill.id)
    return skills


def _check_shape(learner: PeftModel, wanted: LoraConfig) -> None:
    """The store's adapters go on as they began; settings that say otherwise would be untrue of what is learned."""
    shape = learner.peft_config["default"]
    assert isinstance(shape, PeftLoraConfig)
    assert not isinstance(shape.target_modules, (str, type(None)))  # sona writes lists
    targets = set(wanted.target_modules)
    if (shape.r, float(shape.lora_alpha)) != (wanted.rank, float(wanted.alpha)) or targets - set(shape.target_modules):
        held = f"rank {shape.r}, alpha {shape.lora_alpha:g} on {sorted(shape.target_modules)}"
        raise ConfigError(
            f"lora: rank {wanted.rank}, alpha {wanted.alpha:g}, target_modules {sorted(targets) or 'all'}; "
            f"this store's adapter has {held}: give these, or begin another store"
        )


def _limited(roster: Roster, limit: int) -> list[int]:
    """Places of at most so many held-out trajectories, chosen by their questions' hashes, so that all answers to one
    question come before the next's.
    """
    return sorted(roster.held_out, key=lambda place: question_key(roster.items[place].stored.trajectory))[:limit]


def _forgotten(evidence: Evidence) -> float:
    """Share of the tokens of earlier answers that the challenger loses; below 0 where it gains."""
    return float((evidence.earlier_before - evidence.earlier_after).mean())


def _summed(learned: Mapping[str, Learned]) -> dict[str, float]:
    """What the lessons measured: counts as sums, losses and the like as means over the adapters."""
    rows = [one.metrics for one in learned.values()]
    counted = ("steps", "tokens", "replayed")
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: float((np.sum if name in counted else np.mean)([row[name] for row in rows if name in row]))
        for name in names
    }


def _router_metrics(fitted: RouterFit | None) -> dict[str, float]:
    if fitted is None:
        return {}
    skills = [share for name, share in fitted.right.items() if name != "base"]
    return {"router_right_base": fitted.right["base"], "router_right_skills": float(np.mean(skills))}


class _Clock:
    """Seconds since the lap before, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
