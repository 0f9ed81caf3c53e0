"""One run of the background loop, as a straight line: collect, screen, place, split, train, judge, distill, publish.

Until the one transaction at its end nothing that others see has changed; a process that is killed anywhere leaves at
most a folder that no version names, and the next run takes the same trajectories.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from sona.bank.bank import Bank
from sona.bank.lessons import Distiller
from sona.bank.pattern import Member
from sona.candidate import Settled
from sona.checks import pack_tokens
from sona.config import Config
from sona.loops.approved import Approved, settled_by, take_approved
from sona.loops.bank_lessons import with_new_lessons, with_trials
from sona.loops.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sona.loops.deep import deepened
from sona.loops.distiller import ModelDistiller
from sona.loops.gate import DEBT
from sona.loops.members import members_of, revisions_of
from sona.loops.readiness import SEEN, latest, read_seen, skipped, why_wait
from sona.loops.roster import FEW, LATER
from sona.loops.screen import LeftOut, Ready, Screened, screen
from sona.loops.sorting import BASE
from sona.loops.split import Split, questions, split
from sona.loops.version_files import write_proof
from sona.ports import (
    Claim,
    Collected,
    Report,
    Role,
    ServedModel,
    Stored,
    TrajectoryStore,
    VersionFolders,
    ignore_progress,
)
from sona.types import CycleReport, CycleStatus, Funnel, GateDecision, Progress, Version

if TYPE_CHECKING:
    from sona.loops.challenger import Challenger

BANK_ALONE = "the bank has learned; no adapter was trained, as there is nothing for one, or too few of a kind so far"
"""Of a version that brings no adapter of its own."""
NOT_APPROVED = "not approved in review"
"""Why a trajectory is left out where ``review = "required"``."""
NOT_LEARNED = {BASE: "the base model answers such queries", FEW: "too few of their kind came"}
"""By owner, why an answer was not learned from."""


@dataclass(frozen=True)
class CycleContext:
    """What a cycle works with."""

    store: TrajectoryStore
    folders: VersionFolders
    model: ServedModel | None
    """None where the host only records: then the bank learns and no adapter does."""
    config: Config
    distill: Distiller | None = None
    """A host's own way to lessons; None: the model's, where ``lessons.by_model`` is on."""
    on_taken: Callable[[Collection[int]], None] = lambda ids: None
    """Told the numbers of the approved candidates that the cycle has, before it does anything with them."""

    def distiller(self) -> Distiller | None:
        """Who writes the bank's lessons; None: nobody."""
        if self.distill is not None or self.model is None or not self.config.lessons.by_model:
            return self.distill
        return ModelDistiller(self.model, self.config.lessons.max_tokens)


@dataclass(frozen=True)
class _Placed:
    """A cycle's rows in the bank."""

    before: Bank
    bank: Bank
    """With them in it."""
    members: Sequence[Member]
    pattern_ids: Sequence[str]
    """The pattern of each of the members; of a stray the nearest one."""
    revised: int
    """How many of them the bank knew before, with another quality."""

    @property
    def patterns(self) -> dict[str, str]:
        """By trajectory id, the pattern's."""
        return {member.trajectory_id: name for member, name in zip(self.members, self.pattern_ids, strict=True)}

    @property
    def baseline(self) -> dict[str, float]:
        """By trajectory id what is usual for its pattern."""
        return {trajectory: self.bank.usual_quality(name) for trajectory, name in self.patterns.items()}


