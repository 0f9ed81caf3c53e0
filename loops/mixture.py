"""What a batch is made of: new trajectories, replayed ones, and the base model's own answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sona.bank.bank import Bank
from sona.checks import Float32
from sona.config import TrainConfig
from sona.learn.dataset import Example
from sona.loops.credit import advantage_weights
from sona.loops.screen import prompt_tokens, response_tokens
from sona.ports import Role, ServedModel, Stored, TrajectoryStore

PREFETCH_STEPS = 32  # replay is drawn from the store for so many steps at once
NEUTRAL_QUALITY = 0.5  # baseline of a trajectory that lies in no pattern


@dataclass(frozen=True)
class Scope:
    """Which past a skill goes on from."""

    skills: tuple[str, ...] | None
    """Ids that trajectories were claimed for; None: all."""
    after_cycle: int = 0
    """Only what later cycles claimed still holds."""

    def sample(self, store: TrajectoryStore, role: Role, count: int, rng: np.random.Generator) -> list[Stored]:
        """``count`` of its trajectories with replacement, each pattern alike; [] where there is none."""
        return store.sample(role, count, rng, skills=self.skills, after_cycle=self.after_cycle, balanced=True)

    def size(self, store: TrajectoryStore, role: Role) -> int:
        """How many trajectories it has."""
        return store.replayable(role, skills=self.skills, after_cycle=self.after_cycle)


class Past:
    """Earlier trajectories, drawn from the store: the same number of each scope."""

    def __init__(
        self,
        scopes: Sequence[Scope],
        store: TrajectoryStore,
        model: ServedModel,
        bank: Bank,
        settings: TrainConfig,
        rng: np.random.Generator,
        moved: Sequence[Example] = (),
    ) -> None:
        """``moved`` are approved answers that earlier cycles moved into the weights: one more part of the past."""
        self._scopes = [scope for scope in scopes if scope.size(store, "train")]
        self._store, self._model, self._bank, self._settings, self._rng = store, model, bank, settings, rng
        self._moved = list(moved)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._scopes) or bool(self._moved)

    def draw(self, count: int) -> list[Example]:
        """About ``count`` examples, fewer where feedback turned some down since; weighted against their patterns."""
        each = -(-count // (len(self._scopes) + bool(self._moved)))
        drawn = self._draw_scopes(each) if self._scopes else []
        if not self._moved:
            return drawn
        drawn += [self._moved[place] for place in self._rng.integers(0, len(self._moved), each)]
        return [drawn[place] for place in self._rng.permutation(len(drawn))]

    def _draw_scopes(self, each: int) -> list[Example]:
        rows = [row for scope in self._scopes for row in scope.sample(self._store, "train", each, self._rng)]
        rows = [rows[place] for place in self._rng.permutation(len(rows))]
        rows = still_good(rows, self._settings.min_quality)
        quality = [row.quality if row.quality is not None else NEUTRAL_QUALITY for row in rows]
        usual = baselines(self._bank, [row.trajectory.vector() for row in rows])
        weights = advantage_weights(quality, usual, self._settings).tolist()
        return [replayed_example(row, self._model, weight) for row, weight in zip(rows, weights, strict=True)]


class Mixture:
    """Draws the batches of one adapter in one cycle: all from one seed, so the same cycle draws the same."""

    def __init__(
        self,
        new: Sequence[Example],
        past: Past,
        probes: Sequence[Example],
        settings: TrainConfig,
        rng: np.random.Generator,
        effort: Sequence[float] | None = None,
        approved: Sequence[Example] = (),
        approved_share: float = 0.0,
    ) -> None:
        """``effort`` (new,) says how often each of ``new`` is seen, times ``passes``; None: once. ``approved`` has a
        share of its own of each batch, as far as there is anything else that is new.
        """
        self._new, self._past, self._probes, self._settings, self._rng = list(new), past, list(probes), settings, rng
        self._effort = np.ones(len(self._new)) if effort is None else np.asarray(effort, dtype=np.float64)
        self._order: list[int] = []
        self._replay: list[Example] = []
        self.replayed = 0
        """Replayed examples drawn so far."""
        size = settings.batch_size
        # Rounded down: the shares are at most 0.9 together, so at least one place is left for what is new.
        self._replay_count = int(size * settings.replay_share) if past else 0
        self._probe_count = int(size * settings.probe_share) if probes else 0
        rest = size - self._replay_count - self._probe_count
        self._approved = list(approved)
        self._approved_order: list[int] = []
        self._approved_count = 0
        if self._approved:  # a place at least on either side; one place alone is the approved ones'
            self._approved_count = min(max(int(size * approved_share), 1), max(rest - 1, 1)) if self._new else rest
        self._new_count = rest - self._approved_count

    @property
    def steps(self) -> int:
        """As many as it takes to see each new trajectory ``passes`` times its effort, within the bounds.

        Where there is nothing to replay yet the batches are all new, but there are as many of them: a skill takes steps
        to learn, whatever they are made of.
        """
        places = self._settings.batch_size * (1 - self._settings.replay_share) - self._probe_count
        wanted = math.ceil(self._settings.passes * float(self._effort.sum()) / max(min(self._new_count, places), 1.0))
        if self._approved:
            wanted = max(wanted, math.ceil(self._settings.passes * len(self._approved) / self._approved_count))
        return min(max(wanted, self._settings.min_steps), self._settings.max_steps)

    def draw(self, step: int) -> list[Example]:
        """The batch of ``step``: new ones in shuffled passes, replay and probes at random."""
        return [*self._draw_new(), *self._draw_approved(), *self._draw_replay(), *self._draw_probes()]

    def _draw_approved(self) -> list[Example]:
        while len(self._approved_order) < self._approved_count:
            self._approved_order += self._rng.permutation(len(self._approved)).tolist()
        taken = self._approved_order[: self._approved_count]
        self._approved_order = self._approved_order[self._approved_count :]
        return [self._approved[place] for place in taken]

    def _draw_new(self) -> list[Example]:
        while self._new and len(self._order) < self._new_count:
            times = np.floor(self._effort + self._rng.random(len(self._new))).astype(np.int64)  # its effort on average
            self._order += self._rng.permutation(np.repeat(np.arange(len(self._new)), times)).tolist()
        taken, self._order = self._order[: self._new_count], self._order[self._new_count :]
        return [self._new[place] for place in taken]

    def _draw_replay(self) -> list[Example]:
        if len(self._replay) < self._replay_count:
            self._replay += self._past.draw(self._replay_count * PREFETCH_STEPS)
        taken, self._replay = self._replay[: self._replay_count], self._replay[self._replay_count :]
        self.replayed += len(taken)
        return taken

    def _draw_probes(self) -> list[Example]:
        return [self._probes[place] for place in self._rng.integers(0, max(len(self._probes), 1), self._probe_count)]


def baselines(bank: Bank, embeddings: Sequence[Float32 | None]) -> list[float]:
    """What is usual for each embedding's pattern; 0.5 where there is no embedding or no pattern."""
    known = [
        place for place, embedding in enumerate(embeddings) if embedding is not None and len(embedding) == bank.width
    ]
    found = [NEUTRAL_QUALITY] * len(embeddings)
    if known:
        rows = np.stack(
            [embedding for embedding in embeddings if embedding is not None and len(embedding) == bank.width]
        )
        for place, pattern in zip(known, bank.nearest(rows), strict=True):
            found[place] = NEUTRAL_QUALITY if pattern is None else bank.usual_quality(pattern.id)
    return found


def still_good(rows: Sequence[Stored], min_quality: float) -> list[Stored]:
    """Those that were not turned down by feedback that came after their cycle."""
    return [row for row in rows if row.quality is not None and row.quality >= min_quality]


def replayed_example(row: Stored, model: ServedModel, weight: float = 1.0) -> Example:
    """A trajectory of the store, that was screened in an earlier cycle, as an example."""
    prompt, response = prompt_tokens(row.trajectory, model), response_tokens(row.trajectory, model)
    assert prompt is not None
    assert response is not None
    return Example(prompt, response, weight)
