"""Micro-LoRA in the request path: a feedback moves the fast weights of its kind of query, behind the caller's back.

    feedback() ──▶ a bounded queue ──▶ one thread: find the trajectory ▶ its family ▶ one forward pass ▶ a step
    generate() ◀── the weights of the query's family, if they were learned with the adapter that answers it

Fast weights belong to a family of patterns (the bank tells apart more than answers differ: by single patterns three of
four feedbacks reached the other queries of their kind, by families nearly all; ``bench_micro``) and to the adapter that
they were learned beside, and serve for that one alone. A cycle that has learned from a family's trajectories takes its
weights away, for what they said is in the adapter now; a rollback takes all away. They are not stored: a restart begins
without.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from copy import copy

import msgspec
import numpy as np

from sona.bank.bank import Bank
from sona.checks import Float32
from sona.config import Config
from sona.learn.micro import MicroLora
from sona.loops.micro_families import InForce
from sona.loops.screen import Ready, ready
from sona.patterns import Pattern
from sona.ports import Claim, FastRow, ServedModel, Stored
from sona.types import BASE_VERSION, Feedback, Version

log = logging.getLogger("sona.micro")

BASE, SEPARATOR = "base", "/"  # in the key of a pair: its adapter's content key, then its family
REMEMBERED = 4096  # ids of feedbacks: one that is sent twice moves once


class MicroCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the feedbacks since the start."""

    patterns: int
    """Families of patterns that have fast weights now."""
    waiting: int
    """Feedbacks in the queue, and the one under way."""
    moved: int
    """Feedbacks that moved fast weights."""
    still: dict[str, int]
    """Feedbacks that moved nothing, by reason."""
    dropped: int
    """Feedbacks that found the queue full."""
    errors: int
    """Feedbacks whose step failed; the log says how."""