def run_cycle(context: CycleContext, report: Report = ignore_progress) -> CycleReport:
    """Learn what is new since the last cycle.

    Args:
        context: store, version folders, model, settings.
        report: told of the progress; may raise to cancel, which leaves everything as it was.

    Returns:
        What was done: ``published`` with the new version, ``rejected`` by the gate, or ``skipped`` (nothing was
        claimed).

    Raises:
        CycleError: training went to infinity; nothing has changed.
        StoreError: the store could not be read or written; nothing has changed.
    """
    context.folders.clean(context.store.known_versions())  # what a failed cycle left behind
    run = _Run(context, report)
    settings = context.config.cycle
    taken = context.store.collect(settings.max_trajectories)
    approved = take_approved(context.store, context.model, context.config.candidates, context.config.train)
    context.on_taken([*(-item.stored.seq for item in approved.ready), *(one.seq for one in approved.unfit)])
    alone = len(approved.ready) + len(approved.unfit) >= context.config.candidates.min_approved
    if (reason := why_wait(taken, run.seen, settings)) is not None:
        return run.approved_only(taken, approved, reason) if alone else run.skipped(taken, reason)
    full = len(taken.rows) >= settings.max_trajectories
    screened = screen(taken.rows, context.model, context.config.train)
    if context.config.review == "required":
        screened = screened.without_ready(NOT_APPROVED)
    parts = split(screened.ready, settings.held_out_share)
    needed = context.config.gate.min_held_out if context.config.gate.enabled else 0
    judged = bool(parts.train) and (questions(parts.held_out) >= needed or full)
    if context.model is not None and (judged or (approved.ready and not screened.ready)):
        return run.train(context.model, taken, screened, parts, approved, full=full)
    if full:
        screened = screened.without_ready("nothing to judge by")
    if len(screened.left_out) >= settings.min_trajectories:
        return run.bank_only(taken, screened, approved.unfit)
    reason = f"{questions(parts.held_out)} different questions are held out, and {needed} are needed to judge by"
    reason = f"{reason} (cycle.held_out_share, gate.min_held_out)"
    return run.approved_only(taken, approved, reason) if alone else run.skipped(taken, reason)


