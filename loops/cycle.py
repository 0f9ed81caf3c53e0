"""One run of the background loop, as a straight line: collect, screen, place, split, train, judge, publish.

Until the one transaction at its end nothing that others see has changed; a process that is killed anywhere leaves at
most a folder that no version names, and the next run takes the same trajectories.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from sona.bank.bank import Bank
from sona.checks import pack_tokens
from sona.config import Config
from sona.loops.candidate import Candidate, CandidateTrainer
from sona.loops.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sona.loops.gate import DEBT
from sona.loops.members import members_of
from sona.loops.screen import Ready, Screened, screen
from sona.loops.split import Split, questions, split
from sona.loops.version_files import ADAPTER
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
from sona.types import CycleReport, CycleStatus, Funnel, Progress, Version


@dataclass(frozen=True)
class CycleContext:
    """What a cycle works with."""

    store: TrajectoryStore
    folders: VersionFolders
    model: ServedModel | None
    """None where the host only records: then the bank learns and no adapter does."""
    config: Config


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
    context.folders.clean({version.id for version in context.store.versions()})  # what a failed cycle left behind
    run = _Run(context, report)
    settings = context.config.cycle
    taken = context.store.collect(settings.max_trajectories)
    if len(taken.rows) < settings.min_trajectories:
        reason = f"{len(taken.rows)} new trajectories with a quality; {settings.min_trajectories} make a cycle"
        return run.skipped(taken, reason)
    screened = screen(taken.rows, context.model, context.config.train)
    parts = split(screened.ready, settings.held_out_share)
    needed = context.config.gate.min_held_out if context.config.gate.enabled else 0
    # A full load is not left for later even without evidence: it would stand in the way of what comes after it.
    full = len(taken.rows) >= settings.max_trajectories
    if context.model is not None and parts.train and (questions(parts.held_out) >= needed or full):
        return run.train(context.model, taken, screened, parts)
    if full:
        screened = screened.without_ready("nothing to judge by")
    if len(screened.left_out) >= settings.min_trajectories:
        return run.bank_only(taken, screened)
    reason = f"{questions(parts.held_out)} different questions are held out, and {needed} are needed to judge by"
    return run.skipped(taken, f"{reason} (cycle.held_out_share, gate.min_held_out)")


class _Run:
    """One cycle under way: its number, its parent, and where its outcome is written."""

    def __init__(self, context: CycleContext, report: Report) -> None:
        self.context, self.report = context, report
        self.cycle = context.store.next_cycle()
        self.parent = context.store.current()
        self.started_ns = time.time_ns()
        self.seed = context.config.seed * 1_000_003 + self.cycle

    def skipped(self, taken: Collected, reason: str) -> CycleReport:
        """Nothing is claimed: the next cycle collects the same, and what came since."""
        funnel = Funnel(
            collected=len(taken.rows),
            trained=0,
            held_out=0,
            left_out={"left for the next cycle": len(taken.rows)} if taken.rows else {},
            waiting_for_feedback=taken.waiting_for_feedback,
        )
        return self._report("skipped", reason, funnel)

    def bank_only(self, taken: Collected, screened: Screened) -> CycleReport:
        """Nothing here can train an adapter: the bank learns what is left out, and the model stays as it is."""
        state = read_checkpoint(self.context.folders, self.parent)
        bank, _ = self._place(state, [left.stored for left in screened.left_out])
        later = {"left for the next cycle": len(screened.ready)} if screened.ready else {}
        funnel = _funnel(taken, screened, Split([], []), later)
        with self.context.folders.draft() as draft:
            outcome = self._report("published", "the bank learned; nothing could train the adapter", funnel)
            return self._publish(draft, replace(state, bank=bank), outcome, _claims(screened, Split([], [])))

    def train(self, model: ServedModel, taken: Collected, screened: Screened, parts: Split) -> CycleReport:
        """The whole way: bank, adapter, gate."""
        state = read_checkpoint(self.context.folders, self.parent)
        bank, baseline = self._place(state, taken.rows)
        state = replace(state, bank=bank)
        with self.context.folders.draft() as draft:
            trainer = CandidateTrainer(self.context.store, model, state, self.context.config, self.seed, self.report)
            candidate = trainer.train(parts, baseline, draft / ADAPTER)
            funnel = _funnel(taken, screened, parts, {})
            claims = _claims(screened, parts)
            if candidate.decision.passed:
                outcome = self._report("published", candidate.decision.reason, funnel, candidate)
                return self._publish(draft, candidate.state, outcome, claims)
            outcome = self._report("rejected", candidate.decision.reason, funnel, candidate)
        self.context.store.commit_cycle(outcome, claims, None)
        return outcome

    def _publish(self, draft: Path, state: Checkpoint, outcome: CycleReport, claims: Sequence[Claim]) -> CycleReport:
        """Files first, then one transaction that makes them count. From here on nothing cancels the cycle any more."""
        self.report(Progress(stage="publish", done=0, total=1))
        version = self._version(outcome)
        write_checkpoint(draft, state, version)
        digest = self.context.folders.publish(draft, version.id)
        outcome = msgspec.structs.replace(outcome, version=version.id, finished_ns=time.time_ns())
        self.context.store.commit_cycle(outcome, claims, msgspec.structs.replace(version, digest=digest))
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

    def _place(self, state: Checkpoint, rows: Sequence[Stored]) -> tuple[Bank, dict[str, float]]:
        """The bank with the rows in it, and by trajectory id the mean quality of the pattern that it went to."""
        members = members_of(rows, self.context.model, state.bank.width)
        placed = state.bank.learn(members, self.context.config.bank, cycle=self.cycle, seed=self.seed)
        usual = {pattern.id: pattern.quality_mean for pattern in placed.bank.patterns}
        self.report(Progress(stage="place", done=len(rows), total=len(rows), note=f"{len(usual)} patterns"))
        baseline = {member.trajectory_id: usual[name] for member, name in zip(members, placed.pattern_ids, strict=True)}
        return placed.bank, baseline

    def _report(
        self, status: CycleStatus, reason: str, funnel: Funnel, candidate: Candidate | None = None
    ) -> CycleReport:
        return CycleReport(
            cycle=self.cycle,
            status=status,
            reason=reason,
            funnel=funnel,
            parent=self.parent.id,
            gate=None if candidate is None else candidate.decision,
            metrics={} if candidate is None else candidate.metrics,
            started_ns=self.started_ns,
            finished_ns=time.time_ns(),
        )


def _claims(screened: Screened, parts: Split) -> list[Claim]:
    """Who took what, with the token ids where the trajectory brought none."""
    return [
        *(_claim(item, "train") for item in parts.train),
        *(_claim(item, "held_out") for item in parts.held_out),
        *(
            Claim(seq=left.stored.seq, role="left_out", feedback_seq=left.stored.feedback_seq)
            for left in screened.left_out
        ),
    ]


def _claim(item: Ready, role: Role) -> Claim:
    own = item.stored.trajectory
    return Claim(
        seq=item.stored.seq,
        role=role,
        feedback_seq=item.stored.feedback_seq,
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
