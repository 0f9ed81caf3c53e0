"""Approved answers, sent to a training service: ``POST /train``, as it is in the wire form of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from sona.candidate import Candidate
from sona.errors import ConfigError, ExtraMissingError, SendError

TIMEOUT_S = 300.0
MOST_BYTES = 1024 * 1024
"""Of an answer; it holds the number of a job."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to be trained on."""

    context_ids: list[int]
    continuation_ids: list[int]


class TrainingService(Protocol):
    """Takes samples for training."""

    @property
    def name(self) -> str:
        """What is noted as who took them."""

    def train(self, samples: Sequence[Sample]) -> str:
        """The id of the job, once the service has accepted it.

        Raises:
            SonaError: it did not; nothing is known to be trained then.
        """


def samples_of(candidates: Sequence[Candidate], train_on: Literal["without_memories", "with_memories"]) -> list[Sample]:
    """The samples of candidates; see ``candidates.train_on``."""
    name: Literal["bare_ids", "context_ids"] = "bare_ids" if train_on == "without_memories" else "context_ids"
    return [
        Sample(context_ids=one.ids(name).tolist(), continuation_ids=one.ids("continuation_ids").tolist())
        for one in candidates
    ]


class _Job(msgspec.Struct, frozen=True):
    job_id: str | int


class HttpTrainingService:
    """One at an address. A request is sent once: who can't tell whether it was taken must not train twice."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """``url`` is that of the service; ``/train`` is asked for below it.

        Raises:
            ConfigError: it is no http or https address without a password.
            ExtraMissingError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError:
            raise ExtraMissingError("sending to a training service needs httpx: pip install 'sona[tui]'") from None
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise ConfigError("train_url: it is no address; http://host:port is allowed") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise ConfigError("train_url: http://host:port or https://host:port, without a password, is allowed")
        self._url, self._timeout_s = url.rstrip("/"), timeout_s

    @property
    def name(self) -> str:
        """Its address."""
        return self._url

    def train(self, samples: Sequence[Sample]) -> str:
        """See :meth:`TrainingService.train`; SendError says what came instead of 2xx."""
        import httpx

        body = msgspec.json.encode({"training_data": {"samples": list(samples)}})
        headers = {"content-type": "application/json"}
        try:
            with (
                httpx.Client(timeout=self._timeout_s, trust_env=False) as client,
                client.stream("POST", f"{self._url}/train", content=body, headers=headers) as answer,
            ):
                status = answer.status_code
                said = b"".join(_bounded(answer.iter_bytes()))
        except httpx.HTTPError as error:
            raise SendError(f"{self._url}/train: {type(error).__name__}: {error}; nothing was marked as sent") from None
        if not 200 <= status < 300:
            raise SendError(f"{self._url}/train answered {status}; nothing was marked as sent")
        try:
            return str(msgspec.json.decode(said, type=_Job).job_id)
        except msgspec.DecodeError:  # it was accepted all the same
            return ""


def _bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_BYTES:
            return
        yield piece