class MicroLoop:
    """Takes feedbacks, moves fast weights, and tells the model which ones an answer gets
    (:class:`sona.ports.FastWeights`). Safe to call from several threads.

    Args:
        model: answers, and makes the hidden states that a step is taken on.
        find: gives a trajectory by its id; may wait for the store.
        config: settings and seed.
    """

    def __init__(self, model: ServedModel, find: Callable[[str], Stored], config: Config) -> None:
        self._model, self._find, self._settings, self._train = model, find, config.micro, config.train
        self._lora = MicroLora(config.micro, config.seed)
        self._in_force = InForce(BASE_VERSION, Bank())
        self._state = threading.Lock()  # held while these two change together
        self._queue: deque[Feedback] = deque()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._wake = threading.Condition()
        self._busy = self._closed = False
        self._moved = self._dropped = self._errors = 0
        self._still: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="sona-micro", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ for the host

    def offer(self, feedback: Feedback) -> None:
        """Queue one feedback, in a microsecond. It is dropped, and counted, where ``micro.max_waiting`` wait; the same
        id twice counts once.
        """
        with self._wake:
            if feedback.id in self._seen:
                return
            if self._closed or len(self._queue) >= self._settings.max_waiting:
                self._dropped += 1
                return
            self._seen[feedback.id] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            self._queue.append(feedback)
            self._wake.notify_all()

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until every feedback so far has had its step; False where ``timeout_s`` passed first."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self) -> None:
        """End the thread after the step under way; what waits is dropped and counted. A second call does nothing."""
        with self._wake:
            self._closed = True
            self._dropped += len(self._queue)
            self._queue.clear()
            self._wake.notify_all()
        self._thread.join()

    def counts(self) -> MicroCounts:
        """Counted now."""
        with self._wake:
            return MicroCounts(
                patterns=len(self._lora),
                waiting=len(self._queue) + self._busy,
                moved=self._moved,
                still=dict(self._still),
                dropped=self._dropped,
                errors=self._errors,
            )

    # ------------------------------------------------------------------------------------------------ for the model

    def __len__(self) -> int:
        return len(self._lora)

    def rows(self, version: str, adapters: Sequence[str | None], embeddings: Float32) -> list[FastRow | None]:
        """See :meth:`sona.ports.FastWeights.rows`."""
        now = self._in_force
        if now.version != version:
            return [None] * len(adapters)
        return [
            self._row(now.family[pattern.id], adapter) if (pattern := self._pattern(now, embedding)) else None
            for adapter, embedding in zip(adapters, embeddings, strict=True)
        ]

    def _row(self, family: str, adapter: str | None) -> FastRow | None:
        pair = self._lora.get(_key(family, adapter))
        return None if pair is None else FastRow(family, pair.A, pair.B)

    def _pattern(self, now: InForce, embedding: Float32) -> Pattern | None:
        """The nearest one, if the query is about as much like it as is usual in its family."""
        if now.bank.width != len(embedding):
            return None
        for found in now.bank.recall(embedding, 1):
            if found.similarity >= self._settings.min_similarity * now.usual[found.pattern.id]:
                return found.pattern
        return None

    # ------------------------------------------------------------------------------------------------ for the cycle

    def put_in_force(self, version: Version, bank: Bank, claims: Sequence[Claim]) -> None:
        """``version`` answers now, with ``bank``; ``claims`` are those of the cycle that made it.

        Where it follows on the one before, families that the cycle trained on or judged by lose their fast weights, and
        those whose first pattern is another one now; else all do.
        """
        new = InForce(version.id, bank)
        with self._state:
            follows = version.parent == self._in_force.version
            kept = set(new.family.values()) if follows else set()
            for claim in claims:
                if claim.role != "left_out":
                    kept -= {now.family.get(claim.pattern) for now in (self._in_force, new)}
            self._in_force = new
            self._lora.drop([key for key in self._lora if _family_of(key) not in kept])

    def reset(self) -> None:
        """Forget all fast weights."""
        with self._state:
            self._in_force = copy(self._in_force)  # another one to a step under way, which then takes itself back
            self._lora.drop(list(self._lora))

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                feedback, self._busy = self._queue.popleft(), True
            try:
                still = self._step(feedback)
            except Exception:  # whatever a step makes a model raise, the host has its answer already
                log.exception("feedback %s could not move the fast weights", feedback.id)
                still = "error"
            with self._wake:
                self._busy = False
                self._note(still)
                self._wake.notify_all()

    def _note(self, still: str) -> None:
        if still == "error":
            self._errors += 1
        elif still:
            self._still[still] += 1
        else:
            self._moved += 1

    def _step(self, feedback: Feedback) -> str:
        """Move the fast weights; empty, or why nothing moved."""
        made = ready(self._find(feedback.trajectory_id), self._model, self._train)
        if isinstance(made, str):
            return made
        in_force = self._in_force
        pattern = self._pattern(in_force, self._model.embed([made.question])[0])
        if pattern is None:
            return "like no pattern"
        advantage = float(np.clip(feedback.quality - in_force.bank.usual_quality(pattern.id), -1.0, 1.0))
        if not advantage:
            return "as good as usual"
        return self._move(made, in_force.family[pattern.id], advantage, in_force)

    def _move(self, made: Ready, family: str, advantage: float, in_force: InForce) -> str:
        from sona.learn.policy import response_log_prob  # torch takes seconds to import

        with self._model.response_states(made.prompt, made.response, made.question) as states:
            if states.version != in_force.version:
                return "another version came"
            key = _key(family, states.adapter)
            log_prob = response_log_prob(states.head, made.response, self._model.vocab_size)
            change = self._lora.learn_response(states.hidden, log_prob, advantage, key)
        with self._state:
            if self._in_force is not in_force:
                self._lora.drop([key])
                return "another version came"
        return "" if change else "no step found"


def _key(family: str, adapter: str | None) -> str:
    return f"{adapter or BASE}{SEPARATOR}{family}"


def _family_of(key: str) -> str:
    return key.partition(SEPARATOR)[2]
