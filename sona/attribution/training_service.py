"""Approved answers, sent to a training service: ``POST /train``, as it is in the wire form of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Literal, Protocol

import msgspec

from sona.candidate import Candidate
from sona.errors import ConfigError, Outcome, RemoteRefusedError, RemoteUnclearError, SendError, UnreachableError
from sona.http_client import HttpClient, Secret

TrainOn = Literal["without_memories", "with_memories"]
TIMEOUT_S = 300.0
MAX_BYTES = 1024 * 1024
"""Of an answer; it holds the number of a job."""
LOST = (502, 504)
"""What stands before a service says so when the service did not answer: it may have taken the job."""

OF_SAMPLES = (400, 409, 413, 415, 422, 500)
"""What a service says that does not take these samples; of any other status it may take them another time."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to be trained on."""

    context_ids: list[int]
    continuation_ids: list[int]


class TrainingService(Protocol):
    """Takes samples for training."""

    @property
    def name(self) -> str:
        """What is noted as who took them."""

    def train(self, samples: Sequence[Sample], request_id: str) -> str:
        """The id of the job, once the service has accepted it. The same samples under the same id are one job.

        Raises:
            SendError: it did not accept it, or nobody knows: :attr:`SendError.outcome` says which. Of any other error
                it is not known either.
        """


def samples_of(candidates: Sequence[Candidate], train_on: TrainOn) -> list[Sample]:
    """The samples of candidates; see ``candidates.train_on``."""
    name: Literal["bare_ids", "context_ids"] = "bare_ids" if train_on == "without_memories" else "context_ids"
    return [
        Sample(context_ids=one.ids(name).tolist(), continuation_ids=one.ids("continuation_ids").tolist())
        for one in candidates
    ]


class _Job(msgspec.Struct, frozen=True):
    job_id: str | int
    status: str = ""


class HttpTrainingService:
    """One at an address. A request is sent once, so that what is told of it is true; who sends it again gives the same
    id, by which the service knows it (``sona serve`` does).
    """

    def __init__(self, url: str, secret: Secret | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """``url`` is that of the service; ``/train`` is asked for below it. ``secret`` is shown to it.

        Raises:
            ConfigError: it is no http or https address without a password.
        """
        self._secret, self._timeout_s = secret, timeout_s
        with closing(self._client(url)) as client:
            self._url = client.url

    @property
    def name(self) -> str:
        """Its address."""
        return self._url

    def train(self, samples: Sequence[Sample], request_id: str) -> str:
        """See :meth:`TrainingService.train`."""
        body = {"id": request_id, "training_data": {"samples": list(samples)}}
        try:
            with closing(self._client(self._url)) as client:
                said = client.post("/train", body)
        except RemoteUnclearError:  # 2xx, at length: it was accepted all the same
            return ""
        except UnreachableError as error:
            outcome: Outcome = "unknown" if error.was_connected else "refused"
            raise SendError(str(error), outcome=outcome, of_samples=False) from None
        except RemoteRefusedError as error:
            outcome = "unknown" if error.status in LOST else "refused"
            of_samples = error.status in OF_SAMPLES
            raise SendError(f"{error}{_remedy(error.status)}", outcome=outcome, of_samples=of_samples) from None
        return self._job(said)

    def _client(self, url: str) -> HttpClient:
        try:
            return HttpClient(url, self._secret, timeout_s=self._timeout_s, tries=1, max_bytes=MAX_BYTES)
        except ConfigError as error:
            raise ConfigError(f"candidates.train_{error}") from None  # it begins with "url:"

    def _job(self, said: bytes) -> str:
        try:
            job = msgspec.json.decode(said, type=_Job)
        except msgspec.DecodeError:  # it was accepted all the same
            return ""
        if job.status == "failed":  # a job of this id that was taken before
            why = f"{self._url}/train took this before, as job {job.job_id}, which failed there"
            raise SendError(why, outcome="failed")
        return str(job.job_id)


def _remedy(status: int) -> str:
    return "; set candidates.train_token_env or train_token_file to its token" if status == 401 else ""
