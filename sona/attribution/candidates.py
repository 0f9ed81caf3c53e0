"""Candidates are found in the background, turn by turn, and nothing that is recorded waits for it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from sona.attribution.preferences import Preferences, Seen
from sona.attribution.turns import Answering, ScoredResponse, TurnScorer
from sona.candidate import Candidate
from sona.config import CandidatesConfig
from sona.errors import InvalidInputError, SonaError
from sona.excerpt import excerpt
from sona.ports import CandidateStore
from sona.types import Trajectory

log = logging.getLogger("sona.attribution")

TEMPERATURE, TOP_P, TOP_K = 0.6, 0.95, 20
"""How an alternate answer is drawn."""
BACKFILLED = 20
"""So many candidates without an alternate get one when alternates are switched on."""
KEEP_S = 5.0
"""So often, at most, what was seen is written down."""
STOP_S = 30.0
"""Closing waits so long for the turn under way."""
_Job = Trajectory | None
"""A turn to score; None: alternates were switched on."""


class CandidateFinder:
    """Scores turns in a thread of its own, and stores as new candidates the responses above the threshold."""

    def __init__(
        self,
        scorer: TurnScorer,
        store: CandidateStore,
        preferences: Preferences,
        settings: CandidatesConfig,
        model: Answering | None = None,
    ) -> None:
        """Args:
        scorer: tells how much a response depends on memory.
        store: takes the candidates.
        preferences: the threshold, and whether alternates are wanted; read for each turn.
        settings: bounds.
        model: writes alternates; None: there are none.

        Raises:
            InvalidInputError: the scorer's noise floor is no number of nats.
        """
        self._scorer, self._store, self._preferences = scorer, store, preferences
        self._settings, self._model = settings, model
        preferences.set_floor(scorer.noise_floor)
        self._waiting: deque[_Job] = deque()
        self._turn = threading.Condition()  # of the four that follow and of those that wait
        self._under_way = self._stopping = False
        self._held = 0
        self._process = os.getpid()
        self._counting = threading.Lock()
        self._seen = Seen()
        self._kept_s = -KEEP_S
        self._thread = threading.Thread(target=self._run, name="sona-candidates", daemon=True)
        self._thread.start()

    def offer(self, trajectory: Trajectory) -> None:
        """A turn was recorded. Never waits and never raises: beyond ``candidates.max_waiting`` it is not scored, which
        is counted.
        """
        self._put(trajectory)

    def fill_alternates(self) -> None:
        """Alternates were switched on: what is on the screen gets them too."""
        self._put(None)

    def _put(self, job: _Job) -> None:
        if os.getpid() != self._process:  # a forked child has no such thread, and may have a lock that is never let go
            return
        with self._turn:
            if self._stopping:
                return
            if job is None or len(self._waiting) < self._settings.max_waiting:
                self._waiting.append(job)
                self._turn.notify_all()
                return
        if self._count("dropped") == 1:
            log.warning(
                "a turn is not scored, as %d wait (candidates.max_waiting; told once, counted always)",
                self._settings.max_waiting,
            )

    def seen(self) -> Seen:
        """What was seen so far."""
        with self._counting:
            return msgspec.structs.replace(self._seen, waiting=len(self._waiting))

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether all that was offered was looked at within so long."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._waiting and not self._under_way, timeout_s)

    @contextmanager
    def nothing_of(self, source: str) -> Iterator[None]:
        """In the block nothing becomes a candidate, and what a source has sent before never will."""
        with self._turn:
            self._held += 1
            kept = [job for job in self._waiting if job is None or job.source != source]
            self._waiting = deque(kept)
            self._turn.wait_for(lambda: not self._under_way)
        try:
            yield
        finally:
            with self._turn:
                self._held -= 1
                self._turn.notify_all()

    def close(self) -> None:
        """End, once the turn under way is done or :data:`STOP_S` have passed; what waits is not scored. A second call
        does nothing.
        """
        if os.getpid() != self._process:
            return
        with self._turn:
            if self._stopping:
                return
            self._stopping = True
            left = sum(job is not None for job in self._waiting)
            self._waiting.clear()
            self._turn.notify_all()
        self._count("dropped", left)
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("the turn that is being scored did not end in %g s; it is left to itself", STOP_S)
        self._keep()

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._stopping or (self._waiting and not self._held))
                if self._stopping:
                    return
                job, self._under_way = self._waiting.popleft(), True
            try:
                self._do(job)
            except Exception as error:  # a scorer may raise anything; it costs this turn alone
                self._failed("failed", error)
                name = "alternates" if job is None else f"turn {job.id}"
                log.exception("%s could not be scored", name)
            finally:
                with self._turn:
                    self._under_way = False
                    self._turn.notify_all()
            if time.monotonic() - self._kept_s > KEEP_S:
                self._keep()

    def _do(self, job: _Job) -> None:
        if job is not None:
            self._score(job)
        elif self._preferences.alternates:
            waiting = self._store.heaviest("new", above=self._preferences.threshold, limit=BACKFILLED)
            for candidate in [one for one in waiting if one.alternate is None]:
                self._write_alternate(candidate)

    def _score(self, trajectory: Trajectory) -> None:
        threshold, wants_alternates = self._preferences.threshold, self._preferences.alternates
        found = [one for one in self._scorer.score_turn(trajectory) if self._is_finite(one, trajectory)]
        self._count("turns")
        above = [one for one in found if self._is_above(one, threshold)]
        new = [one.as_candidate(trajectory, self._settings.context_tail) for one in above]
        numbers = self._store.add(new) if new else []
        self._count("known", numbers.count(0))
        for number, candidate in zip(numbers, new, strict=True):
            if number and wants_alternates:
                self._write_alternate(msgspec.structs.replace(candidate, seq=number))

    def _is_finite(self, one: ScoredResponse, trajectory: Trajectory) -> bool:
        """Whether a backend told a number; one that did not costs this response alone."""
        if math.isfinite(one.divergence):
            return True
        error = InvalidInputError(f"turn {trajectory.id}, entry {one.entry}: divergence {one.divergence} is no number")
        log.warning("%s; the backend that scores is to be looked at", error)
        self._failed("failed", error)
        return False

    def _is_above(self, one: ScoredResponse, threshold: float) -> bool:
        """Whether it becomes a candidate, if it is none yet."""
        is_above = one.divergence >= threshold and one.divergence > 0.0
        with self._counting:
            seen = self._seen
            self._seen = msgspec.structs.replace(
                seen,
                responses=seen.responses + 1,
                above=seen.above + is_above,
                timeless=seen.timeless + (is_above and one.at_ns == 0),
                largest=one.divergence if seen.largest is None else max(seen.largest, one.divergence),
            )
        return is_above and one.at_ns != 0

    def _write_alternate(self, candidate: Candidate) -> None:
        """What the model answers without memories; a failure leaves the candidate without."""
        if self._model is None or self._stopping:
            return
        try:
            reply = self._model.generate(
                candidate.ids("bare_ids"),
                max_new_tokens=self._settings.alternate_tokens,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=TOP_K,
                seed=candidate.at_ns % 2**31,
            )
            self._store.set_alternate(candidate.seq, reply.text)
        except Exception as error:  # the candidate stands without it
            self._failed("failed_alternates", error)
            log.exception("candidate %d has no alternate answer", candidate.seq)

    def _failed(self, counter: str, error: Exception) -> None:
        self._count(counter)
        with self._counting:
            told = excerpt(f"{type(error).__name__}: {error}", 300)
            self._seen = msgspec.structs.replace(self._seen, last_error=told)

    def _count(self, counter: str, more: int = 1) -> int:
        with self._counting:
            value: int = getattr(self._seen, counter) + more
            self._seen = msgspec.structs.replace(self._seen, **{counter: value})
            return value

    def _keep(self) -> None:
        self._kept_s = time.monotonic()
        try:
            self._preferences.keep_seen(self.seen())
        except SonaError:  # a disk that is full costs this line of figures; what is recorded is told elsewhere
            log.debug("what scoring has seen could not be written down", exc_info=True)
