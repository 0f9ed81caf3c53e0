"""What is asked of the scheduler, and the handle of whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from sona.checks import Int32
from sona.errors import ClosedError, RequestCancelledError
from sona.ports import FastRow
from sona.serving.adapters import Adapter
from sona.serving.generation import Sampling
from sona.types import Reply, Token

OnToken = Callable[[Token], None]


class Voice(NamedTuple):
    """Who writes an answer."""

    name: str | None
    """The adapter's in its version; None: the base."""
    adapter: Adapter | None
    fast: FastRow | None


@dataclass(eq=False)
class Request:
    """One answer that is wanted."""

    prompt: Int32
    """int32 (tokens,)"""
    sampling: Sampling
    """Its ``max_new_tokens`` fit behind the prompt."""
    logprobs: int | None
    """None, or how many of the likeliest tokens are told with each chosen one."""
    stop_ids: frozenset[int]
    find_voice: Callable[[], Voice]
    """Called once, when it is its turn; may raise, which fails this request."""
    make_reply: Callable[[Voice, list[Token]], Reply]
    release: Callable[[], None]
    """Called when nothing more is written, whatever the end: the version may go."""
    on_token: OnToken | None = None
    """Told each token as it is chosen, on the scheduler's thread; what it raises fails this request."""
    version: str = ""
    """The id of the version that answers."""

    def forget(self) -> None:
        """Release the version, and hold nothing of it any more."""
        self.release()
        self.find_voice, self.release = _nobody, _nothing

    @property
    def most_tokens(self) -> int:
        """That it can come to."""
        return len(self.prompt) + self.sampling.max_new_tokens


def _nobody() -> Voice:
    raise AssertionError("asked after its end")


def _nothing() -> None:
    pass


class Answering:
    """An answer on its way: wait for it, be told of it, or end it. From any thread."""

    def __init__(self, request: Request, wake: Callable[[], None]) -> None:
        self.request: Request | None = request
        """None once it has ended: it holds a version in memory no longer."""
        self.version = request.version
        """The id of the version that writes it."""
        self.cancelled = False
        self._wake = wake
        self._future = Future[Reply]()

    def result(self, timeout_s: float | None = None) -> Reply:
        """Wait for the answer.

        Raises:
            TimeoutError: it is not there after ``timeout_s`` seconds; it is still being written.
            RequestCancelledError: it was cancelled.
            ClosedError: the model was closed before it was whole.
            ModelError and others: what kept it from being written.
        """
        return self._future.result(timeout_s)

    @property
    def done(self) -> bool:
        """Whether :meth:`result` gives or raises at once."""
        return self._future.done()

    def cancel(self) -> None:
        """End it: at the next step it takes no more of the model's time. Does nothing where it has ended."""
        self.cancelled = True
        self._wake()

    def when_done(self, call: Callable[[], None]) -> None:
        """``call`` is called once it is done: on the scheduler's thread, which waits for it, or at once."""
        self._future.add_done_callback(lambda _: call())

    # For the scheduler

    def finish(self, reply: Reply) -> None:
        """It is whole."""
        self._end()
        self._future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """It will not be."""
        self._end()
        self._future.set_exception(error)

    def fail_cancelled(self) -> None:
        """It was cancelled."""
        self.fail(RequestCancelledError("the request was cancelled before its answer was whole"))

    def fail_closed(self) -> None:
        """The model was closed."""
        self.fail(ClosedError("the model was closed before the answer was whole; open it again and ask again"))

    def _end(self) -> None:
        request, self.request = self.request, None
        if request is not None:
            request.forget()
