"""The candidates of an open store, for review: what ``engine.candidates`` is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager as Block
from contextlib import contextmanager, nullcontext

from sona.attribution.candidates import CandidateFinder
from sona.attribution.preferences import Preferences, Seen
from sona.attribution.training_service import HttpTrainingService, TrainingService
from sona.attribution.turns import Answering, TurnScorer
from sona.candidate import KEPT_REJECTED, LEARNED, State
from sona.config import CandidatesConfig
from sona.errors import ConfigError, StateChangeError
from sona.http_client import read_secret
from sona.in_training import InTraining
from sona.reviewed import Page, Sent, Shown, Unconfirmed, shown
from sona.sending import Sending, SendingStore
from sona.types import Trajectory

PAGE = 200
"""So many of a state are shown at most."""
REVIEWABLE: tuple[State, ...] = ("new", "approved", "rejected")
"""States that a person may bring a candidate into; the others are what training says."""


class Review:
    """Candidates to see, approve and reject. Safe to call from any thread; each change is durable when it returns."""

    def __init__(
        self,
        store: SendingStore,
        settings: CandidatesConfig,
        *,
        reviewer: str = "reviewer",
        model: Answering | None = None,
        activity: Callable[[], str] = lambda: "",
        alone: Callable[[str], Block[object]] = lambda what: nullcontext(),
        listen: Callable[[Callable[[Trajectory], None]], None] = lambda listener: None,
        in_training: InTraining | None = None,
    ) -> None:
        """Args:
        store: has the candidates.
        settings: where what is sent goes, and as what.
        reviewer: who is noted as having changed a state.
        model: writes alternates while scoring runs.
        activity: what else is done in the background, in a few words.
        alone: a block in which no cycle takes what is approved; raises where one is under way.
        listen: has a function told of each turn as it is recorded; asked only once turns are scored.
        in_training: which candidates a cycle under way learns from; None: none runs beside it.
        """
        self._store, self._settings, self._reviewer, self._model = store, settings, reviewer, model
        self._activity, self._alone, self._listen = activity, alone, listen
        self._preferences, self._sending = Preferences(store), Sending(store, settings)
        self._in_training = InTraining() if in_training is None else in_training
        self._finder: CandidateFinder | None = None
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------------------------- scoring

    def watch(self, scorer: TurnScorer) -> None:
        """Score turns from now on as they are recorded, in the background.

        Raises:
            StateChangeError: another scorer does so already.
        """
        with self._lock:
            if self._finder is not None:
                raise StateChangeError("turns are scored already; one scorer an engine is allowed")
            self._finder = CandidateFinder(
                scorer, self._store.candidates, self._preferences, self._settings, self._model
            )
            self._listen(self._finder.offer)

    def wait_scored(self, timeout_s: float) -> bool:
        """Whether all turns so far were scored within so long."""
        return self._finder is None or self._finder.wait_idle(timeout_s)

    @contextmanager
    def nothing_of(self, source: str) -> Iterator[None]:
        """In the block nothing becomes a candidate, and nothing that ``source`` sent before it ever does."""
        with nullcontext() if self._finder is None else self._finder.nothing_of(source):
            yield

    def close(self) -> None:
        """End the scoring."""
        if self._finder is not None:
            self._finder.close()

    # ---------------------------------------------------------------------------------------------- review

    def page(self) -> Page:
        """What there is to review now.

        Raises:
            StoreCorruptError: a row is damaged; what can't be read is never taken for nothing.
        """
        rows, threshold = self._store.candidates, self._preferences.threshold
        waiting = rows.heaviest("new", above=threshold, limit=PAGE) + rows.heaviest("approved", limit=PAGE)
        rejected = rows.heaviest("rejected", limit=2 * KEPT_REJECTED)
        rejected.sort(key=lambda one: one.changes[-1].at_ns, reverse=True)
        waiting.sort(key=lambda one: (-one.divergence, one.seq))
        seen = self._preferences.seen if self._finder is None else self._finder.seen()
        requests = self._sending.unconfirmed()
        return Page(
            candidates=[shown(one) for one in (*waiting, *rejected[:KEPT_REJECTED])],
            counts=rows.counts(),
            threshold=threshold,
            noise_floor=self._preferences.floor,
            alternates=self._preferences.alternates,
            seen=seen,
            is_scoring=self._finder is not None,
            activity=self._told(seen),
            train_url=self._settings.train_url,
            unconfirmed=sum(len(one.ids) for one in requests),
            requests=requests,
        )

    def _told(self, seen: Seen) -> str:
        own = "no scoring"
        if self._finder is not None:
            own = f"scoring: {seen.turns} turns done, {seen.waiting} wait"
        return "; ".join(part for part in (own, self._activity()) if part)

    def get(self, id: int) -> Shown:
        """One candidate; UnknownIdError where there is none of this number."""
        return shown(self._store.candidates.get(id))

    def change(self, ids: Sequence[int], state: State, note: str = "", by: str | None = None) -> list[Shown]:
        """Bring all into a state, or none.

        Raises:
            StateChangeError: one can't come into it, or was sent: :meth:`confirm` says what came of that; or the state
                is not a person's to give.
            InTrainingError: ... or is approved, and the cycle under way learns from it; try again once it has ended.
            UnknownIdError: there is none of such a number.
        """
        if state not in REVIEWABLE:
            raise StateChangeError(f"state {state!r}: it is what training says; {', '.join(REVIEWABLE)} are allowed")
        rows = self._store.candidates
        with self._in_training.changing(ids, state, rows):
            changed = rows.change(ids, state, by=by or self._reviewer, note=note, only=REVIEWABLE)
        return [shown(one) for one in changed]

    def approve(self, *ids: int) -> list[Shown]:
        """Let these be trained on."""
        return self.change(ids, "approved")

    def reject(self, *ids: int) -> list[Shown]:
        """Turn these down."""
        return self.change(ids, "rejected")

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold for what comes and what is shown; returns it within its bounds."""
        return self._preferences.set_threshold(nats)

    def set_alternates(self, wanted: bool) -> None:
        """Switch alternates on or off; what is shown gets them too, as far as turns are scored here."""
        self._preferences.set_alternates(wanted)
        if wanted and self._finder is not None:
            self._finder.fill_alternates()

    # ---------------------------------------------------------------------------------------------- sending

    def send(self, service: TrainingService | None = None) -> Sent:
        """Send all that is approved to a training service, and what was sent before and is not confirmed again.

        Before a service is asked the answers are marked as sent, so that no cycle can take what it may have. Where it
        did not accept them they are approved again. Where nobody knows (no answer, a crash), they stay as sent, not
        confirmed, and the next ``send`` asks again under the same id; or :meth:`confirm` says what came of them. What
        is refused three times then is set aside, and keeps nothing else waiting (``page().requests``).

        Args:
            service: takes it; None: the one at ``candidates.train_url``.

        Raises:
            SendError: it did not accept, or nobody knows (``outcome``), or there is nothing to send.
            ConfigError: no address is set, or its token can't be read.
            CycleError: a cycle, which may take the same, is under way.
        """
        service = service or self._service()
        with self._alone("answers are sent"):
            return self._sending.send(service)

    def unconfirmed(self) -> list[Unconfirmed]:
        """What was sent and is not confirmed, request by request; StoreCorruptError where that can't be read."""
        return self._sending.unconfirmed()

    def confirm(self, ids: Sequence[int], *, trained: bool, by: str | None = None, note: str = "") -> list[Shown]:
        """What came of sent ones, all or none: they are in the weights, or the service gave the job up (or never had
        it) and they are approved again.

        Raises:
            StateChangeError: one was not sent, or is in the weights already.
            UnknownIdError: there is none of such a number.
        """
        to: State = "trained" if trained else "approved"
        changed = self._store.candidates.change(ids, to, by=by or self._reviewer, note=note, only=LEARNED)
        self._sending.settle(ids)
        return [shown(one) for one in changed]

    def _service(self) -> TrainingService:
        if not self._settings.train_url:
            raise ConfigError("candidates.train_url is not set; name a training service, or let a cycle learn them")
        secret = read_secret(self._settings.train_token_env, self._settings.train_token_file)
        return HttpTrainingService(self._settings.train_url, secret)
