"""Approved answers on their way to a training service: no answer is free for a cycle while a service may have it.

::

    approved ── noted as a batch, marked as sent ── POST ── accepted: the job is noted
                                                        ├── refused: approved again
                                                        └── no answer, a crash: they stay as sent, not confirmed

A batch that is not confirmed is sent again before the next one, under the id that it had: the hash of its samples. It
stays not confirmed until the service accepts it, says that the job failed, or a person says what came of it. One that
the service refuses each time it is asked again is set aside after :data:`TRIES`, so that what comes after it is sent; a
person then says what came of it. So it is with one that can't be sent again as it was: some of its answers were
confirmed by hand, or their texts are gone, or another service is named now.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import msgspec

from sona.attribution.preferences import StateStore
from sona.attribution.training_service import TrainingService, TrainOn, samples_of
from sona.candidate import Candidate
from sona.config import CandidatesConfig
from sona.errors import Outcome, SendError, SonaError, StoreCorruptError, UnknownIdError
from sona.excerpt import excerpt
from sona.ports import CandidateStore
from sona.reviewed import Sent, Unconfirmed
from sona.types import Record

log = logging.getLogger("sona.reviewing")

STATE = "review/sending"
NOT_ACCEPTED = "not accepted"
"""What is noted of answers that a service refused; any other way back from ``sent`` is a job that it gave up."""

TRIES = 3
"""So often a batch is refused when it is sent again, before it is set aside."""

STANDS: Mapping[Outcome, str] = MappingProxyType(
    {
        "refused": "nothing was marked as sent",
        "failed": "the answers are approved again",
        "unknown": "it may have taken the answers, so they stay as sent, not confirmed, and no cycle takes them; send "
        "again to find out (the request has an id), or say what came of them ('sona candidates confirm')",
    }
)
"""How things stand then, for a person."""
ASIDE = "it is set aside; say what came of it with 'sona candidates confirm' or POST /candidates/confirm"


class Batch(Record, kw_only=True):
    """Answers of one request that nobody has confirmed yet."""

    id: str
    """Of the request: the hash of its samples."""
    service: str
    """Who was asked."""
    train_on: TrainOn
    """As it was then: the same id has to mean the same samples."""
    seqs: tuple[int, ...]
    """The candidates."""
    refused: int = 0
    """So often the service refused it when it was sent again."""
    said: str = ""
    """... and what it said the last time."""
    is_part: bool = False
    """Whether there were others with them, of which a person has said what came."""

    @property
    def is_aside(self) -> bool:
        """Whether it was refused too often to be sent again."""
        return self.refused >= TRIES


class SendingStore(StateStore, Protocol):
    """A store, as far as sending takes it."""

    @property
    def candidates(self) -> CandidateStore:
        """Its candidates."""


class Sending:
    """What is sent, and what of it is not confirmed. One at a time may send."""

    def __init__(self, store: SendingStore, settings: CandidatesConfig) -> None:
        self._store, self._settings = store, settings
        self._noting = threading.RLock()

    def unconfirmed(self, service: str = "") -> list[Unconfirmed]:
        """Of which candidates nobody knows whether a service has them, request by request; StoreCorruptError where that
        can't be read. ``service`` is who would be asked; "": the one at ``candidates.train_url``.
        """
        asked = service or self._settings.train_url.rstrip("/")
        found = []
        for batch in self._batches():
            candidates = self._candidates(batch)
            if ids := [one.seq for one in candidates if one.state == "sent"]:
                why = _why_not_again(batch, candidates, asked)
                found.append(
                    Unconfirmed(
                        request=batch.id,
                        service=batch.service,
                        ids=ids,
                        refused=batch.refused,
                        said=batch.said,
                        is_aside=bool(why),
                        why=why,
                    )
                )
        return found

    def settle(self, ids: Collection[int]) -> None:
        """Somebody has said what came of these."""
        with self._noting:
            left = [_without(batch, ids) for batch in self._batches()]
            self._keep([batch for batch in left if batch.seqs])

    def send(self, service: TrainingService) -> Sent:
        """Send what is not confirmed again, then all that is approved.

        Raises:
            SendError: one was not accepted, or there is nothing to send.
        """
        with self._noting:
            batches = [one for one in self._batches() if any(each.state == "sent" for each in self._candidates(one))]
            self._keep(batches)  # of the others none was posted, or each was confirmed by hand
        again = [one for one in batches if not _why_not_again(one, self._candidates(one), service.name)]
        done = [sent for batch in again if (sent := self._post_again(service, batch)) is not None]
        if approved := self._store.candidates.approved(self._settings.max_approved):
            done.append(self._post(service, self._begin(service, approved)))
        if not done:
            raise SendError(self._nothing(service))
        return Sent(ids=[id for sent in done for id in sent.ids], job=", ".join(sent.job for sent in done if sent.job))

    def _begin(self, service: TrainingService, approved: Sequence[Candidate]) -> Batch:
        """Note a batch and mark its answers, before anybody is asked: whatever happens then, no cycle takes them."""
        train_on, seqs = self._settings.train_on, tuple(one.seq for one in approved)
        batch = Batch(id=request_id(approved, train_on), service=service.name, train_on=train_on, seqs=seqs)
        with self._noting:
            self._keep([*self._batches(), batch])
        self._store.candidates.change(seqs, "sent", by=service.name, note=f"request {batch.id}, not confirmed")
        return batch

    def _post_again(self, service: TrainingService, batch: Batch) -> Sent | None:
        """What the service accepted this time; None where it has refused it so often that it is set aside."""
        try:
            return self._post(service, batch, is_again=True)
        except SendError as error:
            if error.outcome != "unknown" or not error.of_samples:
                raise
            said = excerpt(str(error.__cause__ or error), 300)
            tried = msgspec.structs.replace(batch, refused=batch.refused + 1, said=said)
            with self._noting:
                self._keep([tried if one == batch else one for one in self._batches()])
            if not tried.is_aside:
                raise
            log.warning("%s refused request %s %d times (%s); %s", service.name, batch.id, TRIES, said, ASIDE)
            return None

    def _post(self, service: TrainingService, batch: Batch, *, is_again: bool = False) -> Sent:
        rows, by = self._store.candidates, service.name
        try:
            job = service.train(samples_of(self._candidates(batch), batch.train_on), batch.id)
        except SendError as error:
            # Who refuses it when it is asked again, or can't be reached, says nothing of what it was asked before.
            outcome: Outcome = "unknown" if is_again and error.outcome == "refused" else error.outcome
            if outcome != "unknown":
                note = NOT_ACCEPTED if outcome == "refused" else "the service gave the job up"
                rows.change(batch.seqs, "approved", by=by, note=note)
                self._forget(batch)
            raise SendError(f"{error}; {STANDS[outcome]}", outcome=outcome, of_samples=error.of_samples) from error
        try:
            rows.change(batch.seqs, "sent", by=by, note=job, again=True)
            self._forget(batch)
        except SonaError:
            log.exception("%s accepted job %r of candidates %s, and that could not be noted", by, job, batch.seqs)
            raise
        return Sent(ids=list(batch.seqs), job=job)

    def _nothing(self, service: TrainingService) -> str:
        if left := self.unconfirmed(service.name):
            why = "".join(f", and candidates {one.ids} can't be sent again, as {one.why}" for one in left)
            return f"nothing is approved{why}; say what came of them ('sona candidates confirm')"
        return "nothing is approved, so nothing was sent; approve candidates first"

    def _candidates(self, batch: Batch) -> list[Candidate]:
        """Those that are left: an erasure takes them too."""
        found = []
        for seq in batch.seqs:
            with suppress(UnknownIdError):
                found.append(self._store.candidates.get(seq))
        return found

    def _batches(self) -> list[Batch]:
        raw = self._store.read_state(STATE)
        try:
            return [] if raw is None else msgspec.json.decode(raw, type=list[Batch])
        except msgspec.DecodeError as error:
            raise StoreCorruptError(
                f"state {STATE!r} can't be read ({error}); restore the store from a backup"
            ) from None

    def _keep(self, batches: Sequence[Batch]) -> None:
        if list(batches) != self._batches():
            self._store.write_state(STATE, msgspec.json.encode(batches))

    def _forget(self, batch: Batch) -> None:
        with self._noting:
            self._keep([one for one in self._batches() if one.id != batch.id])


def _without(batch: Batch, ids: Collection[int]) -> Batch:
    """The batch without candidates of which a person has said what came."""
    seqs = tuple(seq for seq in batch.seqs if seq not in ids)
    return batch if seqs == batch.seqs else msgspec.structs.replace(batch, seqs=seqs, is_part=True)


def _why_not_again(batch: Batch, candidates: Sequence[Candidate], service: str) -> str:
    """Why a batch, of which these candidates are left, can't be sent to ``service`` ("": to whoever it was sent to) as
    it was sent; "" where it can.
    """
    if batch.is_aside:
        return f"the service refused them {batch.refused} times"
    if batch.is_part or any(one.state != "sent" for one in candidates):
        return "others of the same request were confirmed by hand"
    if len(candidates) < len(batch.seqs) or request_id(candidates, batch.train_on) != batch.id:
        return "their texts are gone, or some of them"
    if service and service != batch.service:
        return f"they went to {batch.service}, and sending goes to {service} now (candidates.train_url)"
    return ""


def request_id(candidates: Sequence[Candidate], train_on: TrainOn) -> str:
    """The SHA-256 of their samples, and of how often a service has given each up: a job that failed is another then."""
    given_up = [_times_given_up(one) for one in candidates]
    digest = hashlib.sha256(msgspec.msgpack.encode((samples_of(candidates, train_on), given_up)))
    return f"sona-{digest.hexdigest()}"


def _times_given_up(candidate: Candidate) -> int:
    return sum(
        (before.state, after.state) == ("sent", "approved") and after.note != NOT_ACCEPTED
        for before, after in pairwise(candidate.changes)
    )
