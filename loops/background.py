"""The background loop: a cycle every hour, for as long as the host lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import anyio
import msgspec

from sona.errors import SwapError
from sona.types import CycleReport

log = logging.getLogger("sona.background")

LOOK_S = 1.0
"""So often it is looked whether a cycle is due before its time."""
MAX_BACKOFF = 32  # after failures the wait doubles up to so many intervals


async def run_forever(
    learn: Callable[[], Awaitable[CycleReport]],
    interval_s: float,
    is_due: Callable[[], Awaitable[bool]] | None = None,
) -> None:
    """Call ``learn`` every ``interval_s`` seconds until cancelled, and before its time where ``is_due`` says so.

    A cycle that fails is logged and tried again later, each time after twice the wait, whatever is due: it never ends
    the host's loop.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            report = await learn()
        except SwapError:
            failures += 1
            log.exception("a cycle published, and its version can't be served; the next cycle is tried later")
        except Exception:  # out of memory, a full disk, a fault of ours: none of it may end the host
            failures += 1
            log.exception("cycle failed, %d in a row; it is tried again", failures)
        else:
            failures = 0
            log.info("cycle %d %s: %s", report.cycle, report.status, report.reason)
        wait_s = interval_s * min(2**failures, MAX_BACKOFF) if failures else interval_s
        until = began + wait_s
        if failures or is_due is None:
            await anyio.sleep(max(until - time.monotonic(), 0.0))
        else:
            await _due_or_late(until, is_due)


async def _due_or_late(until: float, is_due: Callable[[], Awaitable[bool]]) -> None:
    """Return when it is due, or at the monotonic time ``until``."""
    while (left := until - time.monotonic()) > 0:
        await anyio.sleep(min(LOOK_S, left))
        try:
            if await is_due():
                return
        except Exception:  # the next look may succeed, and the hour comes anyway
            log.exception("whether a cycle is due could not be told")


@dataclass(frozen=True)
class Triggers:
    """What begins a cycle before its hour: see :class:`sona.config.LearnerConfig`."""

    after_count: int
    after_quiet_s: float
    least: int
    """Trajectories that make a cycle: quiet alone begins none with fewer."""

    def __bool__(self) -> bool:
        return bool(self.after_count or self.after_quiet_s)

    def fire(self, waiting: int, left: int, quiet_s: float) -> bool:
        """Whether a cycle is due.

        Args:
            waiting: trajectories that a cycle would collect.
            left: how many of them the last one has left.
            quiet_s: seconds since the last request.
        """
        new = waiting - left
        return bool(
            (self.after_count and new >= self.after_count)
            or (self.after_quiet_s and quiet_s >= self.after_quiet_s and new > 0 and waiting >= self.least)
        )


class LearnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How learning goes, since the engine was opened."""

    mode: Literal["thread", "process"]
    pid: int | None
    """Of the process that learns; None in a thread, and while there is none."""
    cycle: int | None
    """The cycle under way."""
    failed: int
    """Cycles that failed, or were stopped."""
    last_failure: str | None
    """Why the last of these did."""
