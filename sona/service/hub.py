"""What all requests of one server share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from starlette.types import Receive

from sona.engine import Engine
from sona.service.answers import Answers, EngineAnswers
from sona.service.beside import beside
from sona.service.limits import Rate, Slots
from sona.service.metrics import Metrics
from sona.service.problems import ProblemError, stopping
from sona.types import Version

log = logging.getLogger("sona.service")
BASE_NAME = "sona"
"""The model that clients ask for: whatever version is in force."""


class Hub:
    """One engine, and what is under way in it. For one event loop."""

    def __init__(self, engine: Engine, answers: Answers | None = None) -> None:
        self.engine = engine
        self.answers: Answers = EngineAnswers(engine) if answers is None else answers
        self.limits = engine.config.service
        self.requests = Slots(self.limits.max_requests, "requests")
        self.answering = Slots(self.limits.max_answers, "answers")
        self.listening = Slots(self.limits.max_listeners, "readers of events")
        self.rate = Rate(self.limits.requests_per_s)
        self.metrics = Metrics(engine)
        self.stopping = anyio.Event()
        """Set once the server was told to stop."""
        self._learn = anyio.Event()
        """Set: a cycle was asked for."""
        self._under_way: dict[str, anyio.Event] = {}
        self._work: set[anyio.CancelScope] = set()
        self._digests: dict[str, str] = {}

    def stop(self) -> None:
        """Take nothing new; what is under way may end."""
        self.stopping.set()

    def cancel_work(self) -> None:
        """End what is under way."""
        for scope in self._work:
            scope.cancel()

    @asynccontextmanager
    async def work(self, receive: Receive) -> AsyncIterator[None]:
        """The block is cancelled when its client hangs up, and when the server can wait no longer.

        Raises:
            ProblemError: 503, the second of these.
        """
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            scope.cancel()

        with anyio.CancelScope() as scope:
            self._work.add(scope)
            try:
                async with beside(watch):
                    yield
            finally:
                self._work.discard(scope)
        if scope.cancelled_caught and not gone:
            raise stopping()

    @contextmanager
    def under_way(self, trajectory: str) -> Iterator[None]:
        """The trajectory is not recorded before the block ends."""
        ended = self._under_way[trajectory] = anyio.Event()
        try:
            yield
        finally:
            del self._under_way[trajectory]
            ended.set()

    async def ended(self, trajectory: str) -> None:
        """Return when the trajectory is not under way (any more)."""
        if (event := self._under_way.get(trajectory)) is not None:
            await event.wait()

    def ask_to_learn(self) -> None:
        """Have a cycle begin now; ProblemError (409) where one is under way."""
        if self._learn.is_set() or self.engine.learner.cycle is not None:
            raise ProblemError(409, "a cycle is under way; GET /events tells when it ends", code="conflict")
        self._learn.set()

    async def learn_when_asked(self) -> None:
        """Run the cycles that :meth:`ask_to_learn` asks for; one that fails is told by events and the log."""
        while True:
            await self._learn.wait()
            try:
                await self.engine.learn()
            except Exception:  # whatever it is, the server goes on
                log.exception("the cycle that was asked for failed")
            finally:
                self._learn = anyio.Event()

    def digest(self, version: str) -> str:
        """Of a version's files; of one without, the base model's fingerprint."""
        if version not in self._digests:
            self._digests |= {known.id: known.digest for known in self.engine.versions()}
        return self._digests[version] or self.engine.model.fingerprint

    def version(self, version_id: str) -> Version:
        """A version by its id; ProblemError (404) where there is none."""
        found = next((known for known in self.engine.versions() if known.id == version_id), None)
        if found is None:
            raise ProblemError(404, "no such version; GET /versions lists them", code="not_found", param="id")
        return found

    def check_model(self, name: str) -> None:
        """Raises ProblemError (404) where ``name`` is no model that answers now."""
        if name not in self.model_names():
            raise ProblemError(
                404,
                f"the model does not exist; {' and '.join(self.model_names())} do",
                code="model_not_found",
                param="model",
            )

    def model_names(self) -> list[str]:
        """What answers now: ``sona``, and the version in force by name."""
        return [BASE_NAME, f"{BASE_NAME}:{self.engine.model.version}"]
