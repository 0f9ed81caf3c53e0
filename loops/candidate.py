"""The part of a cycle that changes weights: from a checkpoint and a split to a judged candidate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel

from sona.config import Config, LoraConfig
from sona.errors import ConfigError
from sona.learn.dataset import Example
from sona.learn.ewc import EwcState, initial_state
from sona.learn.fisher import fisher_diagonal
from sona.learn.likelihood import Scores, evaluate
from sona.learn.lora import attach, load_adapter, save_adapter, weights
from sona.learn.trainer import TrainResult, auto_learning_rate, train
from sona.loops.checkpoint import Checkpoint
from sona.loops.credit import advantage_weights
from sona.loops.gate import DEBT, Evidence, debt_after, decide
from sona.loops.mixture import NEUTRAL_QUALITY, Mixture, replayed_example, still_good
from sona.loops.probes import Probes, read_probes
from sona.loops.screen import Ready
from sona.loops.split import Split, question_key
from sona.ports import Report, ServedModel, TrajectoryStore
from sona.types import GateDecision, Progress


@dataclass(frozen=True)
class Candidate:
    """What was learned, and whether it holds."""

    state: Checkpoint
    """With the candidate's adapter in the draft's folder."""
    decision: GateDecision
    metrics: dict[str, float]


class CandidateTrainer:
    """Trains and judges one candidate. The learner is a module tree of its own over the served weights: requests go
    on.
    """

    def __init__(
        self, store: TrajectoryStore, model: ServedModel, state: Checkpoint, config: Config, seed: int, report: Report
    ) -> None:
        self.store, self.model, self.state, self.config, self.seed, self.report = (
            store,
            model,
            state,
            config,
            seed,
            report,
        )
        tree = model.trainable_copy()
        self.learner = attach(tree, config.lora, seed) if state.adapter is None else load_adapter(tree, state.adapter)
        self.learner.eval()
        _check_shape(self.learner, config.lora)
        self.debt = store.current().metrics.get(DEBT, 0.0)

    def train(self, parts: Split, baseline: Mapping[str, float], folder: Path) -> Candidate:
        """Train on ``parts.train``, write the adapter to ``folder``, judge it by ``parts.held_out``.

        ``baseline`` is the usual quality of each trajectory's pattern, by trajectory id.
        """
        clock = _Clock()
        probes = read_probes(self.store, self.model, self.config, self.report)
        clock.lap("probes_s")
        asked = _limited(parts.held_out, self.config.gate.held_out_limit)
        sets = _Examples([Example(item.prompt, item.response) for item in asked], self._earlier(), probes.judged)
        with self.learner.disable_adapter():
            base = self._evaluate(sets, "evaluate base")
        before = self._evaluate(sets, "evaluate before")
        clock.lap("evaluate_before_s")
        ewc = self.state.ewc or self._first_anchor(probes)
        clock.lap("first_fisher_s")
        result = self._steps(self._credited(parts.train, baseline), probes, ewc)
        clock.lap("train_s")
        after = self._evaluate(sets, "evaluate after")
        clock.lap("evaluate_after_s")
        save_adapter(self.learner, folder)
        evidence = _evidence(asked, base, before, after, self.debt)
        decision = decide(evidence, self.config.gate, self.seed)
        state = replace(self.state, adapter=folder, ewc=result.ewc, optimizer=result.optimizer_state)
        metrics = {**result.metrics, **_metrics(base, before, after), **clock.laps, DEBT: debt_after(evidence)}
        return Candidate(state, decision, metrics)

    def _evaluate(self, sets: _Examples, stage: str) -> _Scores:
        return _Scores(*(self._score(part, f"{stage}: {name}") for name, part in sets._asdict().items()))

    def _score(self, part: list[Example], stage: str) -> Scores:
        def on_batch(done: int, total: int) -> None:
            self.report(Progress(stage=stage, done=done, total=total))

        return evaluate(self.learner, part, self.model.pad_id, on_batch=on_batch)

    def _earlier(self) -> list[Example]:
        """Held-out answers of earlier cycles; drawn with replacement, so each counts once."""
        rng = np.random.default_rng(self.seed)
        rows = self.store.sample("held_out", self.config.gate.held_out_limit, rng)
        unique = {row.seq: row for row in still_good(rows, self.config.train.min_quality)}
        return [replayed_example(unique[seq], self.model) for seq in sorted(unique)]

    def _first_anchor(self, probes: Probes) -> EwcState | None:
        """Before the first cycle: what matters to the base model's own answers is held from the start."""
        if not probes.trained:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        fisher = fisher_diagonal(self.learner, probes.trained, self.model.pad_id, sampled=True, generator=generator)
        return initial_state(fisher, weights(self.learner))

    def _steps(self, new: Sequence[Example], probes: Probes, ewc: EwcState | None) -> TrainResult:
        settings = self.config.train
        mixture = Mixture(new, probes.trained, self.store, self.model, self.state.bank, settings, self.seed)
        steps = mixture.steps

        def on_step(step: int, loss: float) -> None:
            self.report(Progress(stage="train", done=step + 1, total=steps, note=f"loss {loss:.3f}"))

        result = train(
            self.learner,
            mixture.draw,
            steps=steps,
            settings=settings,
            learning_rate=settings.learning_rate or auto_learning_rate(self.model.hidden_size),
            pad_id=self.model.pad_id,
            ewc=ewc,
            optimizer_state=self.state.optimizer,
            on_step=on_step,
        )
        return replace(result, metrics={**result.metrics, "replayed": float(mixture.replayed)})

    def _credited(self, ready: Sequence[Ready], baseline: Mapping[str, float]) -> list[Example]:
        """The new trajectories, weighted against what is usual for their patterns."""
        quality = [item.stored.quality or 0.0 for item in ready]
        usual = [baseline.get(item.stored.trajectory.id, NEUTRAL_QUALITY) for item in ready]
        credit = advantage_weights(quality, usual, self.config.train)
        return [
            Example(item.prompt, item.response, weight) for item, weight in zip(ready, credit.tolist(), strict=True)
        ]


