"""An answer while it is written, as iterators of its text: one for event loops, one for threads."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from anyio.lowlevel import checkpoint

from sona.bell import Bell
from sona.errors import InvalidInputError
from sona.event_loop import EventLoop
from sona.types import Reply, Token

if TYPE_CHECKING:
    from sona.serving.pieces import TextPieces
    from sona.serving.request import Answering


async def completed(answering: Answering) -> Reply:
    """The whole answer; no thread waits for it. A cancellation ends the request. Raises as :meth:`Answering.result`."""
    done = anyio.Event()
    answering.when_done(partial(EventLoop().soon, done.set))
    try:
        await done.wait()
    except BaseException:
        answering.cancel()
        raise
    return answering.result(0.0)


class _Tokens:
    """Tokens on their way from the thread that chooses them to the one reader."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: deque[Token] = deque()
        self._wake: Callable[[], object] | None = None

    def put(self, token: Token) -> None:
        """One more."""
        self._there.append(token)
        self.wake()

    def wake(self) -> None:
        """Whoever waits looks again."""
        with self._lock:
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def take(self) -> list[int]:
        """All that are there."""
        return [self._there.popleft().id for _ in range(len(self._there))]

    @property
    def waits(self) -> bool:
        """Whether any is there."""
        return bool(self._there)

    def when_more(self, wake: Callable[[], object]) -> None:
        """Call ``wake`` once when there is more, or the end."""
        with self._lock:
            self._wake = wake


class AnswerStream:
    """``async for piece in stream`` gives the answer's text as it is written, on asyncio or trio; then :attr:`reply` is
    the whole.

    The answer is begun when the stream is made, and written whether it is read or not. A loop that is left, by
    ``break`` or by a cancellation, ends the request, unless the stream is kept; :meth:`close` ends it in any case, and
    so does an ``async with`` around it.

    What keeps the answer from being whole is raised where the next piece would be: see :meth:`sona.Engine.stream`.
    """

    def __init__(self, begin: Callable[[Callable[[Token], None]], Answering], pieces: TextPieces) -> None:
        self._tokens, self._pieces = _Tokens(), pieces
        self._answering = begin(self._tokens.put)
        self._answering.when_done(self._tokens.wake)
        self._reply: Reply | None = None
        weakref.finalize(self, self._answering.cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            await checkpoint()
            while not (piece := self.next_piece()):
                if self._reply is not None:
                    raise StopAsyncIteration
                arrived = anyio.Event()
                self.when_more(partial(EventLoop().soon, arrived.set))
                await arrived.wait()
        except anyio.get_cancelled_exc_class():
            self.close()
            raise
        return piece

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            InvalidInputError: it has not been read to its end.
        """
        if self._reply is None:
            raise InvalidInputError("reply: the answer is not there yet; read the stream to its end")
        return self._reply

    def close(self) -> None:
        """End the request where its answer is not whole. A second call does nothing."""
        self._answering.cancel()

    def next_piece(self) -> str:
        """What has been written since the last call; empty where that is nothing, and at the end."""
        whole = self._answering.done and self._reply is None  # asked first: what came before it is there
        piece = self._pieces.add(self._tokens.take())
        if whole:
            self._reply = self._answering.result(0.0)
            piece += self._pieces.rest(self._reply.text)
        return piece

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to read."""
        return self._reply is not None

    def when_more(self, wake: Callable[[], object]) -> None:
        """Call ``wake``, from any thread, when there is more to read; at once where there may be already."""
        self._tokens.when_more(wake)
        if self._tokens.waits or self._answering.done:
            self._tokens.wake()


class SyncAnswerStream:
    """``for piece in stream``, for threads; otherwise as the :class:`AnswerStream` that it takes over."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while not (piece := self._stream.next_piece()):
            if self._stream.ended:
                raise StopIteration
            arrived = Bell()
            self._stream.when_more(arrived.ring)
            arrived.wait()
        return piece

    @property
    def reply(self) -> Reply:
        """See :attr:`AnswerStream.reply`."""
        return self._stream.reply

    def close(self) -> None:
        """See :meth:`AnswerStream.close`."""
        self._stream.close()
