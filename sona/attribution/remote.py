"""What scoring by a server elsewhere has in common, whatever the server speaks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import msgspec
import numpy as np

from sona.attribution.known import Known
from sona.attribution.scorer import Answer, Passage, Range, Scores, check_scores
from sona.checks import Int32
from sona.errors import (
    InvalidInputError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnclearError,
    ScoringError,
    SonaError,
    UnknownTokenError,
    UnreachableError,
)
from sona.http_client import HttpClient, Secret, check_url

TIMEOUT_S = 300.0
AT_ONCE = 8
PRIORITY = 5
"""Later than what people wait for."""
FLOOR, MEASURED_FLOOR = 0.27, 1e-3
"""Nats that a response's total moves by rounding: a server's precision is not known, so bf16's is taken; and the least
where it was measured against a model that is known to be right."""
GONE = (502, 503, 504)
NO_PROBABILITY = -9999.0
"""What servers write for minus infinity."""


@dataclass(frozen=True, eq=False)
class Values:
    """What a server said about one passage."""

    scores: Scores
    by: str = ""
    """What of the server answered, as far as it tells: only equal ones can be compared."""


class RemoteScorer(ABC):
    """A :class:`sona.attribution.scorer.PassagesScorer` elsewhere. Safe to call from several threads.

    Before the first use it is tried on a known string and refused if it disagrees.

    Args:
        url: the server's address, without the path that is asked.
        known: the string, by the tokenizer that the passages come from; with a reference's values the server is held
            to them, and its noise is measured.
        secret: shown with each request.
        max_tokens: the longest passage; None asks the server.
        noise_floor: nats; None: bf16's, or what was measured.
        priority: the larger the later, where the server has priorities; None sends none.
        at_once: so many requests are under way together.
        timeout_s: of one try of one request.
        tries: of each request.
    """

    kind = "server"

    def __init__(
        self,
        url: str,
        known: Known,
        *,
        secret: Secret | None = None,
        max_tokens: int | None = None,
        noise_floor: float | None = None,
        priority: int | None = PRIORITY,
        at_once: int = AT_ONCE,
        timeout_s: float = TIMEOUT_S,
        tries: int = 4,
    ) -> None:
        if at_once < 1:
            raise InvalidInputError(f"at_once: {at_once}; at least 1 is allowed")
        self.url, self._known, self._at_once = check_url(url), known, at_once
        self._given_floor, self._priority = noise_floor, priority
        self._connect: Callable[[], HttpClient] = lambda: HttpClient(url, secret, timeout_s=timeout_s, tries=tries)
        self._given_max, self._max_tokens, self._floor = max_tokens, 0, 0.0
        self._probing, self._probed = threading.Lock(), False

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.kind} at {self.url}"

    @property
    def max_tokens(self) -> int:
        """The longest passage that it takes."""
        self.probe()
        return self._max_tokens

    @property
    def noise_floor(self) -> float:
        """Nats."""
        self.probe()
        return self._floor

    def probe(self) -> None:
        """Try it on the known string, once.

        Raises:
            ScoringError: it can't be reached, disagrees, or is no such server.
        """
        with self._probing:
            if self._probed:
                return
            client = self._connect()
            try:
                self._try_out(client)
            except InvalidInputError as error:
                raise ScoringError(f"{self.name}: refuses the known string: {error}") from error
            finally:
                client.close()
            self._probed = True

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        """See :meth:`sona.attribution.scorer.Scorer.score`."""
        self.probe()
        client = self._connect()
        try:
            return self._checked(client, Passage(ids, tuple(ranges))).scores
        finally:
            client.close()

    def score_all(self, passages: Sequence[Passage]) -> Iterator[Answer]:
        """See :meth:`sona.attribution.scorer.PassagesScorer.score_all`. The first is asked alone, the others together;
        once the server is gone, what has no answer yet is not asked.
        """
        if not passages:
            return
        self.probe()
        client = self._connect()
        pool = ThreadPoolExecutor(self._at_once, "sona-score")
        try:
            whole = self._checked(client, passages[0])
            yield 0, whole.scores
            gone = _Gone()
            asked = {pool.submit(self._unless, gone, client, one): at for at, one in enumerate(passages[1:], 1)}
            for done in as_completed(asked):
                told = self._told(done, whole)
                if isinstance(told, _GoneError):
                    client.close()  # wakes the requests that are under way
                else:
                    yield asked[done], told
            if gone.why is not None:
                raise gone.why
        finally:
            client.close()
            pool.shutdown(cancel_futures=True)

    def _unless(self, gone: _Gone, client: HttpClient, passage: Passage) -> Values:
        if gone.why is not None:
            raise gone.why
        try:
            return self._checked(client, passage)
        except _GoneError as error:
            gone.tell(error)
            raise

    def _told(self, done: Future[Values], whole: Values) -> Scores | SonaError:
        try:
            values = done.result()
        except SonaError as error:
            return error
        if values.scores and values.by != whole.by:
            return ScoringError(
                f"{self.name}: {values.by} answered, and {whole.by} for the whole context; the two can't be compared, "
                "so score again when no version is changed, or without adapters that a router picks"
            )
        return values.scores

    def _checked(self, client: HttpClient, passage: Passage) -> Values:
        if self._max_tokens and len(passage.ids) > self._max_tokens:
            raise InvalidInputError(
                f"context: {len(passage.ids)} tokens; {self.name} takes {self._max_tokens}, so score it in chunks of "
                "fewer"
            )
        if not passage.ranges:
            return Values([])
        try:
            values = self._ask(client, passage)
        except RemoteError as error:
            raise self._translated(error) from error
        check_scores(values.scores, passage)
        return values

    def _try_out(self, client: HttpClient) -> None:
        try:
            self._max_tokens = self._given_max or self._ask_max_tokens(client)
            self._settle(client)
            spelled = self._spell(client, self._known.text)
        except RemoteError as error:
            raise self._translated(error) from error
        if spelled is not None:
            self._known.check_ids(spelled, self.name)
        whole, parts = (self._checked(client, one).scores for one in (self._known.whole, self._known.parts))
        apart = self._known.check_values(whole, parts, self.name)
        least = MEASURED_FLOOR if self._known.log_probs is not None else FLOOR
        self._floor = self._given_floor if self._given_floor is not None else max(least, 4.0 * apart)

    def _settle(self, client: HttpClient) -> None:
        """Leave out the priority where the server does not know of any."""
        if self._priority is None:
            return
        try:
            self._ask(client, self._known.parts)
        except RemoteRefusedError as error:
            if not 400 <= error.status < 500 or "priority" not in error.said.lower():
                raise
            self._priority = None

    def _translated(self, error: RemoteError) -> SonaError:
        """As what scorers raise."""
        if isinstance(error, RemoteRefusedError) and error.status in (400, 413, 422):
            said = error.said.lower()
            if "vocab" in said or "token id" in said:
                return UnknownTokenError(f"{self.name}: tokenizer mismatch: {error.said}")
            return InvalidInputError(f"{self.name}: {error}")
        # A 500 may be of this passage alone: NaN is no JSON. The others come from what stands before a dead server.
        gone = isinstance(error, UnreachableError) or (isinstance(error, RemoteRefusedError) and error.status in GONE)
        return (_GoneError if gone else ScoringError)(f"{self.name}: {error}")

    def values_of(self, passage: Passage, found: Callable[[int], float | None]) -> Scores:
        """The scores of the passage's ranges; ``found`` gives the value at a token's place.

        Raises:
            ScoringError: a value is missing or is no log-probability.
        """
        scores = []
        for start, end in passage.ranges:
            part = np.empty(end - start, dtype=np.float32)
            for at in range(start, end):
                value = found(at)
                if value is None or value <= NO_PROBABILITY:
                    raise ScoringError(
                        f"{self.name}: no log-probability for token {at} (id {int(passage.ids[at])}): "
                        f"{'there is none' if value is None else value}; the model's numbers overflow, or the server "
                        "left it out"
                    )
                part[at - start] = value
            scores.append(part)
        return scores

    def check_echo(self, passage: Passage, start: int, theirs: Sequence[int]) -> None:
        """Raises ScoringError where the server read other tokens from ``start`` on than were sent."""
        if list(theirs) != passage.ids[start:].tolist():
            raise ScoringError(
                f"{self.name}: it read {len(theirs)} tokens, other than the {len(passage.ids) - start} that were sent; "
                "its values belong to another text"
            )

    @abstractmethod
    def _ask(self, client: HttpClient, passage: Passage) -> Values:
        """One passage's values; raises RemoteError or ScoringError."""

    @abstractmethod
    def _ask_max_tokens(self, client: HttpClient) -> int:
        """The longest passage that the server takes."""

    def _spell(self, client: HttpClient, text: str) -> list[int] | None:
        """The text by the server's tokenizer; None: it does not tell."""
        return None