class _Run:
    """One cycle under way: its number, its parent, and where its outcome is written."""

    def __init__(self, context: CycleContext, report: Report) -> None:
        self.context, self.report = context, report
        self.cycle = context.store.next_cycle()
        self.parent = context.store.current()
        self.started_ns = time.time_ns()
        self.seed = context.config.seed * 1_000_003 + self.cycle
        self.seen = read_seen(context.store)

    def skipped(self, taken: Collected, reason: str) -> CycleReport:
        """Nothing is claimed."""
        return skipped(self.context.store, taken, reason, self.started_ns)

    def approved_only(self, taken: Collected, approved: Approved, reason: str) -> CycleReport:
        """Trajectories wait for ``reason``, and what was approved does not."""
        if self.context.model is None or not (approved.ready or approved.unfit):
            return self.skipped(taken, reason)
        none = Collected(rows=(), waiting_for_feedback=taken.waiting_for_feedback)
        if not approved.ready:
            funnel = _funnel(none, Screened([], [], []), Split([], []), {})
            return self._only_settled("nothing that is approved can be trained on", funnel, approved.unfit)
        return self.train(self.context.model, none, Screened([], [], []), Split([], []), approved, full=False)

    def bank_only(self, taken: Collected, screened: Screened, settled: Sequence[Settled] = ()) -> CycleReport:
        """Nothing here can train an adapter: the bank learns what is left out, and the model stays as it is."""
        state = read_checkpoint(self.context.folders, self.parent)
        placed = self._place(state, [left.stored for left in screened.left_out])
        later = {"left for the next cycle": len(screened.ready)} if screened.ready else {}
        funnel = _funnel(taken, screened, Split([], []), later)
        bank, metrics = self._taught(placed)
        with self.context.folders.draft() as draft:
            outcome = self._report("published", "the bank learned; nothing could train the adapter", funnel, metrics)
            return self._publish(
                draft,
                replace(state, bank=bank),
                outcome,
                _claims(screened, Split([], []), {}, placed.patterns),
                settled,
            )

    def train(
        self,
        model: ServedModel,
        taken: Collected,
        screened: Screened,
        parts: Split,
        approved: Approved,
        *,
        full: bool,
    ) -> CycleReport:
        """The whole way: bank, adapters, gate."""
        from sona.loops.challenger import ChallengerTrainer  # torch takes seconds to import; the bank needs none

        state = read_checkpoint(self.context.folders, self.parent)
        placed = self._place(state, taken.rows)
        config = self.context.config
        pushed = split(screened.turned_down, config.cycle.held_out_share).train
        with self.context.folders.draft() as draft:
            begin = replace(state, bank=placed.bank)
            everything = Split([*parts.train, *approved.ready], parts.held_out)
            seen = latest(taken) if full else self.seen  # of a full load nothing waits
            trainer = ChallengerTrainer(
                self.context.store, model, begin, config, self.cycle, self.seed, self.report, seen
            )
            challenger = trainer.train(everything, pushed, placed.baseline, draft)
            decision = challenger.decision
            admitted = decision is None or decision.passed
            waits = {LATER} if admitted or full else {LATER, *challenger.born}
            waiting = [item for item in (*parts.train, *parts.held_out) if challenger.owners[item.stored.seq] in waits]
            if waiting:  # the next cycle places them
                left = {item.stored.seq for item in waiting}
                placed = self._place(state, [row for row in taken.rows if row.seq not in left])
            reasons = dict.fromkeys(challenger.idle, "its adapter gives such answers already")
            if not admitted:
                reasons |= dict.fromkeys(challenger.born, "its skill was not admitted")
            settled = [*approved.unfit, *self._settled(approved, challenger, admitted=admitted)]
            screened, parts = _without(screened, parts, challenger.owners, waits, {**NOT_LEARNED, **reasons})
            funnel = _funnel(taken, screened, parts, {"left for the next cycle": len(waiting)} if waiting else {})
            claims = _claims(screened, parts, challenger.owners, placed.patterns)
            if not taken.rows and not settled:
                return self.skipped(taken, "what is approved waits for more of its kind (skills.min_queries)")
            if not taken.rows and decision is None:
                return self._only_settled("nothing to learn from what is approved", funnel, settled)
            if approved.ready or approved.unfit:
                counts = Counter(one.state for one in settled)
                challenger.metrics.update({f"approved_{state}": float(count) for state, count in counts.items()})
            if admitted:
                reason = BANK_ALONE if decision is None else decision.reason
                bank, metrics = self._taught(placed)
                outcome = self._report("published", reason, funnel, {**challenger.metrics, **metrics}, decision)
                outcome = self._publish(draft, replace(challenger.state, bank=bank), outcome, claims, settled)
            else:
                assert decision is not None
                outcome = self._report("rejected", decision.reason, funnel, challenger.metrics, decision)
                self.context.store.commit_cycle(outcome, claims, None, settled)
        if waiting:  # should the process die before this, they wait once more
            self.context.store.write_state(SEEN, str(latest(taken)).encode())
        return outcome

    def _only_settled(self, reason: str, funnel: Funnel, settled: Sequence[Settled]) -> CycleReport:
        """No version, and no trajectory was taken: candidates alone have come into other states."""
        outcome = self._report("rejected", reason, funnel)
        self.context.store.commit_cycle(outcome, [], None, settled)
        return outcome

    def _settled(self, approved: Approved, challenger: Challenger, *, admitted: bool) -> list[Settled]:
        """What became of what was approved."""
        decision = challenger.decision
        why = "" if decision is None else decision.reason
        return settled_by(
            approved.ready,
            challenger.owners,
            challenger.idle,
            admitted=admitted,
            learned=decision is not None,
            why=why,
        )

    def _publish(
        self,
        draft: Path,
        state: Checkpoint,
        outcome: CycleReport,
        claims: Sequence[Claim],
        settled: Sequence[Settled] = (),
    ) -> CycleReport:
        """Files first, then one transaction that makes them count. From here on nothing cancels the cycle any more."""
        self.report(Progress(stage="publish", done=0, total=1))
        version = self._version(outcome)
        write_checkpoint(draft, state, version)
        if self.context.model is not None:
            write_proof(draft, self.context.model)
        digest = self.context.folders.publish(draft, version.id)
        outcome = msgspec.structs.replace(outcome, version=version.id, finished_ns=time.time_ns())
        named = msgspec.structs.replace(version, digest=digest)
        self.context.store.commit_cycle(outcome, claims, named, settled)
        return outcome

    def _version(self, outcome: CycleReport) -> Version:
        taken = [int(version.id[1:]) for version in self.context.store.versions()]
        return Version(
            id=f"v{max(taken) + 1}",
            parent=self.parent.id,
            cycle=self.cycle,
            created_ns=time.time_ns(),
            digest="",
            trajectories=outcome.funnel.trained,
            metrics={DEBT: self.parent.metrics.get(DEBT, 0.0), **outcome.metrics},
            settings=msgspec.to_builtins(self.context.config),
        )

    def _place(self, state: Checkpoint, rows: Sequence[Stored]) -> _Placed:
        """The bank with the rows in it: what it knows already is revised, and the others are learned."""
        members, settings = members_of(rows, self.context.model, state.bank.width), self.context.config.bank
        revisions = revisions_of(rows, members)
        revised, places = state.bank.revise(revisions, settings)
        known = {
            one.member.trajectory_id: place for one, place in zip(revisions, places, strict=True) if place is not None
        }
        new = [member for member in members if member.trajectory_id not in known]
        learned, pattern_ids = revised.learn(new, settings, cycle=self.cycle, seed=self.seed)
        bank = deepened(learned, settings, self.cycle)
        pattern_ids = _at_home(bank, new, pattern_ids)
        self.report(Progress(stage="place", done=len(rows), total=len(rows), note=f"{len(bank.patterns)} patterns"))
        at = {member.trajectory_id: name for member, name in zip(new, pattern_ids, strict=True)}
        for member in members:
            if (place := known.get(member.trajectory_id)) is not None:
                at[member.trajectory_id] = bank.heir(place, member.embedding, self.cycle - 1)
        return _Placed(state.bank, bank, members, [at[member.trajectory_id] for member in members], len(known))

    def _taught(self, placed: _Placed) -> tuple[Bank, dict[str, float]]:
        """The bank to publish: with what its rows say of the lessons that they had recalled, and with new lessons."""
        bank, metrics = with_trials(placed.before, placed.bank, placed.members, placed.pattern_ids)
        if placed.revised:
            metrics = {"bank_revised": float(placed.revised), **metrics}
        if (distill := self.context.distiller()) is None:
            return bank, metrics
        bank, written = with_new_lessons(bank, distill, self.context.config, self.cycle, self.report)
        return bank, {**metrics, **written}

    def _report(
        self,
        status: CycleStatus,
        reason: str,
        funnel: Funnel,
        metrics: Mapping[str, float] | None = None,
        gate: GateDecision | None = None,
    ) -> CycleReport:
        return CycleReport(
            cycle=self.cycle,
            status=status,
            reason=reason,
            funnel=funnel,
            parent=self.parent.id,
            gate=gate,
            metrics=dict(metrics or {}),
            started_ns=self.started_ns,
            finished_ns=time.time_ns(),
        )


