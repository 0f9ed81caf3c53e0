"""What a batch is made of: new trajectories, replayed ones, and the base model's own answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sona.bank.bank import Bank
from sona.checks import Float32
from sona.config import TrainConfig
from sona.learn.dataset import Example
from sona.loops.credit import advantage_weights
from sona.loops.members import embeddings_of
from sona.loops.screen import prompt_tokens, response_tokens
from sona.ports import ServedModel, Stored, TrajectoryStore

PREFETCH_STEPS = 32  # replay is drawn from the store for so many steps at once
NEUTRAL_QUALITY = 0.5  # baseline of a trajectory that lies in no pattern


def baselines(bank: Bank, embeddings: Sequence[Float32 | None]) -> list[float]:
    """Mean quality of each embedding's pattern; 0.5 where there is no embedding or no pattern."""
    known = [
        place for place, embedding in enumerate(embeddings) if embedding is not None and len(embedding) == bank.width
    ]
    found = [NEUTRAL_QUALITY] * len(embeddings)
    if known:
        rows = np.stack(
            [embedding for embedding in embeddings if embedding is not None and len(embedding) == bank.width]
        )
        for place, pattern in zip(known, bank.nearest(rows), strict=True):
            found[place] = NEUTRAL_QUALITY if pattern is None else pattern.quality_mean
    return found


class Mixture:
    """Draws the batches of one cycle: all from one seed, so the same cycle draws the same."""

    def __init__(
        self,
        new: Sequence[Example],
        probes: Sequence[Example],
        store: TrajectoryStore,
        model: ServedModel,
        bank: Bank,
        settings: TrainConfig,
        seed: int,
    ) -> None:
        self._new, self._probes = list(new), list(probes)
        self._store, self._model, self._bank, self._settings = store, model, bank, settings
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []
        self._replay: list[Example] = []
        self._embedded: dict[int, Float32 | None] = {}
        self.replayed = 0
        """Replayed examples drawn so far."""
        has_past = bool(store.sample("train", 1, self._rng))
        size = settings.batch_size
        # Rounded down: the shares are at most 0.9 together, so at least one place is left for what is new.
        self._replay_count = int(size * settings.replay_share) if has_past else 0
        self._probe_count = int(size * settings.probe_share) if probes else 0
        self._new_count = size - self._replay_count - self._probe_count

    @property
    def steps(self) -> int:
        """As many as it takes to see each new trajectory ``passes`` times, within the bounds."""
        wanted = math.ceil(self._settings.passes * len(self._new) / self._new_count)
        return min(max(wanted, self._settings.min_steps), self._settings.max_steps)

    def draw(self, step: int) -> list[Example]:
        """The batch of ``step``: new ones in shuffled passes, replay and probes at random."""
        return [*self._draw_new(), *self._draw_replay(), *self._draw_probes()]

    def _draw_new(self) -> list[Example]:
        while len(self._order) < self._new_count:
            self._order += self._rng.permutation(len(self._new)).tolist()
        taken, self._order = self._order[: self._new_count], self._order[self._new_count :]
        return [self._new[place] for place in taken]

    def _draw_replay(self) -> list[Example]:
        if len(self._replay) < self._replay_count:
            self._replay += self._fetch(self._replay_count * PREFETCH_STEPS)
        taken, self._replay = self._replay[: self._replay_count], self._replay[self._replay_count :]
        self.replayed += len(taken)
        return taken

    def _draw_probes(self) -> list[Example]:
        return [self._probes[place] for place in self._rng.integers(0, max(len(self._probes), 1), self._probe_count)]

    def _fetch(self, count: int) -> list[Example]:
        """Replayed trajectories, weighted against their pattern as it stands now."""
        rows = still_good(self._store.sample("train", count, self._rng), self._settings.min_quality)
        quality = [row.quality if row.quality is not None else NEUTRAL_QUALITY for row in rows]
        weights = advantage_weights(quality, baselines(self._bank, self._embeddings(rows)), self._settings)
        return [replayed_example(row, self._model, weight) for row, weight in zip(rows, weights.tolist(), strict=True)]

    def _embeddings(self, rows: Sequence[Stored]) -> list[Float32 | None]:
        """Of the prompts; those that have none stored are embedded once in a cycle."""
        unseen = {row.seq: row for row in rows if row.seq not in self._embedded}
        found = embeddings_of(list(unseen.values()), self._model, self._bank.width)
        self._embedded.update(zip(unseen, found, strict=True))
        return [self._embedded[row.seq] for row in rows]


def still_good(rows: Sequence[Stored], min_quality: float) -> list[Stored]:
    """Those that were not turned down by feedback that came after their cycle."""
    return [row for row in rows if row.quality is not None and row.quality >= min_quality]


def replayed_example(row: Stored, model: ServedModel, weight: float = 1.0) -> Example:
    """A trajectory of the store, that was screened in an earlier cycle, as an example."""
    prompt, response = prompt_tokens(row.trajectory, model), response_tokens(row.trajectory, model)
    assert prompt is not None
    assert response is not None
    return Example(prompt, response, weight)
