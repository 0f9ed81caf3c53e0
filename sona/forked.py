"""What becomes of what is open in a forked child: it is closed there, and stays the parent's."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class _ForkAware(Protocol):
    def forked(self) -> None: ...


_watched: WeakSet[_ForkAware] = WeakSet()


def watch(thing: _ForkAware) -> None:
    """Call ``thing.forked()`` in every child that this process forks while ``thing`` lives."""
    _watched.add(thing)


def _in_child() -> None:
    for thing in list(_watched):
        thing.forked()
    _watched.clear()


os.register_at_fork(after_in_child=_in_child)
