"""Events from any thread to any number of subscribers, none of whom can hold up another or whoever tells."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import ref

from sona import forked
from sona.events import Event, Missed
from sona.held import is_held_here


class EndOfEventsError(Exception):
    """A mailbox is empty, and nothing will come any more."""


class Mailbox:
    """One subscriber's queue: when it is full, the oldest event makes room and is counted.

    Any thread puts and takes. Who finds it empty leaves word how it can be woken: ``wake`` may be called from any
    thread, must not wait, and must not raise.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.RLock()  # a signal handler may tell something while its thread is in here
        self._events: deque[Event] = deque(maxlen=size)
        self._missed = 0
        self._wakes: dict[object, Callable[[], object]] = {}  # by who waits: a nested call takes out its own alone
        self.closed = False
        """Whether anything more comes in."""

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in the midst of a call here: it asks in a signal handler, or a finaliser."""
        return is_held_here(self._lock)

    def put(self, event: Event) -> bool:
        """Add ``event``; whether an older one had to go for it."""
        with self._lock:
            if self.closed:
                return False
            full = len(self._events) == self._events.maxlen
            self._missed += full
            self._events.append(event)
            # Each takes itself out: one that a Ctrl-C kept from being called is called again.
            wakes = tuple(self._wakes.values())
        for wake in wakes:
            wake()
        return full

    def take(self) -> Event | None:
        """The oldest event, or how many were missed before it; None where there is nothing now.

        Raises:
            EndOfEventsError: nor will there be.
        """
        with self._lock:
            if self._missed:
                missed, self._missed = self._missed, 0
                return Missed(count=missed)
            if self._events:
                return self._events.popleft()
            if self.closed:
                raise EndOfEventsError
        return None

    @contextmanager
    def waiting(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have ``wake`` called once there is something to take; at once where there is already."""
        me = object()
        with self._lock:
            ready = bool(self._events or self._missed or self.closed)
            if not ready:
                self._wakes[me] = wake
        if ready:
            wake()
        try:
            yield
        finally:
            with self._lock:
                self._wakes.pop(me, None)

    def close(self, *, forget: bool = False) -> None:
        """Let nothing more in, and ``forget`` what was not taken yet."""
        with self._lock:
            self.closed = True
            if forget:
                self._events.clear()
                self._missed = 0
            wakes = tuple(self._wakes.values())
        for wake in wakes:
            wake()

    def forked(self) -> None:
        """In a forked child, where nobody tells anything and the lock may be one that a lost thread held."""
        self._lock = threading.RLock()
        self._wakes = {}
        self.closed = True


class Broadcast:
    """The mailboxes of those who listen. A mailbox that nobody holds any more is forgotten by itself.

    Telling costs one look at :attr:`mailboxes` while nobody listens: ``if events.mailboxes: events.tell(...)``.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._closed = False
        self.mailboxes: tuple[ref[Mailbox], ...] = ()
        """Replaced as a whole, so that it can be read without the lock."""
        self.missed = 0
        """How many events subscribers were too slow for, all of them together."""
        forked.watch(self)

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in the midst of a call here, or of one of a mailbox."""
        mailboxes = [known() for known in self.mailboxes]
        return is_held_here(self._lock) or any(one is not None and one.is_inside for one in mailboxes)

    def tell(self, event: Event) -> None:
        """Put ``event`` into every mailbox. From any thread; never waits for a subscriber, never raises."""
        missed, gone = 0, False
        for known in self.mailboxes:
            mailbox = known()
            if mailbox is None or mailbox.closed:
                gone = True
            else:
                missed += mailbox.put(event)
        if missed or gone:
            with self._lock:
                self.missed += missed
                self._forget_gone()

    def _forget_gone(self) -> None:
        while True:
            before = self.mailboxes
            listening = tuple(known for known in before if _listens(known()))
            if self.mailboxes is before:  # no signal handler or finaliser has subscribed meanwhile
                self.mailboxes = listening
                return

    def subscribe(self, size: int) -> Mailbox:
        """A mailbox for at most ``size`` events, that gets all from now on; a closed one where this has closed."""
        mailbox = Mailbox(size)
        with self._lock:
            if self._closed:
                mailbox.close()
            else:
                self.mailboxes = (*self.mailboxes, ref(mailbox))
        return mailbox

    def close(self) -> None:
        """Nothing more is told; subscribers get what they have not taken yet, and then the end."""
        with self._lock:
            self._closed = True
            known, self.mailboxes = self.mailboxes, ()
        for mailbox in known:
            if (held := mailbox()) is not None:
                held.close()

    def forked(self) -> None:
        """In a forked child: nobody listens, and what is iterated there ends."""
        self._lock = threading.RLock()
        known, self.mailboxes = self.mailboxes, ()
        self._closed = True
        for mailbox in known:
            if (held := mailbox()) is not None:
                held.forked()


def _listens(mailbox: Mailbox | None) -> bool:
    return mailbox is not None and not mailbox.closed