class _GoneError(ScoringError):
    """The server can't be reached any more."""


class _Gone:
    """Shared by the threads of one call."""

    why: _GoneError | None = None

    def tell(self, error: _GoneError) -> None:
        """The first reason is the true one: the others come from closing the client."""
        if self.why is None:
            self.why = error


class Model(msgspec.Struct, frozen=True):
    """Of a server's list of models."""

    id: str
    max_model_len: int | None = None


class Models(msgspec.Struct, frozen=True):
    """What ``GET /v1/models`` answers."""

    data: list[Model]


def served_model(client: HttpClient, name: str | None = None) -> Model:
    """The model of this name, or the first one.

    Raises:
        RemoteUnclearError: the server has none of that name.
    """
    models = client.get_json("/v1/models", Models).data
    found = next((model for model in models if name in (None, model.id)), None)
    if found is None:
        names = ", ".join(model.id for model in models) or "none"
        raise RemoteUnclearError(f"{client.url} serves {names}, and not {name or 'a model'}; name one of them")
    return found


def length_of(model: Model, name: str) -> int:
    """The model's longest text.

    Raises:
        ScoringError: the server does not say.
    """
    if model.max_model_len is None:
        raise ScoringError(f"{name}: it does not say how long a text it takes; give max_tokens")
    return model.max_model_len