def _at_home(bank: Bank, members: Sequence[Member], pattern_ids: Sequence[str]) -> list[str]:
    """``pattern_ids``, strays under the nearest pattern: replay draws evenly by pattern, and a few rows that belong to
    none would get as many draws as a whole one.
    """
    far = [place for place, name in enumerate(pattern_ids) if not name]
    named = list(pattern_ids)
    if far:
        nearest = bank.nearest(np.stack([members[place].embedding for place in far]))
        for place, pattern in zip(far, nearest, strict=True):
            named[place] = "" if pattern is None else pattern.id
    return named


def _without(
    screened: Screened, parts: Split, owners: Mapping[int, str], waits: Container[str], reasons: Mapping[str, str]
) -> tuple[Screened, Split]:
    """Without what waits, and with what nothing was learned from left out for its owner's reason. What is held out of
    that stays, as it shows what is known already.
    """

    def owner(item: Ready) -> str:
        return owners[item.stored.seq]

    here = [item for item in parts.train if owner(item) not in waits]
    left = [LeftOut(item.stored, reasons[owner(item)]) for item in here if owner(item) in reasons]
    train = [item for item in here if owner(item) not in reasons]
    held_out = [item for item in parts.held_out if owner(item) not in waits]
    return screened._replace(left_out=[*screened.left_out, *left]), Split(train, held_out)


def _claims(screened: Screened, parts: Split, owners: Mapping[int, str], patterns: Mapping[str, str]) -> list[Claim]:
    """Who took what, with its skill and pattern, and the token ids where the trajectory brought none."""

    def claim(stored: Stored, role: Role) -> Claim:
        return Claim(
            seq=stored.seq,
            role=role,
            feedback_seq=stored.feedback_seq,
            skill=owners.get(stored.seq, BASE) if role != "left_out" else BASE,
            pattern=patterns.get(stored.trajectory.id, ""),
        )

    return [
        *(_with_tokens(claim(item.stored, "train"), item) for item in parts.train),
        *(_with_tokens(claim(item.stored, "held_out"), item) for item in parts.held_out),
        *(claim(left.stored, "left_out") for left in screened.left_out),
    ]


def _with_tokens(claim: Claim, item: Ready) -> Claim:
    own = item.stored.trajectory
    return msgspec.structs.replace(
        claim,
        prompt_ids=None if own.prompt_ids is not None else pack_tokens(item.prompt),
        response_ids=None if own.response_ids is not None else pack_tokens(item.response),
    )


def _funnel(taken: Collected, screened: Screened, parts: Split, later: dict[str, int]) -> Funnel:
    return Funnel(
        collected=len(taken.rows),
        trained=len(parts.train),
        held_out=len(parts.held_out),
        left_out={**Counter(left.reason for left in screened.left_out), **later},
        waiting_for_feedback=taken.waiting_for_feedback,
    )
