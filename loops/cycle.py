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
from sona.loops.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sona.loops.lesson import Lesson, Teacher
from sona.loops.members import members_of
from sona.loops.screen import Ready, Screened, screen
from sona.loops.split import Split, split
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
class Workshop:
    """What a cycle works with."""

    store: TrajectoryStore
    folders: VersionFolders
    model: ServedModel | None
    """None where the host only records: then the bank learns and no adapter does."""
    config: Config


def run_cycle(shop: Workshop, report: Report = ignore_progress) -> CycleReport:
    """Learn what is new since the last cycle.

    Args:
        shop: store, version folders, model, settings.
        report: told of the progress; may raise to cancel, which leaves everything as it was.

    Returns:
        What was done: ``published`` with the new version, ``rejected`` by the gate, or ``skipped`` (nothing was
        claimed).

    Raises:
        CycleError: training went to infinity; nothing has changed.
        StoreError: the store could not be read or written; nothing has changed.
    """
    run = _Run(shop, report)
    taken = shop.store.collect(shop.config.cycle.max_trajectories)
    least = shop.config.cycle.min_trajectories
    if len(taken.rows) < least:
        return run.skipped(taken, f"{len(taken.rows)} new trajectories with a quality; {least} make a cycle")
    screened = screen(taken.rows, shop.model, shop.config.train)
    parts = split(screened.ready, shop.config.cycle.held_out_share, shop.config.seed)
    if shop.model is not None and parts.train and len(parts.held_out) >= shop.config.gate.min_held_out:
        return run.train(shop.model, taken, screened, parts)
    if len(screened.left_out) >= least:
        return run.bank_only(taken, screened)
    needed = shop.config.gate.min_held_out
    return run.skipped(taken, f"{len(parts.held_out)} held-out answers, and {needed} are needed to judge by")


class _Run:
    """One cycle under way: its number, its parent, and where its outcome is written."""

    def __init__(self, shop: Workshop, report: Report) -> None:
        self.shop, self.report = shop, report
        self.cycle = shop.store.next_cycle()
        self.parent = shop.store.current()
        self.started_ns = time.time_ns()
        self.seed = shop.config.seed * 1_000_003 + self.cycle

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
        """Nothing here can train an adapter: the bank learns, and the model stays the parent's."""
        state = read_checkpoint(self.shop.folders, self.parent)
        bank, _ = self._place(state, [left.stored for left in screened.left_out])
        state = replace(state, bank=bank)
        later = {"left for the next cycle": len(screened.ready)} if screened.ready else {}
        funnel = _funnel(taken, screened, Split([], []), later)
        with self.shop.folders.draft() as draft:
            outcome = self._report("published", "the bank learned; nothing could train the adapter", funnel)
            return self._publish(draft, state, outcome, _claims(screened, Split([], [])))

    def train(self, model: ServedModel, taken: Collected, screened: Screened, parts: Split) -> CycleReport:
        """The whole way: bank, adapter, gate."""
        state = read_checkpoint(self.shop.folders, self.parent)
        bank, baseline = self._place(state, taken.rows)
        state = replace(state, bank=bank)
        with self.shop.folders.draft() as draft:
            teacher = Teacher(self.shop.store, model, state, self.shop.config, self.seed, self.report)
            lesson = teacher.teach(parts, baseline, draft / ADAPTER)
            funnel = _funnel(taken, screened, parts, {})
            claims = _claims(screened, parts)
            if lesson.decision.passed:
                outcome = self._report("published", lesson.decision.reason, funnel, lesson)
                return self._publish(draft, lesson.state, outcome, claims)
            outcome = self._report("rejected", lesson.decision.reason, funnel, lesson)
        self.shop.store.commit_cycle(outcome, claims, None)
        return outcome

    def _publish(self, draft: Path, state: Checkpoint, outcome: CycleReport, claims: Sequence[Claim]) -> CycleReport:
        """Files first, then one transaction that makes them count."""
        version = self._version(outcome)
        write_checkpoint(draft, state, version)
        digest = self.shop.folders.publish(draft, version.id)
        outcome = msgspec.structs.replace(outcome, version=version.id, finished_ns=time.time_ns())
        self.shop.store.commit_cycle(outcome, claims, msgspec.structs.replace(version, digest=digest))
        return outcome

    def _version(self, outcome: CycleReport) -> Version:
        taken = [int(version.id[1:]) for version in self.shop.store.versions()]
        return Version(
            id=f"v{max(taken) + 1}",
            parent=self.parent.id,
            cycle=self.cycle,
            created_ns=time.time_ns(),
            digest="",
            trajectories=outcome.funnel.trained,
            metrics=outcome.metrics,
            settings=msgspec.to_builtins(self.shop.config),
        )

    def _place(self, state: Checkpoint, rows: Sequence[Stored]) -> tuple[Bank, dict[str, float]]:
        """The bank with the rows in it, and by trajectory id the mean quality of the pattern that it went to."""
        members = members_of(rows, self.shop.model, state.bank.width)
        placed = state.bank.learn(members, self.shop.config.bank, cycle=self.cycle, seed=self.seed)
        usual = {pattern.id: pattern.quality_mean for pattern in placed.bank.patterns}
        self.report(Progress(stage="place", done=len(rows), total=len(rows), note=f"{len(usual)} patterns"))
        baseline = {member.trajectory_id: usual[name] for member, name in zip(members, placed.pattern_ids, strict=True)}
        return placed.bank, baseline

    def _report(self, status: CycleStatus, reason: str, funnel: Funnel, lesson: Lesson | None = None) -> CycleReport:
        return CycleReport(
            cycle=self.cycle,
            status=status,
            reason=reason,
            funnel=funnel,
            parent=self.parent.id,
            gate=None if lesson is None else lesson.decision,
            metrics={} if lesson is None else lesson.metrics,
            started_ns=self.started_ns,
            finished_ns=time.time_ns(),
        )


def _claims(screened: Screened, parts: Split) -> list[Claim]:
    """Who took what, with the token ids where the trajectory brought none."""
    return [
        *(_claim(item, "train") for item in parts.train),
        *(_claim(item, "held_out") for item in parts.held_out),
        *(Claim(seq=left.stored.seq, role="left_out") for left in screened.left_out),
    ]


def _claim(item: Ready, role: Role) -> Claim:
    own = item.stored.trajectory
    return Claim(
        seq=item.stored.seq,
        role=role,
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
