"""Continuous batching: answers are written together, a token each at a step, and come and go at any step.

    submit() ──▶ waiting, first come first served ──▶ a seat in the batch ──▶ its prompt is read in chunks ──▶ a token
                 (``serve.max_waiting``)              (``serve.max_rows``)    between the others' tokens       a step

A step reads at most :data:`READ_TOKENS` of prompts, and writes one token of each answer whose prompt has been
read, so that a long prompt holds nobody up for longer than its chunk takes (Yu et al. 2022, "Orca"; Agrawal et al.
2023, "Sarathi", arXiv:2308.16369).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from sona.errors import ClosedError, QueueFullError
from sona.serving.adapted import RowsLostError
from sona.serving.adapters import Adapter
from sona.serving.batch import Rows
from sona.serving.batch_cache import width_for
from sona.serving.choice import Chooser, choose
from sona.serving.request import Answering, OnToken, Request
from sona.serving.seat import Seat
from sona.types import Token

READ_TOKENS = 512
"""Tokens of prompts, with padding, that a step reads."""
IDLE_S = 5.0
"""Without work for so long the thread ends; the next request starts another."""


Fed = tuple[Seat, Sequence[int]]
"""Whose tokens, and which."""


class Limits:
    """How much is answered at once."""

    def __init__(self, rows: int, tokens: int, waiting: int) -> None:
        self.rows, self.tokens, self.waiting = rows, tokens, waiting

    def fit(self, count: int, most_tokens: int) -> bool:
        """Whether so many may be in the batch together, the longest of so many tokens; one alone always may."""
        return count == 1 or (count <= self.rows and count * width_for(most_tokens) <= self.tokens)


class Scheduler:
    """One thread that writes answers; started by the first request. Safe to call from several threads.

    Args:
        make_rows: makes what computes the rows, on the scheduler's thread, before the first answer.
        limits: on what is in the batch, and on what waits for it.
    """

    def __init__(self, make_rows: Callable[[], Rows], limits: Limits) -> None:
        self._make_rows, self._limits = make_rows, limits
        self._rows: Rows | None = None
        self._chunk = 1
        self._mixes = True  # until a layer shows that it can't tell a batch's rows apart
        self._waiting: deque[Answering] = deque()
        self._seats: dict[Seat, Answering] = {}  # in the order in which they came; the thread's own
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------------ for others

    def submit(self, request: Request, *, wait: bool = False) -> Answering:
        """Have it answered; with ``wait`` not before there is room for it.

        Raises:
            QueueFullError: as many wait as ``serve.max_waiting`` allows.
            ClosedError: it was closed.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._limits.waiting)
            if self._closed:
                raise ClosedError("the model is closed; open it again to ask it")
            if len(self._waiting) >= self._limits.waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait for the model, and serve.max_waiting is "
                    f"{self._limits.waiting}; ask again later, or allow more to wait"
                )
            answering = Answering(request, self._wake)
            self._waiting.append(answering)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sona-answers", daemon=True)
                self._thread.start()
            return answering

    @property
    def counts(self) -> tuple[int, int]:
        """Answers that are being written, and requests that wait."""
        return len(self._seats), len(self._waiting)

    def close(self) -> None:
        """End the thread after the step under way; what is not whole fails with ClosedError. A second call does
        nothing.
        """
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._next():
            try:
                self._step()
            except BaseException as error:  # a fault of ours: whoever waits must hear of it, and the next be answered
                answers, self._seats, self._rows = list(self._seats.values()), {}, None
                for answering in answers:
                    answering.fail(error)

    def _next(self) -> bool:
        """Wait for something to do, and give those a seat who can have one; False where the thread is to end."""
        with self._changed:
            if not self._seats and not self._waiting and not self._closed:
                self._changed.wait_for(lambda: self._waiting or self._closed, IDLE_S)
            closed, ended = self._closed, [one for one in self._waiting if one.cancelled]
            joining = [] if closed else self._taken()
            lost = list(self._waiting) if closed else ended
            for one in lost:
                self._waiting.remove(one)
            idle = not self._seats and not joining and not self._waiting
            if idle and not closed:
                self._thread = None  # under the lock, so that whoever submits next starts another
            self._changed.notify_all()
        for one in lost:
            (one.fail_closed if closed else one.fail_cancelled)()
        if closed:
            for answering in self._leave_all():
                answering.fail_closed()
        for one in joining:
            self._seat(one)
        return not closed and not idle

    def _taken(self) -> list[Answering]:
        """The first of those that wait, as many as there is room for."""
        taken: list[Answering] = []
        if not self._waiting:
            return taken
        longest = max((seat.request.most_tokens for seat in self._seats), default=0)
        for one in [one for one in self._waiting if not one.cancelled]:
            assert one.request is not None
            longest = max(longest, one.request.most_tokens)
            if not self._limits.fit(len(self._seats) + len(taken) + 1, longest):
                break  # those behind it wait too, or it would never have its turn
            taken.append(one)
            self._waiting.remove(one)
        return taken

    def _seat(self, answering: Answering) -> None:
        request = answering.request
        assert request is not None
        seat = Seat(request, Chooser(request.sampling, request.logprobs), request.prompt.tolist())
        try:
            if self._rows is None:
                self._rows = self._make_rows()
                self._chunk = self._rows.chunk
            self._rows.join(seat)
        except BaseException as error:
            answering.fail(error)
        else:
            self._seats[seat] = answering

    def _step(self) -> None:
        for seat, answering in list(self._seats.items()):
            if answering.cancelled:
                self._leave(seat).fail_cancelled()
        writing = [seat for seat in self._seats if seat.writing]
        reading = self._readers()
        at_once = self._rows is not None and self._rows.at_once
        for part in [[*writing, *reading]] if at_once else [reading, writing]:
            if part := [seat for seat in part if seat in self._seats]:
                self._feed(part, [seat.todo[: self._chunk] for seat in part])

    def _readers(self) -> list[Seat]:
        """Whose prompt is read at this step: the first in line, and whoever fits beside."""
        chosen: list[Seat] = []
        longest = 0
        for seat in [seat for seat in self._seats if not seat.writing]:
            longest = max(longest, min(len(seat.todo), self._chunk))
            if chosen and longest * (len(chosen) + 1) > READ_TOKENS:
                break
            if self._has_voice(seat):
                chosen.append(seat)
        return chosen

    def _has_voice(self, seat: Seat) -> bool:
        """Find out who writes its answer; False, and it has failed, where that can't be."""
        if seat.voice is None:
            try:
                seat.voice = seat.request.find_voice()
            except BaseException as error:
                self._fail(seat, error)
                return False
        return True

    def _feed(self, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> None:
        """Have the model read these tokens, and where nothing is left to read choose the next one."""
        for part, logits in self._computed(list(zip(seats, feeds, strict=True))):
            done: list[int] = []
            for place, (seat, feed) in enumerate(part):
                seat.read += len(feed)
                seat.todo = seat.todo[len(feed) :]
                if not seat.todo:
                    done.append(place)
            if done:
                written = [part[place][0] for place in done]
                tokens = choose(logits[done], [seat.chooser for seat in written])
                self._write(written, tokens)

    def _computed(self, fed: list[Fed]) -> Iterator[tuple[list[Fed], Tensor]]:
        """The rows in as few passes as can be, each with its logits. A row with which no pass succeeds fails alone."""
        assert self._rows is not None
        if len(fed) > 1 and not self._rows.together:
            for one in fed:
                yield from self._computed([one])
            return
        groups = _by_adapter(fed)
        if not self._mixes and len(groups) > 1:
            for group in groups:
                yield from self._computed(group)
            return
        try:
            logits = self._rows.forward([seat for seat, _ in fed], [feed for _, feed in fed])
        except BaseException as error:
            if len(fed) == 1:
                self._fail(fed[0][0], error)
                return
            smaller = [[one] for one in fed]
            if isinstance(error, RowsLostError) and len(groups) > 1:
                self._mixes, smaller = False, groups
            for part in smaller:
                yield from self._computed(part)
        else:
            yield fed, logits

    def _write(self, seats: Sequence[Seat], tokens: Sequence[Token]) -> None:
        """One more token of each answer, which may be its last. They are told once all is done: who hears of a token
        wants the processor, or the interpreter's lock, and is then woken once for all of them.
        """
        told = [(self._seats[seat], seat.request.on_token) for seat in seats]
        ends: list[Callable[[], None] | None] = []
        try:
            for seat, token in zip(seats, tokens, strict=True):
                ends.append(self._written(seat, token))
        finally:  # whose seat is free hears of its end, whatever happened to another's
            for (answering, on_token), token, end in zip(told, tokens, ends, strict=False):
                self._tell(answering, on_token, token, end)

    def _tell(
        self, answering: Answering, on_token: OnToken | None, token: Token, end: Callable[[], None] | None
    ) -> None:
        try:
            if on_token is not None:
                on_token(token)
        except BaseException as error:
            for seat in [seat for seat, its in self._seats.items() if its is answering]:
                self._leave(seat)
            answering.fail(error)
        else:
            if end is not None:
                end()

    def _written(self, seat: Seat, token: Token) -> Callable[[], None] | None:
        """Put it into its answer. Where that is the last one, the seat is free, and what ends the answer is given."""
        seat.answer.append(token)
        seat.todo = [token.id]
        request = seat.request
        if token.id not in request.stop_ids and len(seat.answer) < request.sampling.max_new_tokens:
            return None
        assert seat.voice is not None
        try:
            reply = request.make_reply(seat.voice, seat.answer)
        except Exception as error:
            return partial(self._leave(seat).fail, error)
        return partial(self._leave(seat).finish, reply)

    def _leave(self, seat: Seat) -> Answering:
        """Take it out of the batch. From here on it holds no adapter, which may be the last to do so."""
        assert self._rows is not None
        self._rows.leave(seat)
        seat.voice = None
        return self._seats.pop(seat)

    def _leave_all(self) -> list[Answering]:
        return [self._leave(seat) for seat in list(self._seats)]

    def _fail(self, seat: Seat, error: BaseException) -> None:
        self._leave(seat).fail(error)


def _by_adapter(fed: list[Fed]) -> list[list[Fed]]:
    groups: dict[Adapter | None, list[Fed]] = {}
    for seat, feed in fed:
        groups.setdefault(seat.adapter, []).append((seat, feed))
    return list(groups.values())