def _check_shape(learner: PeftModel, wanted: LoraConfig) -> None:
    """The store's adapter goes on as it began; settings that say otherwise would be untrue of what is learned."""
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


class _Examples(NamedTuple):
    """What both the version in force and the candidate are asked."""

    new: list[Example]
    earlier: list[Example]
    probes: list[Example]


class _Scores(NamedTuple):
    """One model's scores in it."""

    new: Scores
    earlier: Scores
    probes: Scores


class _Clock:
    """Seconds since the lap before, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _limited(held_out: Sequence[Ready], limit: int) -> list[Ready]:
    """At most ``limit`` of them, chosen by their questions' hashes, so all answers to one question before the
    next's.
    """
    return sorted(held_out, key=lambda item: question_key(item.stored.trajectory))[:limit]


def _evidence(asked: Sequence[Ready], base: _Scores, before: _Scores, after: _Scores, debt: float) -> Evidence:
    gain = (after.new.log_prob - before.new.log_prob) / after.new.tokens
    by_question: dict[bytes, list[float]] = {}
    for item, value in zip(asked, gain.tolist(), strict=True):
        by_question.setdefault(question_key(item.stored.trajectory), []).append(value)
    return Evidence(
        gain=np.asarray([np.mean(values) for values in by_question.values()], dtype=np.float64),
        earlier_before=before.earlier.share_right,
        earlier_after=after.earlier.share_right,
        debt=debt,
        probes_kept=np.asarray(
            [
                np.average(right, weights=np.exp(log_prob))
                for right, log_prob in zip(after.probes.token_right, base.probes.token_log_prob, strict=True)
            ]
        ),
    )


def _metrics(base: _Scores, before: _Scores, after: _Scores) -> dict[str, float]:
    """Exact answers under greedy decoding, and nats a token: of the base model, the version in force, and the
    candidate.

    Parts without examples are absent.
    """
    metrics: dict[str, float] = {}
    for part in _Scores._fields:
        for name, scores in (("base", base), ("before", before), ("after", after)):
            found: Scores = getattr(scores, part)
            if len(found.tokens):
                metrics[f"{part}_exact_{name}"] = float(found.exact.mean())
                metrics[f"{part}_nats_{name}"] = float(-found.log_prob.sum() / found.tokens.sum())
    return metrics
